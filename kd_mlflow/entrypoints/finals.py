"""The end of a search: the best and the report's defaults on fresh seeds, and who of them is registered."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kd_mlflow.config import DistillConfig
from kd_mlflow.distillers.names import CONTROL
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.comparisons import cell_of
from kd_mlflow.entrypoints.evaluate import network_of_run
from kd_mlflow.entrypoints.in_turn import measure_cells
from kd_mlflow.entrypoints.recipes import student_recipe, with_resolved_method
from kd_mlflow.entrypoints.registration import register_network
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.students import train_or_reuse_student
from kd_mlflow.entrypoints.teachers import Teacher
from kd_mlflow.entrypoints.train import train_or_reuse
from kd_mlflow.measures.in_turn import Sitting
from kd_mlflow.reports.comparison import SHARED, Cell
from kd_mlflow.reports.paired import paired
from kd_mlflow.reports.search import BEST, DEFAULTS, verdict
from kd_mlflow.reports.statistics import Difference
from kd_mlflow.search.ledger import FrozenTrial
from kd_mlflow.search.study import SearchStudy
from kd_mlflow.tracking.registry import Registered
from kd_mlflow.tracking.runs import RunWriter


@dataclass(frozen=True)
class Finals:
    """What came out on the seeds that the search did not use.

    Attributes
    ----------
    cells:
        Every run: the labels-only control, the report's defaults, the search's best.
    winner:
        ``best`` or ``defaults``, by the mean of the objective on validation.
    config:
        The winner's options at its best seed, as `distill --config` takes them.
    broken:
        The constraints that a candidate does not keep to, by candidate; who keeps to all goes before.
    difference:
        Of test accuracy, best minus defaults; None if they are one.
    sitting:
        What the teacher and each distinct network cost in use, measured in turn.
    """

    objective: str
    cells: tuple[Cell, ...]
    winner: str
    config: DistillConfig
    broken: dict[str, list[str]]
    difference: Difference | None
    minus_control: Difference | None
    registered: Registered | None
    sitting: Sitting | None = None

    @property
    def means(self) -> dict[str, float]:
        """The mean of the objective by candidate."""
        return {name: _mean(self.cells, name, self.objective) for name in _names(self.cells) if name != CONTROL}

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        unpaired = self.minus_control is None or (self.difference is None and BEST in self.means)
        return verdict(
            self.objective, self.means, self.winner, self.difference, self.minus_control, self.broken, unpaired
        )

    def to_json(self) -> dict[str, Any]:
        """Plain types: a row a run."""
        return {
            "runs": [
                {
                    "candidate": "control" if cell.method == CONTROL else cell.method,
                    "seed": cell.seed,
                    "run_id": cell.run_id,
                    **{name: cell.metrics.get(name) for name in ("val/accuracy", "test/accuracy")},
                    **{name: cell.metrics[name] for name in SHARED if name in cell.metrics},
                }
                for cell in self.cells
            ],
            "means": self.means,
            "winner": self.winner,
            "broken_constraints": self.broken,
            "verdict": self.verdict,
            "best_minus_defaults": asdict(self.difference) if self.difference else None,
            "winner_minus_control": asdict(self.minus_control) if self.minus_control else None,
            "registered": asdict(self.registered) if self.registered else None,
            "efficiency_in_turn": self.sitting.to_json() if self.sitting else None,
        }


def train_finals(
    session: Session, study: SearchStudy, writer: RunWriter, teachers: Sequence[Teacher], best: FrozenTrial
) -> Finals:
    """Train the candidates and their control on fresh seeds, choose by validation, register the winner's best run.

    A run that is finished already is reused, so that a search that was cut off here goes on.
    """
    config = study.config
    candidates = {DEFAULTS: study.settings.report}
    if best.user_attrs["values"] != study.settings.report:
        candidates[BEST] = best.user_attrs["values"]
    cells: list[Cell] = []
    first = config.seed + config.seeds
    for seed in range(first, first + config.final_seeds):
        for name, values in candidates.items():
            cell = with_resolved_method(config.trial(values, seed))
            own = teachers[: method_class(cell.method).teacher_count[1]]
            if name == list(candidates)[-1]:
                control = train_or_reuse(session, cell, "control", resume="newest")
                cells.append(cell_of(control, CONTROL, seed))
            view = train_or_reuse_student(session, writer, cell, list(own), None, "newest")
            cells.append(replace(cell_of(view, cell.method, seed), method=name))
    objective = study.objectives[0]
    sign = 1 if objective.direction == "maximize" else -1
    broken = {name: _broken(study, cells, name) for name in candidates}

    def rank(name: str) -> tuple[bool, float, bool]:
        return not broken[name], sign * _mean(cells, name, objective.name), name == DEFAULTS

    winner = max(candidates, key=rank)
    own = [cell for cell in cells if cell.method == winner]
    chosen = max(own, key=lambda cell: (sign * _mean([cell], winner, objective.name), -cell.seed))
    final = with_resolved_method(config.trial(candidates[winner], chosen.seed))
    uris = tuple(teacher.uri for teacher in teachers[: method_class(final.method).teacher_count[1]])
    registered = _register(session, final, chosen) if config.register_model else None
    cells, sitting = measure_cells(session, writer, teachers[0].network.model if teachers else None, cells)
    return Finals(
        objective.name,
        tuple(cells),
        winner,
        final.model_copy(update={"teacher": uris or ("auto",)}),
        {name: terms for name, terms in broken.items() if terms},
        _difference(cells, BEST, DEFAULTS),
        _difference(cells, winner, CONTROL),
        registered,
        sitting,
    )


def _broken(study: SearchStudy, cells: Sequence[Cell], name: str) -> list[str]:
    """The constraints that the candidate's means exceed."""
    return [str(one) for one in study.constraints if one.excess(_mean(cells, name, one.name)) > 0]


def _register(session: Session, config: DistillConfig, cell: Cell) -> Registered:
    """The finished run as a version of NAME-student."""
    network = network_of_run(session.client, cell.run_id)
    metrics = {name.removeprefix("val/"): value for name, value in cell.metrics.items() if name.startswith("val/")}
    return register_network(session, network, student_recipe(config, session), metrics, cell.evidence)


def _names(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.method for cell in cells))


def _mean(cells: Sequence[Cell], name: str, metric: str) -> float:
    # Whole runs hold the loss under its full name.
    metric = {"val/loss": "val/negative_log_likelihood"}.get(metric, metric)
    return statistics.fmean(cell.metrics[metric] for cell in cells if cell.method == name)


def _difference(cells: Sequence[Cell], one: str, other: str) -> Difference | None:
    """Test accuracy over the seeds that both have, paired."""
    right = {name: {cell.seed: cell.right for cell in cells if cell.method == name} for name in (one, other)}
    seeds = sorted(right[one].keys() & right[other].keys())
    return paired((right[one][seed], right[other][seed]) for seed in seeds)
