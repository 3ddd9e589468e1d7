"""The objective over the parameters: parallel coordinates, contour, slice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import optuna.visualization as interactive
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.tri import LinearTriInterpolator, Triangulation
from optuna.trial import FrozenTrial
from plotly.subplots import make_subplots

from kd_mlflow.search.figures.drawing import draw_grid, draw_legend, set_axis, single_panel, ticks_of
from kd_mlflow.search.figures.view import (
    CONTOUR_PARAMETERS,
    GRID,
    HEIGHT,
    ORANGE,
    WIDTH,
    Plan,
    Scale,
    View,
    numbers_of,
    plain_text,
    too_few,
    wrapped,
)
from kd_mlflow.search.ledger import is_feasible


def parallel_plan(view: View) -> Plan:
    def page() -> go.Figure:
        return interactive.plot_parallel_coordinate(view.study, target_name=view.name)

    lacks = too_few(view, 2, 2)
    return Plan("parallel_coordinates", "Parallel coordinates", lacks, partial(_parallel, view), page)


def _parallel(view: View) -> Figure:
    columns = 1 + len(view.scales)
    figure, axes = single_panel("Parallel coordinates", HEIGHT, max(WIDTH, 1.25 * columns))
    worst_first = sorted(view.with_parameters, key=view.value, reverse=not view.maximise)
    values = [view.value(trial) for trial in worst_first]
    places = np.empty((len(worst_first), columns))
    places[:, 0] = _column(axes, 0, Scale(view.name), values)
    for column, (name, scale) in enumerate(view.scales.items(), 1):
        known = [view.place_of(name, trial) if name in trial.params else math.nan for trial in worst_first]
        places[:, column] = _column(axes, column, scale, known)
    lines = LineCollection(
        [np.column_stack((np.arange(columns), row)) for row in places],
        array=np.asarray(values),
        cmap=view.colours,
        linewidth=1.1,
        alpha=0.75 if len(values) < 100 else 0.45,
    )
    axes.add_collection(lines)
    _mark_line(axes, view, worst_first, places)
    bar = figure.colorbar(lines, ax=axes, label=plain_text(view.name), pad=0.02, aspect=30)
    bar.solids.set_alpha(1)
    axes.set(xlim=(-0.25, columns - 0.4), ylim=(-0.16 if (places < 0).any() else -0.03, 1.03))
    axes.set_xticks(range(columns), [wrapped(name) for name in (view.name, *view.scales)], fontsize=9)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    draw_legend(figure, axes)
    return figure


def _column(axes: Axes, column: int, scale: Scale, values: Sequence[float]) -> np.ndarray:
    """Draw one vertical axis; the values as heights from 0 to 1, and below 0 where there is none."""
    known = np.asarray(values, dtype=float)
    straight = np.log10(known) if scale.log else known
    low, high = (0.0, len(scale.choices) - 1.0) if scale.choices else (np.nanmin(straight), np.nanmax(straight))

    def height(value: float | np.ndarray) -> float | np.ndarray:
        return (value - low) / (high - low) if high > low else value * 0 + 0.5

    axes.axvline(column, color="#888888", linewidth=0.9, zorder=2.5)
    ticks = ticks_of(scale, np.nanmin(known), np.nanmax(known), 6)
    size = 8 if len(ticks) < 16 else 6
    for place, label in ticks:
        at = height(np.log10(place) if scale.log else place)
        _tag(axes, column, float(at), label, size)
    if np.isnan(known).any():
        _tag(axes, column, -0.12, "not set", 8)
    return np.where(np.isnan(known), -0.12, height(straight))


def _tag(axes: Axes, column: int, at: float, label: str, size: int) -> None:
    """A label right of a vertical axis, readable on top of the lines."""
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
    axes.plot([column - 0.02, column + 0.02], [at, at], color="#888888", linewidth=0.9, zorder=4)
    axes.text(column + 0.045, at, plain_text(label), fontsize=size, va="center", zorder=5, bbox=box)


def _mark_line(axes: Axes, view: View, trials: Sequence[FrozenTrial], places: np.ndarray) -> None:
    for trial, row in zip(trials, places, strict=True):
        if view.best is not None and trial.number == view.best.number:
            axes.plot(row, color=ORANGE, linewidth=2.2, zorder=3, label=f"best: trial {trial.number}")


def contour_plan(view: View) -> Plan:
    lacks = too_few(view, 3, 2)
    return Plan("contour", "Contour", lacks, partial(_contour, view), partial(_contour_page, view))


def _chosen(view: View) -> list[str]:
    """At most three parameters: the most important of those that every trial has, or any if there are not two."""
    if len(view.shared) < 2:
        often = {name: sum(name in trial.params for trial in view.trials) for name in view.scales}
        return sorted(often, key=lambda name: -often[name])[:CONTOUR_PARAMETERS]
    return list(view.importances or view.shared)[:CONTOUR_PARAMETERS]


def _contour(view: View) -> Figure:
    names = _chosen(view)
    side = len(names) - 1
    figure = Figure(figsize=(WIDTH, 8.2) if side > 1 else (7.6, 6.2), layout="constrained")
    figure.suptitle("Contour", x=0.01, ha="left")
    panels = figure.subplots(side, side, squeeze=False)
    values = [view.value(trial) for trial in view.with_parameters]
    colours = ScalarMappable(Normalize(min(values), max(values)), view.colours)
    for first, second in combinations(range(len(names)), 2):
        _panel(panels[second - 1, first], view, names[first], names[second], colours)
    free = panels[0, -1] if side > 1 else None
    if free is not None:
        free.axis("off")
        free.legend(*panels[1, 0].get_legend_handles_labels(), loc="upper right", frameon=False, fontsize=9)
    bar = figure.colorbar(colours, ax=panels if free is None else free, location="right" if free is None else "left")
    bar.set_label(plain_text(view.name))
    if free is None:
        draw_legend(figure, panels[0, 0])
    return figure


def _panel(axes: Axes, view: View, across: str, up: str, colours: ScalarMappable) -> None:
    """The value over two parameters."""
    both = [trial for trial in view.trials if across in trial.params and up in trial.params]
    x, y, values = _points(view, across, up, both)
    set_axis(axes, "x", view.scales[across], x)
    set_axis(axes, "y", view.scales[up], y)
    surface = _surface(view.scales[across], view.scales[up], x, y, values)
    if surface is not None:
        levels = np.linspace(colours.norm.vmin, colours.norm.vmax, 13)
        if levels[0] < levels[-1]:
            axes.contourf(*surface, levels, norm=colours.norm, cmap=colours.cmap, alpha=0.75)
    axes.use_sticky_edges = False
    axes.scatter(x, y, c=values, norm=colours.norm, cmap=colours.cmap, s=22, edgecolor="white", linewidth=0.6, zorder=3)
    if view.best in both:
        place = [view.place_of(name, view.best) for name in (across, up)]
        label = f"best: trial {view.best.number}"
        axes.plot(*place, "*", color=ORANGE, markersize=13, markeredgecolor="white", zorder=4, ls="", label=label)
    if not both:
        axes.text(0.5, 0.5, "no trial has both", ha="center", transform=axes.transAxes)


def _points(
    view: View, across: str, up: str, trials: Sequence[FrozenTrial]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both parameters and the value of ``[n]`` trials."""
    rows = [(view.place_of(across, one), view.place_of(up, one), view.value(one)) for one in trials]
    x, y, values = np.asarray(rows, dtype=float).reshape(-1, 3).T
    return x, y, values


