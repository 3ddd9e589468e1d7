"""Every option of every command: its default, its bounds and its help stand here and nowhere else.

A command's options are one frozen pydantic model, put together from sections. The command line, the
MLproject entry points, presets and YAML files all fill the same model. A :class:`Recipe` is the part
of it that decides the weights of one network; it is what gets fingerprinted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kd_mlflow.errors import InputError

SEEDS = 2**32 - 1
PRESETS = Path(__file__).parent / "presets"

Role = Literal["teacher", "control", "student"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["step", "cosine", "multistep", "constant"]
Augmentation = Literal["none", "crop", "strong"]
Stem = Literal["standard", "small"]
Normalization = Literal["auto", "data", "imagenet"]


def _split_names(value: Any) -> Any:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


# One name or several with commas between, as the command line and MLproject give them.
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]


class Options(BaseModel):
    """A frozen set of options that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def option(default: Any, text: str, *, panel: str | None, common: bool = False, **bounds: Any) -> Any:
    """A field with its help, the panel it is listed under (None: no option of its own), whether MLproject names it."""
    extra = {"panel": panel, "common": common}
    return Field(default=default, description=text, json_schema_extra=extra, **bounds)


class ImageOptions(Options):
    """How images are prepared."""

    image_size: int = option(
        224, "Side of the square the network sees, in pixels.", panel="Data", common=True, ge=16, le=1024
    )
    max_bad: float = option(
        0.01, "Largest share of unreadable files before preparation stops.", panel="Data", ge=0, le=1
    )
    split_seed: int = option(
        0, "Seed of the 60/20/20 split of a folder without train and test.", panel="Data", ge=0, le=SEEDS
    )


class DataOptions(ImageOptions):
    """Where the images come from and how they are prepared."""

    data: str = option(
        "digits",
        "digits (built in), cifar10, cifar100, fashionmnist, imagenette, a folder of class folders, or a .tar of one.",
        panel="Data",
        common=True,
        min_length=1,
    )


class AugmentationOptions(Options):
    """What happens to a training image; a function of (seed, epoch, sample) alone."""

    augmentation: Augmentation = option(
        "crop",
        "none (centre crop), crop (random resized crop), strong (crop, TrivialAugment, random erasing).",
        panel="Augmentation",
    )
    flip: bool = option(True, "Mirror half of the training images (not with augmentation none).", panel="Augmentation")
    crop_min_scale: float = option(
        0.35, "Smallest share of the image's area that a random crop keeps.", panel="Augmentation", gt=0, le=1
    )


