"""One objective of a study as its figures see it: scales, trials, labels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import optuna
import plotly.graph_objects as go
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from kd_mlflow.search.ledger import is_feasible

DPI, WIDTH, HEIGHT = 110, 9.0, 5.0

CONTOUR_PARAMETERS, GRID = 3, 72


LABEL_LENGTH = 16


BLUE, ORANGE, FAINT = "#1b7abf", "#d95f0e", "#b5b5b5"


@dataclass(frozen=True)
class StudyFigures:
    """Pictures by file stem, the interactive page, and for each figure that is not there the reason."""

    pngs: dict[str, bytes]
    page: str
    missing: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """One figure: its two drawings, or in a sentence why there is none."""

    name: str
    title: str
    lacks: str
    still: Callable[[], Figure]
    interactive: Callable[[], go.Figure]


@dataclass(frozen=True)
class Scale:
    """The axis of a parameter: numbers, or the places of its choices."""

    name: str
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class View:
    """One objective of a study: the complete trials in which it is a finite number, the oldest first."""

    study: optuna.Study
    name: str
    place: int
    trials: tuple[FrozenTrial, ...]

    @property
    def maximise(self) -> bool:
        return self.study.directions[self.place] == StudyDirection.MAXIMIZE

    @property
    def colours(self) -> str:
        """The colour map in which better is darker."""
        return "viridis_r" if self.maximise else "viridis"

    @cached_property
    def with_parameters(self) -> tuple[FrozenTrial, ...]:
        """A trial at values from outside the space has none."""
        return tuple(trial for trial in self.trials if trial.params)

    @cached_property
    def scales(self) -> dict[str, Scale]:
        found = {name: one for trial in self.trials for name, one in trial.distributions.items()}
        return {name: _scale(name, found[name]) for name in sorted(found)}

    @cached_property
    def shared(self) -> list[str]:
        """The parameters of every trial that has any."""
        return [name for name in self.scales if all(name in trial.params for trial in self.with_parameters)]

    @cached_property
    def importances(self) -> dict[str, float]:
        """Shares of the explained variation, the largest first (fANOVA; Hutter et al., 2014); empty if unknown."""
        evaluator, target = FanovaImportanceEvaluator(seed=0), self.value
        try:
            found = get_param_importances(self.study, evaluator=evaluator, params=self.shared, target=target)
        except (RuntimeError, ValueError):
            return {}
        return found if all(math.isfinite(share) for share in found.values()) else {}

    @cached_property
    def best(self) -> FrozenTrial | None:
        feasible = [trial for trial in self.trials if is_feasible(trial)]
        return (max if self.maximise else min)(feasible, key=self.value, default=None)

    def value(self, trial: FrozenTrial) -> float:
        return trial.values[self.place]

    def place_of(self, name: str, trial: FrozenTrial) -> float:
        """The parameter's value in the trial as a number; that of a choice is its place."""
        known = trial.params[name]
        return trial.distributions[name].to_internal_repr(known) if self.scales[name].choices else float(known)


def too_few(view: View, trials: int, parameters: int = 0) -> str:
    there = len(view.with_parameters if parameters else view.trials)
    for needed, found, what in ((trials, there, "complete trial"), (parameters, len(view.scales), "parameter")):
        if found < needed:
            lacking = f"{what}{'s' if needed > 1 else ''}"
            return f"It needs at least {needed} {lacking}; there {'is' if found == 1 else 'are'} {found or 'none'}."
    return ""


def steps_of(trial: FrozenTrial) -> tuple[list[int], list[float]]:
    known = sorted((step, value) for step, value in trial.intermediate_values.items() if math.isfinite(value))
    return [step for step, _ in known], [value for _, value in known]


def _scale(name: str, distribution: optuna.distributions.BaseDistribution) -> Scale:
    if isinstance(distribution, CategoricalDistribution):
        return Scale(name, choices=tuple(str(choice) for choice in distribution.choices))
    return Scale(name, distribution.log, isinstance(distribution, IntDistribution))


def numbers_of(trials: Sequence[FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def percent(share: float) -> str:
    return f"{share:.2f}" if share >= 0.005 else "<0.01"


def wrapped(name: str, width: int = LABEL_LENGTH) -> str:
    """A long name over several lines, broken after its slashes and underscores."""
    lines = [""]
    for part in re.findall(r"[^/_-]+[/_-]?|[/_-]", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return plain_text("\n".join(lines))


def plain_text(text: str) -> str:
    """No formulas in names."""
    return text.replace("$", r"\$")
