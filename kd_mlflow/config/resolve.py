"""From presets, YAML files and what a person gave to a command's options, and back to YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kd_mlflow.config.commands import COMMANDS, DistillConfig, EvaluateConfig
from kd_mlflow.config.fields import Options
from kd_mlflow.config.files import read_mapping
from kd_mlflow.errors import InputError

SHOWN = 100
OF_A_METHOD = ("temperature", "alpha", "method_options")
PRESETS = Path(__file__).parents[1] / "presets"


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def resolve(
    model: type[Options], given: dict[str, Any], preset: str | None = None, file: Path | None = None
) -> Options:
    """Defaults, then the preset, then the file, then what was given, validated.

    Without a preset, ``quick`` is used to prepare and train on the built-in digits, and ``demo`` to distill on
    them where neither a file nor a method is given. A key that belongs to another command is passed over (one
    preset serves all); one that no command knows is an error.

    Raises
    ------
    InputError
        An unknown preset or key, a file that is not a mapping, or a value out of its bounds.
    """
    from_file = _read_yaml(file) if file else {}
    trains = model is not EvaluateConfig
    data = given.get("data", from_file.get("data", "digits"))
    if preset is None and trains and data in ("digits", ("digits",), ["digits"]):
        untold = model is DistillConfig and file is None and not {"method", "label_share"} & given.keys()
        preset = "demo" if untold else "quick"
    from_preset = _read_yaml(_preset_path(preset)) if preset else {}
    known = {name for command in COMMANDS.values() for name in command.model_fields}
    for name in {**from_preset, **from_file}:
        if name not in known:
            raise InputError(f"{name!r} in {str(file or preset)!r} is not an option of any command.")
    merged = _over(_over(from_preset, from_file), {name: given[name] for name in ("method",) if name in given})
    if "methods" in model.model_fields and "methods" not in from_file:
        merged["method_options"] = _by_method(merged)
    merged = {name: value for name, value in merged.items() if name in model.model_fields}
    try:
        return model(**{**merged, **given})
    except ValidationError as error:
        raise InputError(_sentence(error)) from None


def _over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """The upper layer's values before the lower's; what is said of one method is nothing to another."""
    if upper.get("method", lower.get("method", "kd")) != lower.get("method", "kd"):
        lower = {name: value for name, value in lower.items() if name not in OF_A_METHOD}
    return {**lower, **upper}


def _by_method(merged: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a preset or a file of `distill` says of its one method, as `compare` takes it."""
    own = {name: merged[name] for name in ("temperature", "alpha") if merged.get(name) is not None}
    more, method = merged.get("method_options") or {}, merged.get("method", "kd")
    if not (isinstance(more, dict) and isinstance(method, str)):
        raise InputError("--method must be a name, and method-options must hold option names with values.")
    own = {**own, **more}
    return {method: own} if own else {}


def to_yaml(config: Options) -> str:
    """The resolved options as YAML that ``--config`` reads back.

    Without the places: they say where, not what, and may hold passwords.
    """
    values = config.recorded()
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # PyYAML writes these as they are and reads them as line breaks.
    as_it_is = not any(mark in text for mark in "\x85\u2028\u2029")
    return text if as_it_is else yaml.safe_dump(values, sort_keys=False)


def _preset_path(name: str) -> Path:
    if name not in preset_names():
        raise InputError(f"There is no preset '{name}'; choose one of {', '.join(preset_names())}.")
    return PRESETS / f"{name}.yaml"


def _read_yaml(path: Path) -> dict[str, Any]:
    return {name.replace("-", "_"): value for name, value in read_mapping(path, "configuration").items()}


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"]).replace("_", "-")
        got = repr(item["input"])
        parts.append(f"--{name}: {item['msg']} (got {got if len(got) <= SHOWN else got[:SHOWN] + '…'})")
    return " ".join("; ".join(parts).split()) + "."
