"""What a search looks for: objectives with their directions, and constraints."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kd_mlflow.errors import InputError

SMALLER_IS_BETTER = re.compile(
    r"loss|likelihood|calibration|_kl$|latency|seconds|_mib$|parameters|flops|buffers|joules|power|spread"
)
CONSTRAINT = re.compile(r"(?P<name>[\w/.-]+)(?P<sign><=|>=|<|>)(?P<bound>[-+.\deE]+)")


@dataclass(frozen=True)
class Objective:
    """A metric and whether it shall become large or small."""

    name: str
    direction: str

    @property
    def measured_every_epoch(self) -> bool:
        """Whether a trial can be judged by it before its end."""
        return self.name in EVERY_EPOCH


@dataclass(frozen=True)
class Constraint:
    """A metric that has to stay below (or above) a bound."""

    name: str
    below: bool
    bound: float

    def excess(self, value: float) -> float:
        """How far the value is on the wrong side; zero or less where it is kept."""
        return value - self.bound if self.below else self.bound - value

    def __str__(self) -> str:
        return f"{self.name}{'<' if self.below else '>'}{self.bound:g}"


EVERY_EPOCH = ("val/accuracy", "val/macro_f1", "val/loss")


def parse_objectives(asked: Sequence[str], known: Collection[str]) -> tuple[Objective, ...]:
    """The objectives of ``--objectives``.

    Raises
    ------
    InputError
        An unknown metric, one of the test split, or one named twice.
    """
    found = []
    for text in asked:
        name, _, direction = text.partition(":")
        _check_name(name, known, "--objectives")
        if direction not in ("", "min", "max"):
            raise InputError(f"--objectives {text}: after the colon stands min or max.")
        plain = "min" if SMALLER_IS_BETTER.search(name) else "max"
        found.append(Objective(name, {"min": "minimize", "max": "maximize"}[direction or plain]))
    if len({one.name for one in found}) < len(found):
        raise InputError("--objectives names a metric twice.")
    return tuple(found)


def parse_constraints(asked: Sequence[str], known: Collection[str]) -> tuple[Constraint, ...]:
    """The constraints of ``--constraint``; raises as :func:`parse_objectives`."""
    found = []
    for text in asked:
        match = CONSTRAINT.fullmatch(text)
        try:
            bound = float(match["bound"]) if match else None
        except ValueError:
            bound = None
        if bound is None:
            raise InputError(f"--constraint {text}: write it as efficiency/latency_ms_b1_median<5.")
        _check_name(match["name"], known, "--constraint")
        found.append(Constraint(match["name"], match["sign"].startswith("<"), bound))
    return tuple(found)


def _check_name(name: str, known: Collection[str], flag: str) -> None:
    if name.startswith("test/"):
        raise InputError(f"{flag} {name}: nothing is chosen by the test split; use val/{name.removeprefix('test/')}.")
    if name not in known:
        raise InputError(f"{flag} {name}: there is no such metric; choose of {', '.join(sorted(known))}.")
