"""How a space is written: terms on the command line, or a file; and what may stand in them."""

from __future__ import annotations

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from kd_mlflow.config import DistillConfig, SearchConfig, read_mapping
from kd_mlflow.distillers.names import method_names
from kd_mlflow.distillers.registry import method_class, method_options, takes_common
from kd_mlflow.errors import InputError
from kd_mlflow.search.space import COMMON, GRID_POINTS, MAX_POINTS, Parameter, Space

DEFAULT = ("temperature=1:20:log", "alpha=0:1", "learning_rate=1e-5:1e-1:log")
SEARCHED = (
    *("method", *COMMON, "learning_rate", "batch_size", "weight_decay", "optimizer", "momentum", "student"),
    *("schedule", "step_size", "gamma", "warmup_epochs", "label_smoothing", "class_weights", "gradient_clip", "ema"),
    *("trunk_factor", "dropout", "squeeze_excitation", "stem", "augmentation", "flip", "crop_min_scale"),
)


def resolve_space(config: SearchConfig) -> tuple[Space, SearchConfig]:
    """The space that was asked for, and the options with those filled in that were given one value.

    Raises
    ------
    InputError
        A name that cannot be searched, values out of bounds, or nothing left to search.
    """
    given = _from_file(Path(config.space)) if config.space else dict(map(_split, DEFAULT))
    asked = {_name(name): spec for name, spec in map(_split, config.search)}
    specs = {_name(name): spec for name, spec in given.items()} | asked
    methods = _methods(specs.get("method"), config)
    found, fixed = [], {}
    for name, spec in specs.items():
        if name in COMMON and not any(takes_common(method, name) for method in methods):
            if name in asked or config.space:
                raise InputError(f"--search {name}: none of the methods {', '.join(methods)} has a --{name}.")
            continue
        parameter = _parameter(name, spec, methods)
        for value in parameter.choices or (parameter.low, parameter.high):
            _check(parameter, value)
        if parameter.kind == "choice" and len(parameter.choices) == 1:
            fixed[name] = parameter.choices[0]
        else:
            found.append(parameter)
    if not found:
        raise InputError("Every parameter has one value only; give --search at least one range.")
    return Space(tuple(found)), _with_fixed(config, fixed)


def _split(term: str) -> tuple[str, str]:
    name, equals, spec = term.partition("=")
    if not equals or not spec or not term.isprintable():
        shown = term if term.isprintable() else repr(term)
        raise InputError(f"--search {shown}: write it as temperature=1:20:log, batch-size=32,64 or method=kd,dkd.")
    return name, spec


def _name(name: str) -> str:
    """An option's own name; that of a method's option keeps its dashes."""
    plain = name.replace("-", "_")
    return plain if plain in SearchConfig.model_fields else name.replace("_", "-")


def _from_file(path: Path) -> dict[str, Any]:
    content = read_mapping(path, "space")
    if not content:
        raise InputError(f"{path} must hold parameters with their ranges, one a line: temperature: [1, 2, 4].")
    if odd := next((name for name in content if not name.isprintable()), None):
        raise InputError(f"{odd!r} in {path} is no name of a parameter.")
    return content


def _methods(spec: Any, config: SearchConfig) -> tuple[str, ...]:
    if spec is None:
        return (config.method,)
    methods = _choices("method", spec)
    for method in methods:
        method_class(str(method))
    return tuple(map(str, methods))


def _parameter(name: str, spec: Any, methods: tuple[str, ...]) -> Parameter:
    kind, method = _kind_of(name, methods)
    if isinstance(spec, Mapping):
        return _from_mapping(name, dict(spec), kind, method)
    if isinstance(spec, str) and ":" in spec and kind in (int, float):
        return _from_range(name, spec, kind, method)
    values = tuple(_typed(name, value, kind) for value in _choices(name, spec))
    return Parameter(name, "choice", choices=tuple(dict.fromkeys(values)), method=method)


def _from_range(name: str, spec: str, kind: type, method: str) -> Parameter:
    low, high, *rest = spec.split(":")
    content: dict[str, Any] = {"low": low, "high": high}
    for part in rest:
        key, equals, value = part.partition("=")
        if part == "log":
            content["log"] = True
        elif equals and key in ("step", "points"):
            content[key] = value
        else:
            raise InputError(f"--search {name}: '{part}' is none of log, step=NUMBER, points=NUMBER.")
    return _from_mapping(name, content, kind, method)


