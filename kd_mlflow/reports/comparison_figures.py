"""The figures of a comparison. Every function gives a matplotlib figure and keeps no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from kd_mlflow.reports.comparison import CONTROL, IN_TURN, LATENCY, Comparison, Row, gain_rows, rows
from kd_mlflow.reports.figures import COLOURS, NEUTRAL, short
from kd_mlflow.reports.statistics import pareto

COSTS = {
    "efficiency/training_seconds_per_batch": "seconds a training batch",
    "efficiency/latency_ms_b1_median": "latency of one image, ms",
    **{name: label for name, (label, _) in IN_TURN.items()},
}
ACCURACY = "test/accuracy"
MANY_METHODS = 12
# Places tried for a label, in pixels at 100 dpi: near ones first, and in each ring from above on.
MARK = 5
DISTANCES = (6, 10, 15, 22, 30, 40, 52, 66, 82)
DIRECTIONS = [np.array([np.sin(a), np.cos(a)]) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)]


def accuracy_against(comparison: Comparison, cost: str) -> Figure:
    """Test accuracy (bars: spread over seeds) against a cost, the Pareto front as a line.

    Many methods are numbered, with their names beside the figure, since names would lie on one another.
    """
    own = [row for row in rows(comparison) if {cost, ACCURACY} <= set(row.mean)]
    many = len(own) > MANY_METHODS
    figure = Figure(figsize=(10.0 if many else 8.6, max(5.4, 1.2 + 0.16 * len(own) * many)), layout="constrained")
    axes, *beside = figure.subplots(1, 1 + many, squeeze=False, width_ratios=(4, 1) if many else None)[0]
    points = [(row.mean[cost], row.mean[ACCURACY]) for row in own]
    best = pareto([accuracy for _, accuracy in points], [price for price, _ in points])
    for row, (x, y), leads in zip(own, points, best, strict=True):
        colour, marker = (COLOURS["control"], "s") if row.method == CONTROL else (COLOURS["student"], "o")
        axes.errorbar(x, y, yerr=row.sd[ACCURACY], fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.35, zorder=1)
        axes.plot(x, y, marker, color=colour, markersize=6, fillstyle="full" if leads else "none", zorder=3)
    front = sorted(point for point, leads in zip(points, best, strict=True) if leads)
    axes.step(*(np.array(front).reshape(-1, 2).T), where="post", color="#777777", linewidth=1, zorder=2)
    axes.margins(x=0.08, y=0.1)
    _key(figure, axes, comparison, cost)
    what = COSTS.get(cost, cost)
    axes.set(xlabel=what, ylabel="accuracy, test")
    axes.set_title(f"{comparison.data}: accuracy against {what}", loc="left", parse_math=False)
    axes.ticklabel_format(useOffset=False)
    axes.grid(alpha=0.2)
    if not own:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
    if many:
        lines = [f"{number:>2} {short(row.method)}" for number, row in enumerate(own, 1)]
        beside[0].axis("off")
        beside[0].text(0, 0.5, "\n".join(lines), fontsize=8, va="center", family="monospace", parse_math=False)
    _label(figure, axes, points, [str(n) if many else short(row.method) for n, row in enumerate(own, 1)])
    return figure


def latency_measured(comparison: Comparison) -> str:
    """The latency that the cells have in common: a ratio measured in turn, else each run's time of its own."""
    own = rows(comparison)
    ratios = (name for name in IN_TURN if "latency" in name and all(name in row.mean for row in own))
    return next(ratios, LATENCY)


def differences(own: Sequence[Row]) -> Figure:
    """A line a method: its difference to the control on test, with the interval."""
    drawn = sorted((row for row in own if row.minus_control is not None), key=lambda row: row.minus_control.mean)
    figure = Figure(figsize=(7.4, max(2.6, 1.4 + 0.27 * len(drawn))), layout="constrained")
    axes = figure.add_subplot()
    for place, row in enumerate(drawn):
        found = row.minus_control
        colour = NEUTRAL if found.holds_zero else COLOURS["student"] if found.mean > 0 else COLOURS["control"]
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.6)
        axes.plot([found.mean], [place], "o", color=colour, markersize=5)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(drawn)), [row.method for row in drawn], fontsize=9, parse_math=False)
    axes.set_ylim(-0.7, len(drawn) - 0.3)
    axes.set_xlabel("test accuracy, difference to the labels-only control (95 % interval)")
    seeds = sorted({row.minus_control.seeds for row in drawn})
    count = " to ".join(map(str, sorted({*seeds[:1], *seeds[-1:]})))
    rests = f", {count} {'seed' if seeds == [1] else 'seeds'}" if seeds else ""
    axes.set_title(f"Gain over the control{rests}; grey: not told apart from none", loc="left", fontsize=10)
    axes.grid(axis="x", alpha=0.25)
    return figure


