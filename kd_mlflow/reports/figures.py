"""The figures of a run and of a comparison. Every function gives a matplotlib figure and keeps no state."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_mlflow.reports.data import RunView

# One colour a role, the same in every figure; told apart without red and green.
COLOURS = {"teacher": "#6a51a3", "control": "#d95f0e", "student": "#1b7abf", "evaluate": "#6a51a3"}
NEUTRAL = "#444444"
CELLS_WITH_TEXT = 20
NAME_LENGTH = 24


def accuracy_curves(views: Sequence[RunView]) -> Figure:
    """Accuracy on training (dashed; augmented images) and validation (solid) over epochs."""
    figure, (axes,) = _axes(1, (7.0, 4.4))
    for view in views:
        _curve(axes, view, "train/accuracy", "--", f"{view.role}, training")
        _curve(axes, view, "val/accuracy", "-", f"{view.role}, validation")
        _mark_best(axes, view, "val/accuracy")
    _finish(axes, "Accuracy", "accuracy")
    return figure


def loss_curves(views: Sequence[RunView]) -> Figure:
    """Cross-entropy on training and validation for all; the distillation term beside it."""
    distilled = [view for view in views if "train/kd" in view.history]
    figure, panels = _axes(2 if distilled else 1, (11.0 if distilled else 7.0, 4.4))
    for view in views:
        _curve(panels[0], view, "train/cross_entropy", "--", f"{view.role}, training")
        _curve(panels[0], view, "val/loss", "-", f"{view.role}, validation")
        _mark_best(panels[0], view, "val/loss")
    _finish(panels[0], "Cross-entropy", "nats")
    for view in distilled:
        _curve(panels[1], view, "train/kd", "--", f"{view.role}, distillation term")
        _curve(panels[1], view, "train/loss", "-.", f"{view.role}, total")
    if distilled:
        _finish(panels[1], "Distillation (training)", "nats")
    return figure


def confusion(view: RunView, classes: Sequence[str], normalised: bool) -> Figure:
    """Rows are the truth; as counts, or as shares of each row."""
    counts = np.asarray(view.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown, many = (shares if normalised else counts), len(classes) > CELLS_WITH_TEXT
    side = min(16.4, max(4.6, 2.4 + (0.14 if many else 0.44) * len(classes)))
    figure, (axes,) = _axes(1, (side + 0.8, side))
    picture = axes.imshow(shown, cmap="Blues", vmin=0, vmax=1 if normalised else None)
    figure.colorbar(picture, ax=axes, fraction=0.046, pad=0.03)
    names, size = [short(name) for name in classes], _label_size(side - 2.4, len(classes))
    axes.set_xticks(
        range(len(classes)),
        names,
        rotation=90 if many else 45,
        ha="center" if many else "right",
        fontsize=size,
        parse_math=False,
    )
    axes.set_yticks(range(len(classes)), names, fontsize=size, parse_math=False)
    if not many:
        _cells(axes, shown, "{:.2f}" if normalised else "{:.0f}")
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(f"{view.role}: confusion on {view.split}, {'row shares' if normalised else 'counts'}", loc="left")
    return figure


def reliability(view: RunView) -> Figure:
    """Accuracy within each bin of confidence; on the diagonal confidence is honest."""
    figure, (axes, counts) = _axes(2, (6.0, 5.4), rows=(3, 1))
    rows = [row for row in view.reliability if row["count"]]
    middle = [(row["lower"] + row["upper"]) / 2 for row in rows]
    width = view.reliability[0]["upper"] - view.reliability[0]["lower"] if view.reliability else 0.1
    colour = COLOURS.get(view.role, NEUTRAL)
    axes.bar(middle, [row["accuracy"] for row in rows], width * 0.94, color=colour, alpha=0.75, label="accuracy")
    axes.plot(
        [row["confidence"] for row in rows],
        [row["accuracy"] for row in rows],
        "o",
        color="black",
        markersize=3,
        label="at the bin's mean confidence",
    )
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, label="honest")
    error = view.metrics.get(f"{view.split}/calibration_error")
    axes.set_title(
        f"{view.role}: reliability on {view.split}" + ("" if error is None else f", calibration error {error:.3f}")
    )
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.legend(loc="upper left", fontsize=8, frameon=False)
    counts.bar(
        [(r["lower"] + r["upper"]) / 2 for r in view.reliability],
        [r["count"] for r in view.reliability],
        width * 0.94,
        color="#999999",
    )
    counts.set(xlim=(0, 1), xlabel="confidence", ylabel="images")
    return figure


def per_class_f1(views: Sequence[RunView], classes: Sequence[str]) -> Figure:
    """F1 of every class on test, one dot a network, classes sorted by the last network's."""
    tables = [{row["class"]: row["f1"] for row in view.per_class if row["f1"] is not None} for view in views]
    order = sorted(classes, key=lambda name: tables[-1].get(name, 0.0))
    height = min(18.0, max(3.2, 1.6 + 0.26 * len(classes)))
    figure, (axes,) = _axes(1, (7.0, height))
    for view, table in zip(views, tables, strict=True):
        axes.plot(
            [table.get(name, np.nan) for name in order],
            range(len(order)),
            "o",
            alpha=0.85,
            color=COLOURS.get(view.role, NEUTRAL),
            label=view.role,
        )
    size = _label_size(height - 1.6, len(classes))
    axes.set_yticks(range(len(order)), [short(name) for name in order], fontsize=size, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.7, len(order) - 0.3), xlabel=f"F1 on {views[-1].split}", title="F1 by class")
    axes.grid(axis="both", alpha=0.25)
    figure.legend(fontsize=8, frameon=False, loc="outside upper right", ncols=max(1, len(views)))
    return figure