def _from_mapping(name: str, content: dict[str, Any], kind: type, method: str) -> Parameter:
    if kind not in (int, float):
        raise InputError(f"{name} has no range; list its values: {name}=one,two.")
    unknown = content.keys() - {"low", "high", "log", "step", "points"}
    if unknown or not {"low", "high"} <= content.keys():
        said = f"'{sorted(map(str, unknown))[0]}' is unknown" if unknown else "low and high are needed"
        raise InputError(f"The range of {name}: {said}; it has low, high, and perhaps log, step, points.")
    low, high = (_typed(name, content[key], kind) for key in ("low", "high"))
    step = content.get("step")
    step = None if step is None else _typed(name, step, kind)
    log, points = _typed(name, content.get("log", False), bool), _typed(name, content.get("points", GRID_POINTS), int)
    if not low < high:
        raise InputError(f"The range of {name} must go up: {low:g} is not below {high:g}.")
    if log and low <= 0:
        raise InputError(f"The range of {name} is logarithmic and cannot begin at {low:g}.")
    if step is not None and (log or step <= 0 or points < 1):
        raise InputError(f"The range of {name}: a step must be above 0 and does not go with log.")
    if max(points, (high - low) / step if step else 0) > MAX_POINTS:
        raise InputError(f"The range of {name} has more than {MAX_POINTS} points; take a larger step.")
    return Parameter(name, kind.__name__, low, high, log, step, points=max(points, 1), method=method)


def _choices(name: str, spec: Any) -> tuple[Any, ...]:
    values = spec.split(",") if isinstance(spec, str) else spec if isinstance(spec, list | tuple) else [spec]
    values = [value for value in values if value != ""]
    if not values:
        raise InputError(f"The parameter {name} has no values.")
    return tuple(values)


def _kind_of(name: str, methods: tuple[str, ...]) -> tuple[type, str]:
    """The type of a parameter's values, and the method it belongs to."""
    if name in SEARCHED:
        return _plain(DistillConfig.model_fields[name].annotation), ""
    owner = max((one for one in method_names() if name.startswith(f"{one}-")), key=len, default="")
    fields = method_class(owner).Options.model_fields if owner else {}
    own = name.removeprefix(f"{owner}-").replace("-", "_")
    if own not in fields:
        raise InputError(f"'{name}' cannot be searched; choose of {', '.join(SEARCHED)}, or a METHOD-OPTION.")
    if owner not in methods:
        raise InputError(f"{name} is an option of '{owner}', but the methods searched are {', '.join(methods)}.")
    return _plain(fields[own].annotation), owner


def _plain(annotation: Any) -> type:
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation if annotation in (int, float, bool) else str


def _typed(name: str, value: Any, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        number = kind(value)
        if kind in (int, float) and (number != float(value) or abs(float(value)) == float("inf")):
            raise ValueError
        return number
    except (ValueError, TypeError, KeyError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a name")
        raise InputError(f"--search {name}: {value!r} is not {wanted}.") from None


def _check(parameter: Parameter, value: Any) -> None:
    """Whether the option itself would take the value."""
    if parameter.method:
        own = parameter.name.removeprefix(f"{parameter.method}-").replace("-", "_")
        method_options(parameter.method, {own: value})
        return
    try:
        DistillConfig(**{parameter.name: value})
    except ValidationError as error:
        raise InputError(f"--search {parameter.name}: {error.errors()[0]['msg']} (got {value!r}).") from None


def _with_fixed(config: SearchConfig, fixed: dict[str, Any]) -> SearchConfig:
    plain = {name: value for name, value in fixed.items() if name in SEARCHED}
    own = {name: value for name, value in fixed.items() if name not in SEARCHED}
    options = dict(config.method_options)
    for name, value in own.items():
        method = max((one for one in method_names() if name.startswith(f"{one}-")), key=len)
        if method != plain.get("method", config.method):
            raise InputError(f"{name} has one value and belongs to one of several methods; give it a range.")
        options[name.removeprefix(f"{method}-").replace("-", "_")] = value
    return config.model_copy(update={**plain, "method_options": options})