class TrainingOptions(Options):
    """The loop, the same for every role."""

    epochs: int = option(50, "Passes over the training split, for every role.", panel="Training", common=True, ge=1)
    batch_size: int = option(64, "Images a step.", panel="Training", common=True, ge=1)
    optimizer: Optimizer = option("adam", "The optimiser.", panel="Training")
    learning_rate: float = option(
        1e-3, "Learning rate at the start (after warm-up).", panel="Training", common=True, gt=0
    )
    weight_decay: float = option(0.0, "L2 penalty (Adam, SGD) or decoupled decay (AdamW).", panel="Training", ge=0)
    momentum: float = option(0.9, "Momentum of SGD.", panel="Training", ge=0, lt=1)
    schedule: Schedule = option("step", "How the learning rate falls.", panel="Training")
    step_size: int = option(10, "Epochs between two falls of schedule step.", panel="Training", ge=1)
    milestones: tuple[int, ...] = option((), "Epochs at which schedule multistep falls: 30,60,80.", panel="Training")
    gamma: float = option(0.1, "Factor of each fall (step, multistep).", panel="Training", gt=0, le=1)
    warmup_epochs: float = option(0.0, "Epochs of linear warm-up.", panel="Training", ge=0)
    trunk_factor: float = option(
        1.0, "Learning rate of everything but the new head, as a factor.", panel="Training", ge=0, le=1
    )
    label_smoothing: float = option(0.0, "Label smoothing of the cross-entropy.", panel="Training", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = option(
        "none", "balanced weighs each class by the inverse of its frequency in train.", panel="Training"
    )
    gradient_clip: float = option(0.0, "Largest norm of the gradient; 0 for no limit.", panel="Training", ge=0)
    patience: int = option(
        0, "Stop after so many epochs without a better validation accuracy; 0 never.", panel="Training", ge=0
    )
    ema: float = option(
        0.0,
        "Decay of an exponential moving average of the weights, which is then what is evaluated and kept; 0 for none.",
        panel="Training",
        ge=0,
        lt=1,
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "auto is bfloat16 on GPUs that have it, float32 elsewhere.", panel="Training"
    )
    seed: int = option(0, "Seed of weights, order and augmentation.", panel="Training", common=True, ge=0, le=SEEDS)


class ModelOptions(Options):
    """What teacher and student have in common."""

    stem: Stem = option(
        "standard", "small: a 3x3 stem without pooling, for tiny images (6 to 16 times the work).", panel="Models"
    )
    squeeze_excitation: bool = option(
        False, "Squeeze-and-excitation blocks in ResNets, which start as the identity.", panel="Models"
    )
    dropout: float = option(0.0, "Dropout before the classifier.", panel="Models", ge=0, lt=1)
    normalization: Normalization = option(
        "auto",
        "Mean and std inside the model: data (of the training split), imagenet, or auto "
        "(those of the pretrained weights, else of the data).",
        panel="Models",
    )


class TeacherOptions(Options):
    """The teacher's network and what differs in its training."""

    teacher_arch: str = option(
        "resnet34",
        "Teacher architecture: a torchvision name, timm:<name>, or module:factory.",
        panel="Models",
        common=True,
    )
    teacher_weights: str = option(
        "none", "Weights the teacher starts from: none, imagenet, or a file.", panel="Models", common=True
    )
    teacher_epochs: int | None = option(None, "Epochs of the teacher, if they differ.", panel="Training", ge=1)
    teacher_learning_rate: float | None = option(
        None, "Learning rate of the teacher, if it differs.", panel="Training", gt=0
    )
    teacher_weight_decay: float | None = option(
        None, "Weight decay of the teacher, if it differs.", panel="Training", ge=0
    )


class StudentOptions(Options):
    """The student's network."""

    student: str = option(
        "resnet18",
        "Student architecture: a torchvision name, timm:<name>, or module:factory.",
        panel="Models",
        common=True,
    )
    student_weights: str = option(
        "none", "Weights the student starts from: none, imagenet, or a file.", panel="Models", common=True
    )


class DistillationOptions(Options):
    """From whom and how the student learns."""

    teacher: Names = option(
        ("auto",),
        "auto (the champion for this data, else trained now), models:/NAME@ALIAS, a run id, a pulled "
        "folder, a weights file, or an architecture; several with commas between, where the method takes them.",
        panel="Distillation",
        common=True,
        min_length=1,
    )
    require_strong_teacher: bool = option(
        False, "Refuse a teacher that is worse than the control on validation.", panel="Distillation"
    )


class MethodChoice(Options):
    """By which method, and its options."""

    method: str = option(
        "kd",
        "The distillation method; `kd-mlflow methods` lists them, and `kd-mlflow methods dkd` the options of one "
        "(--dkd-beta 2).",
        panel="Distillation",
        common=True,
    )
    temperature: float | None = option(
        None,
        "Temperature of the softened distributions; empty: the method's own (kd: 4).",
        panel="Distillation",
        common=True,
        gt=0,
    )
    alpha: float | None = option(
        None,
        "Weight of the distillation term, 1 - alpha on the cross-entropy; empty: the method's own (kd: 0.7).",
        panel="Distillation",
        common=True,
        ge=0,
        le=1,
    )
    method_options: dict[str, Any] = option(
        {}, "The method's own options: --METHOD-OPTION, listed by `kd-mlflow methods METHOD`.", panel=None
    )
    control: bool = option(True, "Also train, or reuse, the same student with labels only.", panel="Distillation")


class ComparisonOptions(Options):
    """What is compared."""

    data: Names = option(
        ("digits",), "Data as for distill; several repeat the comparison on each.", panel="Data", common=True
    )
    methods: Names = option(
        ("kd",),
        "Methods with commas between, or all; their options are --METHOD-OPTION (--dkd-beta 2).",
        panel="Distillation",
        common=True,
        min_length=1,
    )
    seeds: int = option(
        1, "How many seeds each method is trained with, from --seed on.", panel="Training", common=True, ge=1, le=1000
    )
    method_options: dict[str, dict[str, Any]] = option(
        {}, "Options of the methods by method: --METHOD-OPTION.", panel=None
    )


class PlaceOptions(Options):
    """Where the work is done and recorded."""

    experiment: str = option("", "MLflow experiment; empty: that of `mlflow run`, else kd-mlflow.", panel="Run")
    tracking_uri: str = option(
        "", "MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.", panel="Run"
    )
    device: str = option(
        "auto", "auto, cpu, cuda, cuda:N or mps.", panel="Run", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$"
    )


class RegistryOptions(Options):
    """What becomes of a trained model."""

    name: str = option(
        "",
        "Name in the registry (NAME-teacher, NAME-student); empty: taken from the data.",
        panel="Run",
        common=True,
        pattern=r"^[^/:@]*$",
    )
    register_model: bool = option(True, "Put the trained model into the registry.", panel="Run")


class ReuseOptions(Options):
    """What is taken over from earlier runs."""

    reuse: bool = option(True, "Reuse a finished run of the same fingerprint for teacher and control.", panel="Run")


class PrepareConfig(DataOptions):
    """Options of `prepare`."""


class TeacherConfig(
    DataOptions, AugmentationOptions, TrainingOptions, ModelOptions, TeacherOptions, RegistryOptions, PlaceOptions
):
    """Options of `teacher`."""


class StudentConfig(DataOptions, AugmentationOptions, TrainingOptions, ModelOptions, StudentOptions, PlaceOptions):
    """Options of `student`, which trains with labels only."""


class DistillConfig(
    DataOptions,
    AugmentationOptions,
    TrainingOptions,
    ModelOptions,
    TeacherOptions,
    StudentOptions,
    DistillationOptions,
    MethodChoice,
    ReuseOptions,
    RegistryOptions,
    PlaceOptions,
):
    """Options of `distill`."""


class CompareConfig(
    ComparisonOptions,
    ImageOptions,
    AugmentationOptions,
    TrainingOptions,
    ModelOptions,
    TeacherOptions,
    StudentOptions,
    DistillationOptions,
    ReuseOptions,
    PlaceOptions,
):
    """Options of `compare`."""

    def cell(self, data: str, method: str, seed: int) -> DistillConfig:
        """What `distill` would be asked for to train one cell."""
        shared = {name: getattr(self, name) for name in DistillConfig.model_fields if hasattr(self, name)}
        own = {"data": data, "method": method, "seed": seed, "method_options": self.method_options.get(method, {})}
        return DistillConfig(**{**shared, **own, "register_model": False})


class EvaluateConfig(DataOptions, PlaceOptions):
    """Options of `evaluate`."""

    image_size: int | None = option(
        None, "Side of the square in pixels; empty: what the model was trained at.", panel="Data", ge=16, le=1024
    )
    model: str = option(
        "", "What to evaluate: models:/NAME@ALIAS, a run id, or a pulled folder.", panel="Models", common=True
    )
    split: Literal["val", "test"] = option("test", "The split to measure on.", panel="Data", common=True)
    batch_size: int = option(64, "Images a batch.", panel="Run", ge=1)


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
    gradient_clip: float
    patience: int
    ema: float
    precision: Literal["float32", "bfloat16"]
    seed: int
    method: str = "labels"
    method_options: dict[str, Any] = Field(default_factory=dict)


def recipe(
    config: TrainingOptions,
    role: Role,
    precision: Literal["float32", "bfloat16"],
    method_options: dict[str, Any] | None = None,
) -> Recipe:
    """The recipe of one role out of a command's options.

    Parameters
    ----------
    precision:
        What the device resolved to.
    method_options:
        For a student, all options of its method.
    """
    values = {name: getattr(config, name) for name in Recipe.model_fields if hasattr(config, name)}
    values |= {"role": role, "precision": precision, "method": "labels", "method_options": {}}
    if role == "teacher":
        values |= {"architecture": config.teacher_arch, "weights": config.teacher_weights}
        for name in ("epochs", "learning_rate", "weight_decay"):
            own = getattr(config, f"teacher_{name}")
            values[name] = getattr(config, name) if own is None else own
    else:
        values |= {"architecture": config.student, "weights": config.student_weights}
    if role == "student":
        values |= {"method": config.method, "method_options": method_options or {}}
    return Recipe(**values)


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def resolve(
    model: type[Options], given: dict[str, Any], preset: str | None = None, file: Path | None = None
) -> Options:
    """Defaults, then the preset, then the file, then what was given, validated.

    Without a preset, ``quick`` is used to prepare and train on the built-in digits. A key that
    belongs to another command is passed over (one preset serves all); one that no command knows is an error.

    Raises
    ------
    InputError
        An unknown preset or key, a file that is not a mapping, or a value out of its bounds.
    """
    from_file = _read_yaml(file) if file else {}
    trains = model is not EvaluateConfig
    data = given.get("data", from_file.get("data", "digits"))
    if preset is None and trains and data in ("digits", ("digits",), ["digits"]):
        preset = "quick"
    from_preset = _read_yaml(_preset_path(preset)) if preset else {}
    known = {name for command in COMMANDS.values() for name in command.model_fields}
    for name in {**from_preset, **from_file}:
        if name not in known:
            raise InputError(f"'{name}' in {file or preset} is not an option of any command.")
    merged = {name: value for name, value in {**from_preset, **from_file}.items() if name in model.model_fields}
    if given.get("method", merged.get("method", "kd")) != merged.get("method", "kd"):
        # What a preset or a file says of one method is nothing to another.
        for name in ("temperature", "alpha", "method_options"):
            merged.pop(name, None)
    try:
        return model(**{**merged, **given})
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


COMMANDS: dict[str, type[Options]] = {
    "prepare": PrepareConfig,
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "distill": DistillConfig,
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
}


def to_yaml(config: Options) -> str:
    """The resolved options as YAML that ``--config`` reads back.

    Without the tracking URI: it says where, not what, and may hold a password.
    """
    values = config.model_dump(mode="json", exclude={"tracking_uri"})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _preset_path(name: str) -> Path:
    if name not in preset_names():
        raise InputError(f"There is no preset '{name}'; choose one of {', '.join(preset_names())}.")
    return PRESETS / f"{name}.yaml"


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the configuration {path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold option names with values, one a line.")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        parts.append(f"--{name}: {item['msg']} (got {item['input']!r})")
    return "; ".join(parts) + "."
