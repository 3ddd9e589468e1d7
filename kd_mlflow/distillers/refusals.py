"""Which methods are left when a network lacks a tap."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

from kd_mlflow.distillers.names import CONTROL, METHODS
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.models.taps import TapRefused


def methods_without(taps: Set[str]) -> list[str]:
    """The methods of this package that look at none of these taps, in alphabetical order."""
    return sorted(name for name in METHODS if name != CONTROL and not taps & _looked_at(name))


@contextmanager
def naming_methods() -> Iterator[None]:
    """Have the refusal of a tap say which methods the network can be used with.

    Raises
    ------
    TapRefused
        As it came, with the methods named.
    """
    try:
        yield
    except TapRefused as refusal:
        names = ", ".join(methods_without(refusal.taps))
        remedy = f"choose another architecture, or a method that does without: {names}"
        raise TapRefused(refusal.architecture, refusal.taps, refusal.reason, remedy) from refusal


def _looked_at(method: str) -> frozenset[str]:
    kind = method_class(method)
    return kind.needs | (kind.teacher_needs or frozenset()) | kind.built_on
