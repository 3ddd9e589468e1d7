"""Methods by name: their classes, their options, and what they say of themselves."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from kd_mlflow.config import preset_names
from kd_mlflow.distillers.base import Context, Distiller
from kd_mlflow.distillers.names import METHODS, foreign, method_names
from kd_mlflow.distillers.options import MethodOptions, SoftTargetOptions
from kd_mlflow.errors import InputError


def method_class(method: str) -> type[Distiller]:
    """The class of a method.

    Raises
    ------
    InputError
        There is no such method, or another package's cannot be imported.
    """
    if method in METHODS:
        module, _, name = METHODS[method].partition(":")
        return getattr(importlib.import_module(f"kd_mlflow.distillers.{module}"), name)
    if method not in foreign():
        hint = f" There is a preset of that name: --preset {method}." if method in preset_names() else ""
        raise InputError(f"There is no method '{method}'; choose one of {', '.join(method_names())}.{hint}")
    point = foreign()[method]
    try:
        found = point.load()
    except Exception as error:
        raise InputError(f"The method '{method}' ({point.value}) cannot be imported: {error}.") from error
    if not (inspect.isclass(found) and issubclass(found, Distiller)):
        raise InputError(f"The method '{method}' ({point.value}) is no kd_mlflow.distillers.base.Distiller.")
    return found


def method_options(
    method: str, given: Mapping[str, Any], *, temperature: float | None = None, alpha: float | None = None
) -> MethodOptions:
    """A method's options: its defaults, then the common ``--temperature`` and ``--alpha``, then its own.

    Raises
    ------
    InputError
        An option that the method does not have, or a value out of its bounds.
    """
    model = method_class(method).Options
    values = dict(given)
    for name, value in (("temperature", temperature), ("alpha", alpha)):
        if value is not None and not takes_common(method, name):
            own = f" beside its own --{method}-{name}" if name in model.model_fields else ""
            raise InputError(
                f"The method '{method}' has no common --{name}{own}; `kd-mlflow methods {method}` lists its options."
            )
        if value is not None:
            values.setdefault(name, value)
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(_sentence(method, error)) from None


def takes_common(method: str, name: str) -> bool:
    """Whether ``--temperature`` or ``--alpha`` means something to a method.

    ``--alpha`` is the weight of the distillation term against that of the labels, and nothing else that
    a paper may have called alpha.
    """
    model = method_class(method).Options
    return issubclass(model, SoftTargetOptions) or (name == "temperature" and name in model.model_fields)


def create(method: str, context: Context, options: Mapping[str, Any]) -> Distiller:
    """Build a method by its name; its own fresh parameters depend on ``context.seed`` alone.

    Raises
    ------
    InputError
        As :func:`method_class` and :func:`method_options`, or the networks cannot do what the method needs.
    """
    kind, chosen = method_class(method), method_options(method, options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.seed)
        return kind(context, chosen)


def _sentence(method: str, error: ValidationError) -> str:
    parts = []
    for item in error.errors():
        flag = f"--{method}-{'.'.join(str(part) for part in item['loc']).replace('_', '-')}"
        if item["type"] == "extra_forbidden":
            parts.append(f"The method '{method}' has no option {flag}; `kd-mlflow methods {method}` lists them")
        else:
            parts.append(f"{flag}: {item['msg']} (got {item['input']!r})")
    return "; ".join(parts) + "."
