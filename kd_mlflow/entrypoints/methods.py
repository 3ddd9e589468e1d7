"""`methods`: what each distillation method is, how sure its reading is, and what can be set."""

from __future__ import annotations

from typing import Any

from kd_mlflow.distillers.describe import describe
from kd_mlflow.distillers.names import method_names


def list_methods(name: str | None = None) -> list[dict[str, Any]]:
    """Every method, or the one of this name; see :func:`kd_mlflow.distillers.describe.describe`.

    Raises
    ------
    InputError
        There is no such method.
    """
    return [describe(one) for one in ([name] if name else method_names())]
