"""The tables of a comparison: quality (the source report's table VII) and cost (its table VIII)."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.efficiency import RATIOS, mark, with_spread
from kd_mlflow.reports.paired import interval_cell, paired_views
from kd_mlflow.tracking.encode import FORMULA

QUALITY = {
    "accuracy": "accuracy",
    "top5_accuracy": "top-5 accuracy",
    "macro_precision": "precision (macro)",
    "macro_recall": "recall (macro)",
    "macro_f1": "F1 (macro)",
    "weighted_precision": "precision (weighted)",
    "weighted_recall": "recall (weighted)",
    "weighted_f1": "F1 (weighted)",
    "mean_average_precision": "mean average precision",
    "negative_log_likelihood": "negative log-likelihood (less is better)",
    "calibration_error": "calibration error (less is better)",
    "teacher_agreement": "agreement with the teacher",
    "teacher_kl": "KL(teacher ‖ student), nats",
}
COST = {
    "parameters_total": ("parameters", "{:,.0f}"),
    "parameters_trainable": ("parameters, trainable", "{:,.0f}"),
    "parameters_mib": ("parameters, MiB", "{:.2f}"),
    "buffers_mib": ("buffers, MiB", "{:.3f}"),
    "file_mib": ("weights file, MiB", "{:.2f}"),
    "flops": ("FLOPs an image (2 a multiply-add)", "{:,.0f}"),
    "latency_ms_b1_median": ("latency of one image, median, ms", "{:.2f}"),
    "latency_ms_b1_p95": ("latency of one image, 95th percentile, ms", "{:.2f}"),
    "throughput_images_per_s": ("throughput, images/s", "{:.0f}"),
    "throughput_batch_size": ("… at a batch of", "{:.0f}"),
    "inference_peak_memory_mib": ("peak memory, inference, MiB", "{:.0f}"),
    "inference_power_w": ("power, inference, W", "{:.1f}"),
    "inference_joules_per_image": ("energy an image, inference, J", "{:.3g}"),
    "training_seconds": ("training, s", "{:.1f}"),
    "training_seconds_per_batch": ("training, s a batch", "{:.4f}"),
    "training_peak_memory_mib": ("peak memory, training, MiB", "{:.0f}"),
    "training_gpu_utilisation_mean": ("GPU utilisation, training, %", "{:.0f}"),
    "training_power_w_mean": ("power, training, W", "{:.1f}"),
    "training_joules_per_image": ("energy an image, training, J", "{:.3g}"),
    "training_energy_j": ("energy of the training, J", "{:.0f}"),
}
# The figure that says how much another one varies, where it is not called after it.
SPREADS = {"latency_ms_b1_median": "latency_ms_b1_spread"}
NOT_MEASURED = "not measured"
# A figure, or a difference with its interval: a sign in front makes neither a formula.
NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?( \([+−][\d.]+ … [+−][\d.]+\))?$")


@dataclass(frozen=True)
class Table:
    """A header and rows of text."""

    header: list[str]
    rows: list[list[str]]

    def to_csv(self) -> str:
        """Comma-separated; a cell that a spreadsheet would calculate is shown as text."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerows([[_harmless(cell) for cell in row] for row in [self.header, *self.rows]])
        return out.getvalue()

    def to_html(self) -> str:
        """An HTML table, everything escaped; a first column of names, then right-aligned figures."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def quality_table(views: Sequence[RunView], splits: Sequence[str] = ("val", "test")) -> Table:
    """Quality of each network on validation and test, and the student's gain over the control."""
    by_role = {view.role: view for view in views}
    compared = "student" in by_role and "control" in by_role
    header = ["", *[_title(view) for view in views], *(["student − control"] if compared else [])]
    rows = []
    for split in splits:
        for name, label in QUALITY.items():
            key = f"{split}/{name}"
            if not any(key in view.metrics for view in views):
                continue
            row = [f"{split} {label}", *[_figure(view.metrics.get(key)) for view in views]]
            if compared:
                row.append(_gain(by_role["student"], by_role["control"], split, name))
            rows.append(row)
    if any("generalisation_gap" in view.metrics for view in views):
        gap = [_figure(view.metrics.get("generalisation_gap")) for view in views]
        rows.append(["training − validation accuracy", *gap, *([""] if compared else [])])
    return Table(header, rows)


def efficiency_table(views: Sequence[RunView]) -> Table:
    """Cost of each network, in the layout of the source report's table VIII, what was measured in turn before it.

    What could not be measured says so (the reasons: :func:`not_measured`); what no network of the
    comparison was ever asked for is left out.
    """
    rows = []
    for name, (label, form) in {**RATIOS, **COST}.items():
        cells = [_cost(view, name, form) for view in views]
        if any(cells):
            rows.append([label, *cells])
    return Table(["", *[_title(view) for view in views]], rows)


def not_measured(views: Sequence[RunView]) -> str:
    """What could not be measured, by reason; empty if nothing is."""
    reasons: dict[str, set[str]] = {}
    for view in views:
        for name, reason in view.missing.items():
            reasons.setdefault(reason, set()).add(COST[name][0] if name in COST else name)
    return ". ".join(f"{'; '.join(sorted(names))} ({reason})" for reason, names in sorted(reasons.items()))


def _gain(student: RunView, control: RunView, split: str, name: str) -> str:
    """The difference of a figure, that of accuracies with its interval."""
    ours, theirs = (view.metrics.get(f"{split}/{name}") for view in (student, control))
    if ours is None or theirs is None:
        return ""
    difference = paired_views(student, control, split) if name == "accuracy" else None
    return f"{ours - theirs:+.4f}" if difference is None else interval_cell(difference)


def _title(view: RunView) -> str:
    return f"{view.role} ({view.architecture})"


def _cost(view: RunView, name: str, form: str) -> str:
    value = view.metrics.get(f"efficiency/{name}")
    if value is None:
        return NOT_MEASURED if name in view.missing else ""
    spread = view.metrics.get(f"efficiency/{SPREADS.get(name, f'{name}_spread')}")
    return with_spread(value, spread, form) + mark(name, view.shared)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _harmless(cell: str) -> str:
    return f"'{cell}" if FORMULA.match(cell) and not NUMBER.match(cell) else cell
