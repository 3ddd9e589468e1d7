"""The figures of a study: pictures, and one self-contained page on which they are interactive."""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import optuna.visualization as interactive
import optuna.visualization.matplotlib as still
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

SIZE, SQUARE, DPI = (9.0, 5.0), (9.0, 8.0), 110
CONTOUR_PARAMETERS = 3
# A legend with an entry a trial says nothing.
LEGEND_ENTRIES = 12

READ = {
    "optimisation_history": "Every complete trial in order, and the best value up to it.",
    "parameter_importances": "How much of the variation each parameter explains (fANOVA); few trials say little.",
    "parallel_coordinates": "A line a trial through its values; the darker, the better.",
    "contour": "The value over pairs of the most important parameters, interpolated between trials.",
    "slice": "The value against each parameter; the darker, the later the trial.",
    "intermediate_values": "The value after every epoch; short lines were pruned.",
    "pareto_front": "Every trial by its objectives; the front is what no other trial beats in all of them.",
    "timeline": "When each trial ran, and how it ended.",
}
Target = Callable[[FrozenTrial], float] | None


@dataclass(frozen=True)
class StudyFigures:
    """Pictures by name, the interactive page, and for each figure that is not there the reason."""

    pngs: dict[str, bytes] = field(default_factory=dict)
    page: str = ""
    missing: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Plan:
    """One figure: its two drawings, and the fewest complete trials and parameters that it needs."""

    name: str
    still: Callable[[], Any]
    interactive: Callable[[], Any]
    title: str
    trials: int = 1
    parameters: int = 0
    square: bool = False


def study_figures(study: optuna.Study, names: Sequence[str]) -> StudyFigures:
    """Every figure that the study's trials allow.

    Parameters
    ----------
    names:
        What the objectives are called.
    """
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    parameters = sorted({name for trial in complete for name in trial.params})
    pngs, parts, missing = {}, [], {}
    for plan in _plans(study, names, complete):
        if reason := _lacking(plan, complete, parameters):
            missing[plan.name] = reason
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pngs[plan.name] = _png(plan)
                parts.append(_part(plan))
        except (ValueError, RuntimeError, KeyError, np.linalg.LinAlgError) as error:
            pngs.pop(plan.name, None)
            missing[plan.name] = f"It cannot be drawn from these trials ({' '.join(str(error).split())[:120]})."
    return StudyFigures(pngs, _page(study.study_name, parts), missing)


def _plans(study: optuna.Study, names: Sequence[str], complete: Sequence[FrozenTrial]) -> list[_Plan]:
    if len(names) > 1:
        plans = [_pareto(study, names)]
        for place, name in enumerate(names):
            plans += _of_objective(study, name, complete, _value(place), f"_{name.replace('/', '_')}")
        return [*plans, _timeline(study)]
    return [
        _Plan(
            "optimisation_history",
            lambda: still.plot_optimization_history(study, target_name=names[0]),
            lambda: interactive.plot_optimization_history(study, target_name=names[0]),
            "Optimisation history",
        ),
        *_of_objective(study, names[0], complete, None, ""),
        _Plan(
            "intermediate_values",
            lambda: still.plot_intermediate_values(study),
            lambda: interactive.plot_intermediate_values(study),
            "Intermediate values",
        ),
        _timeline(study),
    ]


def _of_objective(
    study: optuna.Study, name: str, complete: Sequence[FrozenTrial], target: Target, suffix: str
) -> list[_Plan]:
    """Importances and slice, and for a single objective parallel coordinates and contour."""
    about = {"target": target, "target_name": name}
    evaluator = FanovaImportanceEvaluator(seed=0)
    said = f": {name}" if suffix else ""
    plans = [
        _Plan(
            f"parameter_importances{suffix}",
            lambda: still.plot_param_importances(study, evaluator=evaluator, **about),
            lambda: interactive.plot_param_importances(study, evaluator=evaluator, **about),
            f"Importance of the parameters{said}",
            trials=2,
            parameters=2,
        ),
        _Plan(
            f"slice{suffix}",
            lambda: still.plot_slice(study, **about),
            lambda: interactive.plot_slice(study, **about),
            f"Slice{said}",
            parameters=1,
        ),
    ]
    if suffix:
        return plans
    return [
        *plans,
        _Plan(
            "parallel_coordinates",
            lambda: still.plot_parallel_coordinate(study, **about),
            lambda: interactive.plot_parallel_coordinate(study, **about),
            "Parallel coordinates",
            trials=2,
            parameters=1,
        ),
        _Plan(
            "contour",
            lambda: still.plot_contour(study, params=_most_important(study, complete), **about),
            lambda: interactive.plot_contour(study, params=_most_important(study, complete), **about),
            "Contour",
            trials=3,
            parameters=2,
            square=True,
        ),
    ]


def _pareto(study: optuna.Study, names: Sequence[str]) -> _Plan:
    def draw(module: Any) -> Any:
        first = {"targets": lambda trial: trial.values[:3], "target_names": list(names[:3])} if len(names) > 3 else {}
        return module.plot_pareto_front(study, **(first or {"target_names": list(names)}))

    return _Plan("pareto_front", lambda: draw(still), lambda: draw(interactive), "Pareto front")


def _timeline(study: optuna.Study) -> _Plan:
    return _Plan(
        "timeline", lambda: still.plot_timeline(study), lambda: interactive.plot_timeline(study), "Timeline", trials=0
    )


def _value(place: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: trial.values[place]


def _most_important(study: optuna.Study, complete: Sequence[FrozenTrial]) -> list[str]:
    """At most three parameters that every complete trial has, or any if there are not two such."""
    shared = set.intersection(*(set(trial.params) for trial in complete))
    names = sorted(shared if len(shared) > 1 else {name for trial in complete for name in trial.params})
    if len(names) <= CONTOUR_PARAMETERS:
        return names
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0), params=names)
    return list(found)[:CONTOUR_PARAMETERS]


def _lacking(plan: _Plan, complete: Sequence[FrozenTrial], parameters: Sequence[str]) -> str:
    for needed, there, what in (
        (plan.trials, len(complete), "complete trials"),
        (plan.parameters, len(parameters), "parameters"),
    ):
        if there < needed:
            return f"It needs {what}: {needed} at least, and there are {there}."
    return ""


def _png(plan: _Plan) -> bytes:
    """The picture; pyplot is left as it was found."""
    mpl.use("Agg", force=False)
    import matplotlib.pyplot as plt

    before = set(plt.get_fignums())
    try:
        with mpl.rc_context({"font.size": 9, "axes.titlesize": 11, "axes.facecolor": "white", "axes.grid": True}):
            drawn = plan.still()
            axes = np.ravel(np.asarray(drawn, dtype=object))
            figure = axes[0].figure
            width, height = SQUARE if plan.square and len(axes) > 1 else SIZE
            figure.set_size_inches(max(width, 2.6 * len(axes)) if plan.name.startswith("slice") else width, height)
            _tidy(plan, figure)
            stream = io.BytesIO()
            figure.savefig(stream, dpi=DPI, facecolor="white", bbox_inches="tight", metadata={"Software": None})
            return stream.getvalue()
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _tidy(plan: _Plan, figure: Any) -> None:
    """Own title and colours; no legend with an entry a trial; ticks that do not run into each other."""
    crowded = plan.name in ("parallel_coordinates", "contour") or plan.name.startswith("slice")
    for axes in figure.axes:
        for place in ("left", "center", "right"):
            axes.set_title("", loc=place)
        axes.set_facecolor("white")
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        legend = axes.get_legend()
        if legend is not None and len(legend.get_texts()) > LEGEND_ENTRIES:
            legend.remove()
        if crowded:
            axes.tick_params(axis="x", which="both", labelrotation=35, labelsize=8)
            axes.minorticks_off()
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
    figure.suptitle(plan.title)
    # The color bar beside several panels has a place of its own, which a layout would not respect.
    if plan.name.startswith(("contour", "slice")):
        figure.subplots_adjust(right=0.86, wspace=0.45, hspace=0.5)
        for axes in figure.axes:
            if getattr(axes, "_colorbar", None) is not None:
                axes.set_position((0.89, 0.15, 0.018, 0.7))
    elif not crowded:
        figure.tight_layout()


def _part(plan: _Plan) -> str:
    """The interactive figure with its heading and how to read it."""
    drawn = plan.interactive()
    drawn.update_layout(title=None, template="plotly_white", margin={"t": 30})
    if plan.square:
        drawn.update_layout(height=800)
    kind = next(name for name in READ if plan.name.startswith(name))
    body = drawn.to_html(full_html=False, include_plotlyjs=False, div_id=plan.name)
    return f"<h2>{html.escape(plan.title)}</h2>\n<p>{html.escape(READ[kind])}</p>\n{body}"


def _page(title: str, parts: Sequence[str]) -> str:
    """All of them on one page that needs no network."""
    head = f"<title>{html.escape(title)}</title><script>{get_plotlyjs()}</script>"
    style = "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}</style>"
    body = "\n".join([f"<h1>Study {html.escape(title)}</h1>", *parts])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}{style}</head><body>{body}</body></html>\n'
    )
