"""The recipe: the part of a command's options that decides the weights of one network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from kd_mlflow.config.fields import Options
from kd_mlflow.config.sections import (
    Augmentation,
    CacheUse,
    Normalization,
    Optimizer,
    Role,
    Schedule,
    SpeedOptions,
    Stem,
    Switch,
    TrainingOptions,
)


class Recipe(Options):
    """All that decides the weights of one network, besides the data and its teacher."""

    role: Role
    architecture: str
    weights: str
    stem: Stem
    squeeze_excitation: bool
    dropout: float
    normalization: Normalization
    image_size: int
    augmentation: Augmentation
    flip: bool
    crop_min_scale: float
    epochs: int
    batch_size: int
    optimizer: Optimizer
    learning_rate: float
    weight_decay: float
    momentum: float
    schedule: Schedule
    step_size: int
    milestones: tuple[int, ...]
    gamma: float
    warmup_epochs: float
    trunk_factor: float
    label_smoothing: float
    class_weights: Literal["none", "balanced"]
    accumulate: int
    devices: int
    gradient_clip: float
    patience: int
    ema: float
    precision: Literal["float32", "bfloat16", "float16"]
    seed: int
    compile: Switch = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    teacher_backend: Literal["eager", "traced", "compiled"] = "eager"
    teacher_cache: CacheUse = "off"
    cache_precision: Literal["float16", "float32"] = "float16"
    label_share: float = 1.0
    method: str = "labels"
    method_options: dict[str, Any] = Field(default_factory=dict)


def recipe(
    config: TrainingOptions,
    role: Role,
    precision: Literal["float32", "bfloat16", "float16"],
    method_options: dict[str, Any] | None = None,
    teacher_backend: Literal["eager", "traced", "compiled"] = "eager",
) -> Recipe:
    """The recipe of one role out of a command's options.

    Parameters
    ----------
    precision:
        What the device resolved to.
    method_options, teacher_backend:
        For a student, all options of its method, and how its teacher runs.
    """
    values = {name: getattr(config, name) for name in Recipe.model_fields if hasattr(config, name)}
    if role != "student":  # who learns without a teacher is the same however one would be asked
        values = {name: value for name, value in values.items() if name not in SpeedOptions.model_fields}
    values |= {"role": role, "precision": precision, "method": "labels", "method_options": {}}
    if role == "teacher":
        values |= {"label_share": 1.0, "architecture": config.teacher_arch, "weights": config.teacher_weights}
        for name in ("epochs", "learning_rate", "weight_decay", "normalization"):
            own = getattr(config, f"teacher_{name}")
            values[name] = getattr(config, name) if own is None else own
    else:
        values |= {"architecture": config.student, "weights": config.student_weights}
    if role == "student":
        values |= {"method": config.method, "method_options": method_options or {}}
        values["teacher_backend"] = teacher_backend
    return Recipe(**values)
