"""From the fields of the models in config to click options: the one mechanism, for every command."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import rich_click as click
from pydantic.fields import FieldInfo

from kd_mlflow.config import COMMANDS, Options, preset_names, resolve
from kd_mlflow.distillers.names import method_names
from kd_mlflow.errors import InputError

PANELS = ["Options", "Search", "Data", "Models", "Distillation", "Training", "Speed", "Augmentation", "Run"]


@lru_cache
def model_options(command: str) -> tuple[click.Option, ...]:
    """``--preset``, ``--config`` and an option for every field of the command's model."""
    fields = {name: f for name, f in COMMANDS[command].model_fields.items() if f.json_schema_extra["panel"]}
    made = [option for name, field in fields.items() for option in _click_options(name, field)]
    return (*_preset_options(), *sorted(made, key=lambda option: PANELS.index(option.panel)))


def _preset_options() -> list[click.Option]:
    return [
        click.RichOption(
            ["--preset"],
            type=_Known(preset_names()),
            callback=_empty_is_none,
            panel="Options",
            help="A set of options that comes with the package.",
        ),
        click.RichOption(
            ["--config", "config_file"],
            type=str,
            callback=_empty_is_none,
            panel="Options",
            help="A YAML file of options, such as a run's config.yaml.",
        ),
    ]


def split_method_options(
    arguments: Sequence[str], own_flags: Collection[str]
) -> tuple[list[str], dict[str, dict[str, str]]]:
    """Take ``--METHOD-OPTION VALUE`` out of a command line: what is left, and the options by method.

    A flag without a value is true; one with an empty value was not given. ``own_flags`` are the
    command's.
    """
    rest: list[str] = []
    found: dict[str, dict[str, str]] = {}
    todo = list(arguments)
    while todo:
        argument = todo.pop(0)
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        prefix = _method_of(flag) if flag not in own_flags else None
        if argument == "--":
            return [*rest, argument, *todo], found
        if prefix is None:
            rest.append(argument)
            continue
        if not equals:
            value = todo.pop(0) if todo and not todo[0].startswith("--") else "true"
        if value != "":
            found.setdefault(prefix, {})[flag.removeprefix(f"--{prefix}-").replace("-", "_")] = value
    return rest, found


def _method_of(flag: str) -> str | None:
    """The method whose option this flag looks like; the longest name wins."""
    return max((name for name in method_names() if flag.startswith(f"--{name}-")), key=len, default=None)


def with_method_options(config: Options, found: dict[str, dict[str, str]]) -> Options:
    """The configuration with the methods' options of the command line.

    Raises
    ------
    InputError
        They are those of a method that was not asked for.
    """
    if not found:
        return config
    several = hasattr(config, "methods")
    asked = config.methods if several else (config.method,)
    for method in found.keys() - set(asked) if "all" not in asked else ():
        flag = f"--{method}-{next(iter(found[method])).replace('_', '-')}"
        raise InputError(f"{flag} is an option of the method '{method}', but asked for is {', '.join(asked)}.")
    if several:
        known = config.method_options
        merged = known | {method: {**known.get(method, {}), **given} for method, given in found.items()}
    else:
        merged = {**config.method_options, **found[config.method]}
    return config.model_copy(update={"method_options": merged})


def config_from(command: str, values: dict[str, Any], file: Path | None = None) -> Options:
    """The resolved model of a command from what click parsed; options not given are left to the model."""
    model = COMMANDS[command]
    given = {}
    for name in model.model_fields:
        if values.get(name) is not None:
            given[name] = values[name]
        if values.get(f"no_{name}") is not None:
            given[name] = not values[f"no_{name}"]
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if "devices" in model.model_fields and started > 1:
        given.setdefault("devices", started)
    chosen = Path(values["config_file"]) if values.get("config_file") else file
    return resolve(model, given, values.get("preset"), chosen)


def _click_options(name: str, field: FieldInfo) -> list[click.Option]:
    flag, kind, panel = "--" + name.replace("_", "-"), _plain_type(field.annotation), field.json_schema_extra["panel"]
    shown = _shown_default(field.default)
    text = f"{field.description} [default: {shown}]" if shown else field.description
    if kind == tuple[str, ...]:
        several = {"multiple": True, "callback": _joined(field), "metavar": "TEXT"}
        return [click.RichOption([flag, name], type=click.STRING, help=text, panel=panel, **several)]
    if kind is not bool:
        return [click.RichOption([flag, name], type=_click_type(kind), callback=_empty_is_none, help=text, panel=panel)]
    truth = {"type": _Truth(), "is_flag": False, "flag_value": "true", "callback": _empty_is_none, "metavar": "[BOOL]"}
    return [
        click.RichOption([flag, name], help=text, panel=panel, **truth),
        click.RichOption([f"--no-{flag[2:]}", f"no_{name}"], hidden=True, panel=panel, **truth),
    ]


def _shown_default(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)


def _plain_type(annotation: Any) -> Any:
    """The type without its None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(part for part in get_args(annotation) if part is not type(None))
    return annotation


def _click_type(kind: Any) -> click.ParamType:
    if get_origin(kind) is Literal:
        return _Known([str(value) for value in get_args(kind)])
    if get_origin(kind) is tuple:
        return _Integers() if get_args(kind)[0] is int else click.STRING
    return {int: _Number(click.INT), float: _Number(click.FLOAT)}.get(kind, click.STRING)


def _empty_is_none(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """MLproject hands over an empty string for what was not given."""
    return None if value == "" else value


def _joined(field: FieldInfo) -> Callable[..., str | None]:
    """An option given several times is one list."""
    separator = field.json_schema_extra["separator"]

    def join(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
        return separator.join(value for value in values if value) or None

    return join


class _Known(click.Choice):
    """A choice that lets the empty string pass."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "" else super().convert(value, param, ctx)


class _Number(click.ParamType):
    """A number, or the empty string."""

    def __init__(self, inner: click.ParamType) -> None:
        self.inner = inner
        self.name = inner.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "" else self.inner.convert(value, param, ctx)


class _Truth(click.ParamType):
    """true or false, or the empty string."""

    name = "boolean"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "" else click.BOOL.convert(value, param, ctx)


class _Integers(click.ParamType):
    """Whole numbers with commas between."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "" or isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers such as 30,60,80.", param, ctx)
