"""The recipe of a distilled student, with every option of its method."""

from __future__ import annotations

from kd_mlflow.config import DistillConfig, Recipe, recipe
from kd_mlflow.distillers.registry import method_options, takes_common
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.models.inference import resolve_backend

WARM_UPS = ("warmup_epochs", "ramp_epochs", "adversarial_start")


def with_resolved_method(config: DistillConfig) -> DistillConfig:
    """The same with every option of the method filled in, as it is recorded and fingerprinted.

    Raises
    ------
    InputError
        There is no such method, or it has no such option.
    """
    values = _options(config)
    names = ("temperature", "alpha")
    common = {name: values.pop(name) if takes_common(config.method, name) else None for name in names}
    return config.model_copy(update={**common, "method_options": values})


def student_recipe(config: DistillConfig, session: Session) -> Recipe:
    """The recipe of the student on the session's device; raises as :func:`with_resolved_method`."""
    backend = resolve_backend(config.teacher_backend, session.device, session.precision)
    return recipe(config, "student", session.precision, _options(config), backend)


def warm_up_notes(config: DistillConfig) -> list[str]:
    """What is said of a method whose terms reach their full weight late, or never, in so few epochs."""
    values = _options(config)
    if "host" in values and values["host"] != "dkd":
        values.pop("warmup_epochs", None)
    return [
        f"{config.method}: its term reaches full weight after {values[name]} of {config.epochs} epochs; "
        f"set --{config.method}-{name.replace('_', '-')} lower for so short a schedule."
        for name in WARM_UPS
        if values.get(name, 0) > config.epochs / 2
    ]


def _options(config: DistillConfig) -> dict:
    chosen = method_options(config.method, config.method_options, temperature=config.temperature, alpha=config.alpha)
    return chosen.model_dump(mode="json")