def _surface(
    across: Scale, up: Scale, x: np.ndarray, y: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ma.MaskedArray] | None:
    """The value linearly between the trials on a grid ``[GRID, GRID]``, None between choices or on a line."""
    if across.choices or up.choices or len(x) < 3:
        return None
    straight = [np.log10(one) if scale.log else one for scale, one in ((across, x), (up, y))]
    lows, spans = [one.min() for one in straight], [np.ptp(one) for one in straight]
    if min(spans) <= 0:
        return None
    unit = [(one - low) / span for one, low, span in zip(straight, lows, spans, strict=True)]
    steps = np.linspace(0, 1, GRID)
    try:
        found = LinearTriInterpolator(Triangulation(*unit), values)(*np.meshgrid(steps, steps))
    except (RuntimeError, ValueError):
        return None
    ticks = [low + span * steps for low, span in zip(lows, spans, strict=True)]
    grids = [10**one if scale.log else one for scale, one in zip((across, up), ticks, strict=True)]
    return grids[0], grids[1], found


def _contour_page(view: View) -> go.Figure:
    names = _chosen(view)
    side = len(names) - 1
    drawn = make_subplots(side, side, horizontal_spacing=0.12, vertical_spacing=0.12)
    for first, second in combinations(range(len(names)), 2):
        across, up, where = names[first], names[second], {"row": second, "col": first + 1}
        both = [trial for trial in view.trials if across in trial.params and up in trial.params]
        x, y, values = _points(view, across, up, both)
        surface = _surface(view.scales[across], view.scales[up], x, y, values)
        if surface is not None:
            level = surface[2].filled(math.nan).round(6)
            # Plotly's contour lines never end on a grid with gaps.
            drawn.add_trace(go.Heatmap(x=surface[0], y=surface[1], z=level, coloraxis="coloraxis"), **where)
        said = [f"trial {trial.number}: {view.value(trial):.6g}" for trial in both]
        dots = {"color": values, "coloraxis": "coloraxis", "line": {"color": "white", "width": 1}, "size": 8}
        drawn.add_trace(go.Scatter(x=x, y=y, mode="markers", text=said, marker=dots, showlegend=False), **where)
        drawn.update_xaxes(**_page_axis(view.scales[across]), **where)
        drawn.update_yaxes(**_page_axis(view.scales[up]), **where)
    drawn.update_traces(hovertemplate="%{x}, %{y}: %{z:.6g}<extra></extra>", selector={"type": "heatmap"})
    drawn.update_traces(hovertemplate="%{text}<extra></extra>", selector={"type": "scatter"})
    scale = {"colorscale": "Viridis", "reversescale": view.maximise, "colorbar": {"title": view.name}}
    return drawn.update_layout(coloraxis=scale, height=850 if side > 1 else 550)


