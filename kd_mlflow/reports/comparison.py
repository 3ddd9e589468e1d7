"""A comparison of methods: its cells, a row a method, and what may be said of them."""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from kd_mlflow.measures.in_turn import Sitting
from kd_mlflow.reports.efficiency import RATIOS, mark, with_spread
from kd_mlflow.reports.paired import LABELS_ONLY, caveat, interval_cell, paired, seed_count, signed, told
from kd_mlflow.reports.statistics import Difference
from kd_mlflow.reports.tables import Table

CONTROL, REFERENCE = "labels", "kd"
COLUMNS = {
    "val/accuracy": ("accuracy, validation", "{:.4f}"),
    "test/accuracy": ("accuracy, test", "{:.4f}"),
    "test/macro_f1": ("F1 (macro), test", "{:.4f}"),
    "test/calibration_error": ("calibration error, test", "{:.4f}"),
    "test/teacher_agreement": ("agreement with the teacher, test", "{:.4f}"),
    "efficiency/training_seconds_per_batch": ("seconds a training batch", "{:.3f}"),
    "efficiency/training_peak_memory_mib": ("peak memory of training, MiB", "{:,.0f}"),
    "efficiency/extra_parameters": ("extra training parameters", "{:,.0f}"),
}
LATENCY = "efficiency/latency_ms_b1_median"
# Measured once for all networks that cost the same, in turn with the teacher.
IN_TURN = {f"efficiency/{name}": how for name, how in RATIOS.items()}
SHARED = (*IN_TURN, *(f"{name}_spread" for name in IN_TURN))
METRICS = (*COLUMNS, LATENCY, *SHARED)
WITHOUT_SPREAD = "efficiency/extra_parameters"


@dataclass(frozen=True)
class Cell:
    """One finished run of a comparison.

    Attributes
    ----------
    method:
        ``labels`` for the control.
    metrics:
        Flat names, as in :class:`kd_mlflow.reports.data.RunView`.
    predicted, labels:
        ``[N]``: the test split, in the same order in every cell of a data set; None for a run that kept none.
    evidence:
        How sure the reading of the method is.
    shared:
        As in :class:`kd_mlflow.reports.data.RunView`.
    """

    method: str
    seed: int
    run_id: str
    metrics: dict[str, float]
    predicted: np.ndarray | None
    labels: np.ndarray | None
    evidence: str = ""
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def right(self) -> np.ndarray | None:
        """``[N]``: whether each image was named rightly; None if that is not known."""
        return None if self.predicted is None or self.labels is None else self.predicted == self.labels


@dataclass(frozen=True)
class LeftOut:
    """A method, or one of its seeds, that gave no run, and why."""

    method: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """All cells on one data set; ``teacher`` are the teacher's metrics, empty without one.

    ``sitting`` is what teacher and students cost in use, measured in turn.
    """

    data: str
    classes: int
    images_per_class: float
    image_size: int
    teacher: dict[str, float]
    cells: tuple[Cell, ...]
    left_out: tuple[LeftOut, ...]
    student: str
    teacher_name: str
    notes: tuple[str, ...] = ()
    sitting: Sitting | None = None


@dataclass(frozen=True)
class Row:
    """A method over its seeds: mean and sample standard deviation of every figure, and paired differences on test."""

    method: str
    evidence: str
    seeds: list[int]
    runs: list[str]
    mean: dict[str, float]
    sd: dict[str, float | None]
    minus_control: Difference | None
    minus_kd: Difference | None
    minus_control_val: float | None
    shared: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def rows(comparison: Comparison) -> list[Row]:
    """The control first, then the methods by mean validation accuracy, the best first."""
    methods = list(dict.fromkeys(cell.method for cell in comparison.cells))
    made = [_row(comparison, method) for method in methods]
    return sorted(made, key=lambda row: (row.method != CONTROL, -row.mean["val/accuracy"]))


def winner(own: Sequence[Row]) -> str:
    """The method with the highest mean validation accuracy; the control may win. Test decides nothing."""
    return max(own, key=lambda row: row.mean["val/accuracy"]).method


def verdict(own: Sequence[Row]) -> str:
    """What may be said of the winner, in a sentence or two."""
    best = next(row for row in own if row.method == winner(own))
    said = f"By validation the best is {best.method}"
    if best.method == CONTROL:
        said = f"No method is ahead of the labels-only control on validation ({seed_count(len(best.seeds))})"
        others = [row for row in own if row.method != CONTROL]
        if not others:
            return f"{said}."
        best = max(others, key=lambda row: row.mean["val/accuracy"])
        said += f", {best.method} coming nearest"
    control = next((row for row in own if row.method == CONTROL), None)
    if control is None or not set(control.seeds) & set(best.seeds):
        return f"{said} ({seed_count(len(best.seeds))}); there is no control at the same seeds."
    gain = best.mean["test/accuracy"] - control.mean["test/accuracy"]
    sentence = told(best.method, LABELS_ONLY, "test", best.minus_control, gain)
    return " ".join(filter(None, [f"{said}.", sentence, caveat(best.minus_control), _unfinished(best, own)]))


