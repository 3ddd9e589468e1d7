"""Methods by name."""

from __future__ import annotations

import importlib
from typing import Any

from kd_mlflow.distillers.base import Context, Distiller
from kd_mlflow.errors import InputError

METHODS = {
    "labels": "kd_mlflow.distillers.labels:Labels",
    "kd": "kd_mlflow.distillers.kd:KD",
}


def method_class(method: str) -> type[Distiller]:
    """The class of a method.

    Raises
    ------
    InputError
        There is no such method.
    """
    if method not in METHODS:
        raise InputError(f"There is no method '{method}'; choose one of {', '.join(sorted(METHODS))}.")
    module, _, name = METHODS[method].partition(":")
    return getattr(importlib.import_module(module), name)


def create(method: str, context: Context, options: dict[str, Any]) -> Distiller:
    """Build a method by its name; raises as :func:`method_class`."""
    return method_class(method)(context, **options)