def gain_figure(comparisons: Sequence[Comparison]) -> Figure:
    """The gain of every method on every data set, as a table of colours with the figures in it."""
    found = gain_rows(comparisons)
    methods = list(dict.fromkeys(method for row in found for method in row["gains"]))
    values = np.array([[row["gains"].get(m, {}).get("mean", np.nan) for row in found] for m in methods], dtype=float)
    values = values.reshape(len(methods), len(found))
    size = (3.2 + 1.3 * len(found), 1.8 + 0.34 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    limit = max(1e-6, float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1e-6)
    picture = axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    figure.colorbar(picture, ax=axes, label="gain over the control, test")
    names = [f"{row['data']}\n{row['classes']} classes, {row['images_per_class']:.0f} each" for row in found]
    axes.set_xticks(range(len(found)), names, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(methods)), methods, fontsize=9, parse_math=False)
    for (row, column), value in np.ndenumerate(values):
        known = found[column]["gains"].get(methods[row])
        colour = "white" if np.isfinite(value) and abs(value) > 0.6 * limit else "black"
        weight = "bold" if known and not known["low"] <= 0 <= known["high"] else "normal"
        text = f"{value:+.3f}" if known else "–"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour, fontweight=weight)
    axes.set_title("Gain by data; bold: the interval leaves 0 out", loc="left", fontsize=10)
    return figure


def _key(figure: Figure, axes: Axes, comparison: Comparison, cost: str) -> None:
    """What the marks mean; the teacher is a line where it is near enough, else a figure in words."""
    low, high = axes.get_ylim()
    accuracy, price = comparison.teacher.get(ACCURACY), comparison.teacher.get(cost)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS["student"], label="method (filled: on the front)"),
        Line2D([], [], marker="s", linestyle="", color=COLOURS["control"], label="labels-only control"),
        Line2D([], [], color="#777777", label="Pareto front"),
    ]
    if accuracy is not None:
        near = low - (high - low) / 2 <= accuracy <= high + (high - low) / 2
        said = f"teacher {accuracy:.4f}" + ("" if price is None else f" at {price:.3g}")
        said += "" if near else f" ({'above' if accuracy > high else 'below'} this picture)"
        style = {"color": COLOURS["teacher"], "linestyle": ":"}
        handles.append(Line2D([], [], label=said, **style))
        if near:
            axes.axhline(accuracy, linewidth=1.2, **style)
            low, high = min(low, accuracy - 0.03 * (high - low)), max(high, accuracy + 0.03 * (high - low))
    axes.set_ylim(low, high)
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="outside lower left", ncols=4)


def _label(figure: Figure, axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str]) -> None:
    """Each name beside its point and joined to it, at the nearest place where it covers no point and no name."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    if not points:
        return
    marks = axes.transData.transform(points)
    taken = [np.concatenate([mark - MARK, mark + MARK]) for mark in marks]
    inside = np.array(axes.bbox.extents)
    for name, point, mark in zip(names, points, marks, strict=True):
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
        style = {"fontsize": 8, "ha": "center", "va": "center", "parse_math": False, "zorder": 4}
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", arrowprops=line, **style)
        extent = Text.get_window_extent(text)
        half = np.array([extent.width, extent.height]) / 2 + 1
        moves = [direction * (distance + half) for distance in DISTANCES for direction in DIRECTIONS]
        boxes = np.array([np.concatenate([mark + move - half, mark + move + half]) for move in moves])
        best = int(np.argmin(_covered(boxes, np.array(taken), inside)))
        taken.append(boxes[best])
        text.set_position(tuple(moves[best] * 72 / figure.dpi))


def _covered(boxes: np.ndarray, taken: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Pixels of each box (left, bottom, right, top) on what is taken; far more for one that leaves the axes."""
    corner = np.minimum(boxes[:, None, 2:], taken[None, :, 2:]) - np.maximum(boxes[:, None, :2], taken[None, :, :2])
    out = (boxes[:, :2] < inside[:2]).any(axis=1) | (boxes[:, 2:] > inside[2:]).any(axis=1)
    return corner.clip(0).prod(axis=2).sum(axis=1) + 1e6 * out