def comparison_table(own: Sequence[Row], left_out: Sequence[LeftOut] = ()) -> Table:
    """A line a method, spread over seeds after ±; methods that gave no run follow with their reason."""
    ratios = {key: how for key, how in IN_TURN.items() if any(key in row.mean for row in own)}
    columns = {**COLUMNS, **ratios}
    header = ["method", "evidence", "seeds", *[label for label, _ in columns.values()]]
    header += ["test accuracy − control (95 %)", "test accuracy − kd (95 %)", "note"]
    lines = []
    for row in own:
        figures = [_marked(row, key, form) for key, (_, form) in columns.items()]
        differences = [interval_cell(row.minus_control), interval_cell(row.minus_kd)]
        note = _note(row, own)
        lines.append([row.method, row.evidence, str(len(row.seeds)), *figures, *differences, note])
    blanks = [""] * (len(header) - 2)
    lines += [[one.method, *blanks, one.reason] for one in left_out]
    return Table(header, lines)


def gain_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """For each data set what it is like, and what every method gained over the control on test."""
    made = []
    for comparison in comparisons:
        own = rows(comparison)
        control = next((row.mean["test/accuracy"] for row in own if row.method == CONTROL), None)
        teacher = comparison.teacher.get("test/accuracy")
        gains = {row.method: asdict(row.minus_control) for row in own if row.minus_control is not None}
        made.append(
            {
                "data": comparison.data,
                "classes": comparison.classes,
                "images_per_class": comparison.images_per_class,
                "image_size": comparison.image_size,
                "teacher_accuracy": teacher,
                "control_accuracy": control,
                "gap": None if teacher is None or control is None else teacher - control,
                "gains": gains,
            }
        )
    return made


def gain_table(comparisons: Sequence[Comparison]) -> Table:
    """Gain × data set."""
    found = gain_rows(comparisons)
    methods = list(dict.fromkeys(method for row in found for method in row["gains"]))
    facts = ["classes", "images a class", "image size", "teacher, test", "control, test", "teacher − control"]
    lines = []
    for row in found:
        figures = [f"{row['classes']}", f"{row['images_per_class']:.0f}", f"{row['image_size']}"]
        figures += [_figure(row[name]) for name in ("teacher_accuracy", "control_accuracy")]
        figures.append("" if row["gap"] is None else signed(row["gap"]))
        gains = [interval_cell(Difference(**row["gains"][m])) if m in row["gains"] else "" for m in methods]
        lines.append([row["data"], *figures, *gains])
    return Table(["data", *facts, *methods], lines)


def _unfinished(row: Row, own: Sequence[Row]) -> str:
    """Said of a method that failed at some seed: its mean leaves out the worst."""
    most = max(len(other.seeds) for other in own)
    return f"{row.method} finished at {len(row.seeds)} of {most} seeds." if len(row.seeds) < most else ""


def _note(row: Row, own: Sequence[Row]) -> str:
    alone = row.minus_control is not None and row.minus_control.seeds == 1
    said = "The interval covers the drawing of test images alone (1 seed)." if alone else ""
    return " ".join(filter(None, [said, _unfinished(row, own)]))


def _row(comparison: Comparison, method: str) -> Row:
    cells = sorted((cell for cell in comparison.cells if cell.method == method), key=lambda cell: cell.seed)
    values = {key: [cell.metrics.get(key, math.nan) for cell in cells] for key in METRICS}
    values = {key: found for key, found in values.items() if all(map(math.isfinite, found))}
    versus = {name: _against(comparison, method, name) for name in (CONTROL, REFERENCE)}
    return Row(
        method=method,
        evidence=cells[0].evidence,
        seeds=[cell.seed for cell in cells],
        runs=[cell.run_id for cell in cells],
        mean={key: plain.fmean(own) for key, own in values.items()},
        sd={key: plain.stdev(own) if len(own) > 1 and key not in SHARED else None for key, own in values.items()},
        minus_control=versus[CONTROL],
        minus_kd=versus[REFERENCE],
        minus_control_val=_validation_gain(comparison, method),
        shared={part: load for cell in cells for part, load in cell.shared.items()},
    )


def _pairs(comparison: Comparison, method: str, other: str) -> list[tuple[Cell, Cell]]:
    """Cells of both methods at the seeds that both have."""
    if method == other:
        return []
    theirs = {cell.seed: cell for cell in comparison.cells if cell.method == other}
    return [(cell, theirs[cell.seed]) for cell in comparison.cells if cell.method == method and cell.seed in theirs]


def _against(comparison: Comparison, method: str, other: str) -> Difference | None:
    return paired((one.right, two.right) for one, two in _pairs(comparison, method, other))


def _validation_gain(comparison: Comparison, method: str) -> float | None:
    pairs = _pairs(comparison, method, CONTROL)
    gains = [one.metrics["val/accuracy"] - two.metrics["val/accuracy"] for one, two in pairs]
    return plain.fmean(gains) if gains else None


def _marked(row: Row, key: str, form: str) -> str:
    """The figure, marked if the machine was shared while it was timed."""
    cell = _spread(row, key, form)
    return cell and cell + mark(key.partition("/")[2], row.shared)


def _spread(row: Row, key: str, form: str) -> str:
    if key not in row.mean:
        return ""
    if key in IN_TURN:
        return with_spread(row.mean[key], row.mean.get(f"{key}_spread"), form)
    deviation = None if key == WITHOUT_SPREAD else row.sd[key]
    return form.format(row.mean[key]) + ("" if deviation is None else f" ± {form.format(deviation)}")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
