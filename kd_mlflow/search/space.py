"""The space that is searched: parameters, where to look for them, and which belong to one method alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import Trial

from kd_mlflow.config import SearchConfig
from kd_mlflow.distillers.registry import method_options, takes_common
from kd_mlflow.errors import InputError

# What the source report trained with: always the first trial.
REPORT = {"method": "kd", "temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3}
COMMON = ("temperature", "alpha")
GRID_POINTS = 5
# As many as a study may have trials.
MAX_POINTS = 100_000


@dataclass(frozen=True)
class Parameter:
    """One parameter and where to look for it.

    Attributes
    ----------
    name:
        An option's name, or ``METHOD-OPTION`` for a method's own.
    choices:
        The values of a parameter that has no range.
    points:
        How many points of a range a grid has.
    method:
        The method it belongs to; empty for a parameter of every training.
    """

    name: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    points: int = GRID_POINTS
    method: str = ""

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        if self.kind == "choice":
            return CategoricalDistribution(self.choices)
        if self.kind == "int":
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def holds(self, value: Any) -> bool:
        """Whether the value can be drawn."""
        if self.kind == "choice":
            return value in self.choices
        return not isinstance(value, str) and value is not None and self.distribution()._contains(float(value))

    def grid(self) -> list[Any]:
        """The values of a grid: every choice, or ``points`` values from low to high."""
        if self.kind == "choice":
            return list(self.choices)
        if self.step:
            count = int((self.high - self.low) / self.step + 1e-9) + 1
            return [self._typed(self.low + self.step * place) for place in range(count)]
        shares = [place / (self.points - 1) if self.points > 1 else 0.5 for place in range(self.points)]
        if self.log:
            values = [self.low * (self.high / self.low) ** share for share in shares]
        else:
            values = [self.low + (self.high - self.low) * share for share in shares]
        return sorted({self._typed(value) for value in values})

    def _typed(self, value: float) -> float | int:
        return round(value) if self.kind == "int" else float(f"{value:.12g}")

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.name}={','.join(map(str, self.choices))}"
        parts = [f"{self.low:g}", f"{self.high:g}", *(["log"] if self.log else [])]
        return f"{self.name}={':'.join([*parts, *([f'step={self.step:g}'] if self.step else [])])}"


@dataclass(frozen=True)
class Space:
    """All parameters that are searched; those of a method count only where that method is used."""

    parameters: tuple[Parameter, ...]

    @property
    def conditional(self) -> bool:
        """Whether some trials have parameters that others do not have."""
        methods = next((one.choices for one in self.parameters if one.name == "method"), ())
        return any(not applies(one, method) for one in self.parameters for method in methods if one.name != "method")

    def names(self, method: str) -> list[str]:
        """The parameters that a trial of this method has."""
        return [one.name for one in self.parameters if applies(one, method)]

    def suggest(self, trial: Trial, method: str) -> dict[str, Any]:
        """Values for a trial; ``method`` is used where the method is not searched."""
        values: dict[str, Any] = {}
        for one in sorted(self.parameters, key=lambda one: one.name != "method"):
            if applies(one, values.get("method", method)):
                values[one.name] = trial._suggest(one.name, one.distribution())
        return values

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether these values are a point of the space."""
        return not self.outside(values)

    def outside(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of these values that the space does not have."""
        own = {one.name: one for one in self.parameters}
        return {name: value for name, value in values.items() if name in own and not own[name].holds(value)}

    def grid(self, method: str) -> list[dict[str, Any]]:
        """Every point of the grid, each once.

        Raises
        ------
        InputError
            There are more than a study may have trials.
        """
        if self._grid_size(method) > MAX_POINTS:
            raise InputError(f"The grid has more than {MAX_POINTS} points; give fewer with points= or step=.")
        methods = next((one.grid() for one in self.parameters if one.name == "method"), [None])
        points = []
        for chosen in methods:
            own = [one for one in self.parameters if one.name != "method" and applies(one, chosen or method)]
            head = {} if chosen is None else {"method": chosen}
            points += [
                head | dict(zip([one.name for one in own], values, strict=True))
                for values in product(*[one.grid() for one in own])
            ]
        return points

    def _grid_size(self, method: str) -> int:
        """How many points the grid has, no parameter counted that belongs to another method."""
        methods = next((one.choices for one in self.parameters if one.name == "method"), (method,))
        return sum(
            math.prod(len(one.grid()) for one in self.parameters if one.name != "method" and applies(one, chosen))
            for chosen in methods
        )

    def to_json(self) -> list[dict[str, Any]]:
        """Plain types."""
        return [asdict(one) | {"choices": list(one.choices)} for one in self.parameters]

    @classmethod
    def from_json(cls, items: Iterable[Mapping[str, Any]]) -> Space:
        """What :meth:`to_json` gave."""
        return cls(tuple(Parameter(**{**item, "choices": tuple(item["choices"])}) for item in items))


def report_values(space: Space, config: SearchConfig) -> dict[str, Any]:
    """The source report's own values for what is searched; the options' values for what it does not name."""
    searched = {one.name: one for one in space.parameters}
    method = REPORT["method"] if "method" in searched else config.method
    values = {}
    for name in space.names(method):
        if name in REPORT:
            values[name] = REPORT[name]
        elif searched[name].method:
            own = name.removeprefix(f"{method}-").replace("-", "_")
            values[name] = getattr(method_options(method, config.method_options), own)
        else:
            values[name] = getattr(config, name)
    return values


def applies(parameter: Parameter, method: str) -> bool:
    """Whether trials of the method have the parameter."""
    if parameter.name in COMMON:
        return takes_common(method, parameter.name)
    return parameter.method in ("", method)
