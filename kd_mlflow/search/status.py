"""How far a study is: for the terminal, for `--status`, and for whoever reads the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from kd_mlflow.search.ledger import is_feasible, slot_of
from kd_mlflow.search.objectives import Objective
from kd_mlflow.search.study import STOP, SearchStudy


@dataclass(frozen=True)
class Status:
    """A study at one moment.

    Attributes
    ----------
    state:
        running, stopped, paused (nobody is at it) or finished.
    best:
        The best trial, or for several objectives the first of the Pareto set; None before there is one.
    seconds_left:
        An estimate from the trials so far; None while nothing is known.
    """

    study: str
    state: str
    trials: dict[str, int]
    best: dict[str, Any] | None
    running: list[dict[str, Any]]
    last: list[dict[str, Any]]
    seconds_left: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def status(study: SearchStudy, last: int = 5) -> Status:
    """The study as it stands."""
    ledger = study.ledger()
    # Fewer may be asked for than there are.
    total = max(study.total, len(ledger.finished))
    counts = {
        "total": total,
        "finished": len(ledger.finished),
        "complete": len(ledger.complete),
        "pruned": len(ledger.pruned),
        "failed": len(ledger.failed),
        "abandoned": len(ledger.abandoned),
        "running": len(ledger.running),
        "waiting": len(ledger.waiting),
    }
    best = best_trials(study)
    newest = sorted(ledger.finished, key=lambda trial: trial.datetime_complete or datetime.min)[-last:]
    return Status(
        study.name,
        _state(study, counts),
        counts,
        describe(study, best[0]) if best else None,
        [describe(study, trial) for trial in ledger.running],
        [describe(study, trial) for trial in newest],
        _seconds_left(ledger.finished, counts),
    )


def best_trials(study: SearchStudy) -> list[FrozenTrial]:
    """The best trial that keeps to the constraints; for several objectives the Pareto set, by the first of them.

    Of equal trials the earlier.
    """
    kept = [trial for trial in study.ledger().complete if is_feasible(trial)]
    if len(study.objectives) > 1:
        kept = [one for one in kept if not any(_dominates(study.objectives, other, one) for other in kept)]
    sign = -1 if study.objectives[0].direction == "maximize" else 1
    ordered = sorted(kept, key=lambda trial: (sign * trial.values[0], trial.number))
    return ordered if len(study.objectives) > 1 else ordered[:1]


def describe(study: SearchStudy, trial: FrozenTrial) -> dict[str, Any]:
    """A trial in a few plain values."""
    steps = trial.intermediate_values
    names = [one.name for one in study.objectives]
    values = dict(zip(names, trial.values, strict=True)) if trial.state == TrialState.COMPLETE else {}
    return {
        "number": trial.number,
        "slot": slot_of(trial),
        "state": trial.state.name.lower(),
        "values": values,
        "params": trial.user_attrs.get("values", trial.params),
        "run_id": trial.user_attrs.get("run_id"),
        "steps": len(steps),
        "last_value": steps[max(steps)] if steps else None,
        "seconds": trial.duration.total_seconds() if trial.duration else None,
        "host": trial.user_attrs.get("host"),
        "error": trial.user_attrs.get("error"),
        "follows": trial.user_attrs.get("follows"),
    }


def _state(study: SearchStudy, counts: dict[str, int]) -> str:
    if counts["finished"] >= counts["total"]:
        return "finished"
    if study.noted(STOP):
        return "stopped"
    return "running" if counts["running"] else "paused"


def _seconds_left(finished: Sequence[FrozenTrial], counts: dict[str, int]) -> float | None:
    seconds = [trial.duration.total_seconds() for trial in finished if trial.duration]
    left = max(0, counts["total"] - counts["finished"])
    if not seconds or not counts["running"]:
        return 0.0 if left == 0 else None
    return statistics.fmean(seconds) * left / counts["running"]


def _dominates(objectives: Sequence[Objective], one: FrozenTrial, other: FrozenTrial) -> bool:
    signs = [1 if objective.direction == "maximize" else -1 for objective in objectives]
    ours, theirs = ([sign * value for sign, value in zip(signs, trial.values, strict=True)] for trial in (one, other))
    return all(a >= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs
