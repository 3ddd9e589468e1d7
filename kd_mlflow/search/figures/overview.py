"""History, importances, intermediate values, Pareto front and timeline."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from itertools import combinations

import numpy as np
import optuna
import optuna.visualization as interactive
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from kd_mlflow.search.figures.drawing import draw_dots, draw_grid, draw_legend, single_panel
from kd_mlflow.search.figures.view import (
    BLUE,
    FAINT,
    HEIGHT,
    ORANGE,
    WIDTH,
    Plan,
    View,
    numbers_of,
    percent,
    plain_text,
    steps_of,
    too_few,
)
from kd_mlflow.search.ledger import is_feasible

STATES = {
    TrialState.COMPLETE: ("complete", BLUE),
    TrialState.PRUNED: ("pruned", ORANGE),
    TrialState.FAIL: ("failed", "#333333"),
    TrialState.RUNNING: ("running", "#6a51a3"),
}


def history_plan(view: View) -> Plan:
    def page() -> go.Figure:
        drawn = interactive.plot_optimization_history(view.study, target_name=view.name)
        drawn.for_each_trace(lambda one: one.update(name="best so far"), {"name": "Best Value"})
        return drawn

    return Plan("optimisation_history", "Optimisation history", too_few(view, 1), partial(_history, view), page)


def _history(view: View) -> Figure:
    figure, axes = single_panel("Optimisation history")
    kept = [trial for trial in view.trials if is_feasible(trial)]
    others = [trial for trial in view.trials if not is_feasible(trial)]
    draw_dots(axes, others, view.value, facecolor="none", edgecolor=FAINT, label="breaks a constraint")
    draw_dots(axes, kept, view.value, color=BLUE, label="complete")
    if kept:
        best = (np.maximum if view.maximise else np.minimum).accumulate([view.value(trial) for trial in kept])
        axes.step(numbers_of(kept), best, where="post", color=ORANGE, linewidth=1.6, label="best so far")
    for state in (TrialState.PRUNED, TrialState.FAIL):
        word, colour = STATES[state]
        numbers = numbers_of(view.study.get_trials(deepcopy=False, states=[state]))
        if numbers:
            across = axes.get_xaxis_transform()
            axes.plot(
                numbers, [0.015] * len(numbers), "|", color=colour, transform=across, label=f"{word} (mark below)"
            )
    axes.set(xlabel="trial", ylabel=plain_text(view.name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(y=0.08)
    draw_legend(figure, axes)
    return figure


def importance_plan(view: View, suffix: str = "") -> Plan:
    lacks, title = too_few(view, 2, 2), "Importance of the parameters" + (f": {view.name}" if suffix else "")
    if not lacks and len(view.shared) < 2:
        lacks = "It needs at least 2 parameters that every trial has."
    if not lacks and len({view.value(trial) for trial in view.with_parameters}) == 1:
        lacks = "It needs trials that differ; all have the same value."
    if not lacks and not view.importances:
        lacks = "It needs more trials, or trials less alike, to tell the parameters apart."

    def page() -> go.Figure:
        names, shares = list(view.importances)[::-1], list(view.importances.values())[::-1]
        drawn = go.Figure(go.Bar(x=shares, y=names, orientation="h", text=[percent(one) for one in shares]))
        drawn.update_traces(marker_color=BLUE, textposition="outside", cliponaxis=False)
        return drawn.update_layout(xaxis_title=_explained(view).replace("\n", "<br>"))

    return Plan(f"parameter_importances{suffix}", title, lacks, partial(_importance, view, title), page)


def _importance(view: View, title: str) -> Figure:
    names = list(view.importances)[::-1]
    figure, axes = single_panel(title, max(HEIGHT, 1.5 + 0.3 * len(names)))
    bars = axes.barh(range(len(names)), [view.importances[name] for name in names], color=BLUE, height=0.7)
    axes.bar_label(bars, [percent(view.importances[name]) for name in names], padding=4)
    axes.set_yticks(range(len(names)), [plain_text(name) for name in names])
    axes.set(xlabel=plain_text(_explained(view)), xlim=(0, max(view.importances.values()) * 1.12))
    axes.grid(axis="y", visible=False)
    return figure


def _explained(view: View) -> str:
    """The label of the importances; they can be told only for what every trial has."""
    said, rest = f"share of the variation of {view.name} (fANOVA)", [n for n in view.scales if n not in view.shared]
    if rest:
        said += "\n" + textwrap.fill(f"left out, as only some trials have them: {', '.join(rest)}", 90)
    return said


def intermediate_plan(view: View) -> Plan:
    lines = [trial for trial in view.study.get_trials(deepcopy=False) if trial.state in STATES and steps_of(trial)[0]]
    lacks = "" if lines else "It needs a trial that reported values on its way; there is none."

    def page() -> go.Figure:
        drawn = go.Figure()
        for trial in lines:
            (steps, values), (word, colour) = steps_of(trial), STATES[trial.state]
            name = f"trial {trial.number}, {word}"
            drawn.add_trace(go.Scatter(x=steps, y=values, name=name, line={"color": colour, "width": 1}, opacity=0.7))
        drawn.update_traces(mode="lines+markers", marker_size=4)
        return drawn.update_layout(xaxis_title="step", yaxis_title=view.name, showlegend=False)

    return Plan("intermediate_values", "Intermediate values", lacks, partial(_intermediate, view, lines), page)


def _intermediate(view: View, trials: Sequence[FrozenTrial]) -> Figure:
    figure, axes = single_panel("Intermediate values")
    faint = 0.55 if len(trials) < 60 else 0.3
    for state, (word, colour) in STATES.items():
        for place, trial in enumerate(one for one in trials if one.state == state):
            steps, values = steps_of(trial)
            axes.plot(steps, values, color=colour, alpha=faint, linewidth=1, label=None if place else word)
            axes.plot(steps[-1:], values[-1:], "o" if state == TrialState.COMPLETE else "x", color=colour, markersize=4)
    if view.best is not None and steps_of(view.best)[0]:
        axes.plot(*steps_of(view.best), color="black", linewidth=2, zorder=4, label=f"best: trial {view.best.number}")
    axes.set(xlabel="step", ylabel=plain_text(view.name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    draw_legend(figure, axes)
    return figure


def pareto_plan(study: optuna.Study, views: Sequence[View]) -> Plan:
    trials = [trial for trial in views[0].trials if all(map(math.isfinite, trial.values))]
    lacks = "" if trials else "It needs at least 1 complete trial; there are none."

    def page() -> go.Figure:
        names = [view.name for view in views]
        if len(names) <= 3:
            return interactive.plot_pareto_front(study, target_names=names)
        return interactive.plot_pareto_front(study, targets=lambda trial: trial.values[:3], target_names=names[:3])

    return Plan("pareto_front", "Pareto front", lacks, partial(_pareto, study, views, trials), page)


def _pareto(study: optuna.Study, views: Sequence[View], trials: Sequence[FrozenTrial]) -> Figure:
    """A panel for each pair of objectives."""
    pairs = list(combinations(views, 2))
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(WIDTH if columns == 1 else 4.2 * columns, max(HEIGHT, 4.0 * rows)), layout="constrained")
    figure.suptitle("Pareto front", x=0.01, ha="left")
    numbers = {trial.number for trial in study.best_trials}
    front = [trial for trial in trials if trial.number in numbers]
    others = [trial for trial in trials if trial.number not in numbers]
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes, (across, up) in zip(panels.flat, pairs, strict=True):
        for some, colour, label in (
            ([trial for trial in others if not is_feasible(trial)], FAINT, "breaks a constraint"),
            ([trial for trial in others if is_feasible(trial)], BLUE, "beaten"),
            (front, ORANGE, "Pareto front"),
        ):
            if some:
                x, y = [[view.value(trial) for trial in some] for view in (across, up)]
                axes.scatter(x, y, s=34, color=colour, edgecolor="white", linewidth=0.6, zorder=3, label=label)
        if len(views) == 2:
            _stairs(axes, across, up, front)
        better = [
            f"{plain_text(view.name)}\n({'higher' if view.maximise else 'lower'} is better)" for view in (across, up)
        ]
        axes.set(xlabel=better[0], ylabel=better[1])
        draw_grid(axes)
    draw_legend(figure, panels[0, 0])
    return figure


def _stairs(axes: Axes, across: View, up: View, front: Sequence[FrozenTrial]) -> None:
    """The border of what the front beats."""
    ordered = sorted(front, key=across.value)
    x, y = [[view.value(trial) for trial in ordered] for view in (across, up)]
    axes.step(x, y, where="pre" if across.maximise else "post", color=ORANGE, linewidth=1, alpha=0.6)


def timeline_plan(study: optuna.Study) -> Plan:
    started = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in STATES and trial.datetime_start is not None
    ]
    lacks = "" if started else "It needs a trial that has started; there is none."

    def page() -> go.Figure:
        drawn = interactive.plot_timeline(study)
        for state, (word, colour) in STATES.items():
            drawn.update_traces(name=word, marker_color=colour, selector={"name": state.name})
        drawn.update_traces(name="breaks a constraint", selector={"name": "INFEASIBLE"})
        return drawn.update_layout(xaxis_title="time", yaxis_title="trial")

    return Plan("timeline", "Timeline", lacks, partial(_timeline, started), page)


def _timeline(trials: Sequence[FrozenTrial]) -> Figure:
    """Bars; that of a running trial reaches to the latest moment that the study knows of."""
    figure, axes = single_panel("Timeline")
    known = [moment for trial in trials for moment in (trial.datetime_start, trial.datetime_complete) if moment]
    latest: datetime = max(known)
    for state, (word, colour) in STATES.items():
        own = [trial for trial in trials if trial.state == state]
        starts = [date2num(trial.datetime_start) for trial in own]
        lengths = [date2num(one.datetime_complete or latest) - at for one, at in zip(own, starts, strict=True)]
        # The edge keeps a bar visible that is short beside the others.
        bars = axes.barh(
            numbers_of(own), lengths, left=starts, height=0.8, color=colour, edgecolor=colour, linewidth=0.9
        )
        if own:
            bars.set_label(word)
    axes.use_sticky_edges = False
    axes.margins(x=0.02, y=0.03)
    locator = AutoDateLocator(maxticks=8)
    axes.xaxis_date()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="time", ylabel="trial")
    draw_legend(figure, axes)
    return figure