def _page_axis(scale: Scale) -> dict[str, object]:
    if scale.choices:
        return {"title": scale.name, "tickvals": list(range(len(scale.choices))), "ticktext": list(scale.choices)}
    return {"title": scale.name, "type": "log" if scale.log else "linear"}


def slice_plan(view: View, suffix: str = "") -> Plan:
    def page() -> go.Figure:
        target = view.value if suffix else None
        drawn = interactive.plot_slice(view.study, target=target, target_name=view.name)
        return drawn.update_layout(width=None, showlegend=False)

    title = "Slice" + (f": {view.name}" if suffix else "")
    return Plan(f"slice{suffix}", title, too_few(view, 1, 1), partial(_slice, view, title), page)


def _slice(view: View, title: str) -> Figure:
    count = len(view.scales)
    columns = min(3, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, max(HEIGHT, 2.7 * rows)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True)
    colours = ScalarMappable(Normalize(0, max(1, view.trials[-1].number)), "viridis_r")
    for place, (axes, (name, scale)) in enumerate(zip(panels.flat, view.scales.items(), strict=False)):
        own = [trial for trial in view.trials if name in trial.params]
        x, y = [view.place_of(name, trial) for trial in own], [view.value(trial) for trial in own]
        axes.scatter(x, y, c=numbers_of(own), norm=colours.norm, cmap=colours.cmap, s=24, edgecolor="white", zorder=3)
        rings = [(at, value) for at, value, trial in zip(x, y, own, strict=True) if not is_feasible(trial)]
        if rings:
            axes.scatter(*zip(*rings, strict=True), s=46, facecolor="none", edgecolor=ORANGE, linewidth=1.1, zorder=4)
        set_axis(axes, "x", scale, x)
        draw_grid(axes)
        if place % columns == 0:
            axes.set_ylabel(wrapped(view.name, 24))
    for axes in panels.flat[count:]:
        axes.axis("off")
    bar = figure.colorbar(colours, ax=panels, label="trial", aspect=40, pad=0.02)
    bar.locator = MaxNLocator(6, integer=True, min_n_ticks=1)
    bar.update_ticks()
    if not all(is_feasible(trial) for trial in view.trials):
        ring = Line2D([], [], marker="o", ls="", markersize=7, markerfacecolor="none", markeredgecolor=ORANGE)
        figure.legend([ring], ["breaks a constraint"], loc="outside lower center", frameon=False, fontsize=9)
    return figure