def samples(
    images: np.ndarray,
    truth: Sequence[str],
    teacher_names: Sequence[str] | None,
    teacher_probabilities: Sequence[float] | None,
    student_names: Sequence[str],
    student_probabilities: Sequence[float],
) -> Figure:
    """Some test images ``[n, 3, H, W]`` uint8 with what the networks say; mistakes are marked with a cross."""
    count, columns = len(images), 4
    rows = max(1, -(-count // columns))
    figure = Figure(figsize=(2.75 * columns, 3.1 * rows), layout="constrained")
    for place in range(rows * columns):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.axis("off")
        if place >= count:
            continue
        axes.imshow(images[place].transpose(1, 2, 0), interpolation="nearest")
        lines = [f"truth: {short(truth[place])}"]
        if teacher_names is not None and teacher_probabilities is not None:
            lines.append(_said("teacher", teacher_names[place], teacher_probabilities[place], truth[place]))
        own = "student" if teacher_names is not None else "network"
        lines.append(_said(own, student_names[place], student_probabilities[place], truth[place]))
        right = student_names[place] == truth[place]
        axes.set_title(
            "\n".join(lines), fontsize=8, loc="left", parse_math=False, color="black" if right else "#b30000"
        )
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, drawn once for the run's artifacts and for the report."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()


def _said(who: str, name: str, probability: float, truth: str) -> str:
    return f"{'✓' if name == truth else '✗'} {who}: {short(name)} {probability:.2f}"


def _axes(count: int, size: tuple[float, float], rows: tuple[int, ...] | None = None) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    if rows:
        made = figure.subplots(count, 1, gridspec_kw={"height_ratios": rows})
    else:
        made = figure.subplots(1, count)
    return figure, list(np.atleast_1d(made))


def _curve(axes: Axes, view: RunView, name: str, style: str, label: str) -> None:
    points = view.history.get(name)
    if points:
        epochs, values = zip(*points, strict=True)
        marker = "." if len(points) < 40 else None
        axes.plot(
            epochs,
            values,
            style,
            marker=marker,
            color=COLOURS.get(view.role, NEUTRAL),
            label=label,
            alpha=0.6 if style == "--" else 1.0,
            linewidth=1.6,
        )


def _mark_best(axes: Axes, view: RunView, name: str) -> None:
    """A ring around the epoch that was selected."""
    best = view.metrics.get("val/epoch")
    value = dict(view.history.get(name, [])).get(int(best)) if best is not None else None
    if value is not None:
        axes.plot([best], [value], "o", markersize=9, fillstyle="none", color=COLOURS.get(view.role, NEUTRAL))


def _finish(axes: Axes, title: str, label: str) -> None:
    axes.set(title=title, xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, frameon=False)


def _label_size(inches: float, labels: int) -> float:
    """Points of a label that fills most of its share of an axis, and no more than reads well."""
    return min(9.0, 0.75 * 72 * inches / max(labels, 1))


def _cells(axes: Axes, values: np.ndarray, form: str) -> None:
    dark = values.max() / 2
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            form.format(value),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > dark else "black",
        )


def short(name: Any) -> str:
    """A name on one line, cut to what fits beside an axis."""
    text = " ".join(str(name).split())
    return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"
