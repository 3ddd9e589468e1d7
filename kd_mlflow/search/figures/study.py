"""All figures of a study: the pictures, and the page on which they are interactive."""

from __future__ import annotations

import html
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import optuna
from optuna.trial import TrialState
from plotly.offline import get_plotlyjs

from kd_mlflow.search.figures.drawing import to_png
from kd_mlflow.search.figures.overview import (
    history_plan,
    importance_plan,
    intermediate_plan,
    pareto_plan,
    timeline_plan,
)
from kd_mlflow.search.figures.parameters import contour_plan, parallel_plan, slice_plan
from kd_mlflow.search.figures.view import Plan, StudyFigures, View

READ = {
    "optimisation_history": "Every complete trial in order, and the best value up to it.",
    "parameter_importances": "How much of the variation of the value each parameter explains; few trials say little.",
    "parallel_coordinates": "Each line is a trial and crosses every axis at its value there; the darker, the better.",
    "contour": "The value over pairs of the most important parameters, interpolated between the trials (points).",
    "slice": "The value against each parameter; the darker a point, the later the trial.",
    "intermediate_values": "The value at every step that a trial reported; the lines of pruned trials end early.",
    "pareto_front": "Every trial by its objectives; no other trial beats one of the front in all of them.",
    "timeline": "When each trial ran, and how it ended.",
}


def study_figures(study: optuna.Study, names: Sequence[str]) -> StudyFigures:
    """Every figure that the study's trials allow.

    Parameters
    ----------
    names:
        What the objectives are called, in the study's order.
    """
    pngs, parts, missing = {}, [], {}
    with _quiet():
        for plan in _plans(study, names):
            lacks = plan.lacks
            if not lacks:
                # The record of hours of search must not be lost for a picture.
                try:
                    png, part = to_png(plan.still()), _part(plan)
                    pngs[plan.name] = png
                    parts.append(part)
                except Exception as error:
                    lacks = f"It could not be drawn ({type(error).__name__}: {' '.join(str(error).split())[:120]})."
            if lacks:
                missing[plan.name] = lacks
    return StudyFigures(pngs, _page(study.study_name, parts, missing), missing)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's warnings are about what is checked here, or about its own figures being new."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _plans(study: optuna.Study, names: Sequence[str]) -> list[Plan]:
    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    views = [
        View(study, name, place, tuple(trial for trial in complete if math.isfinite(trial.values[place])))
        for place, name in enumerate(names)
    ]
    several, plans = len(views) > 1, []
    if several:
        plans = [pareto_plan(study, views)]
        for view in views:
            suffix = "_" + re.sub(r"\W+", "_", view.name)
            plans += [importance_plan(view, suffix), slice_plan(view, suffix)]
    else:
        (view,) = views
        plans = [history_plan(view), importance_plan(view), parallel_plan(view), contour_plan(view)]
        plans += [slice_plan(view), intermediate_plan(view)]
    return [*plans, timeline_plan(study)]


def _part(plan: Plan) -> str:
    """The interactive figure with its heading and how to read it."""
    drawn = plan.interactive()
    drawn.update_layout(title=None, template="plotly_white", margin={"t": 30})
    kind = next(name for name in READ if plan.name.startswith(name))
    config = {"displaylogo": False, "responsive": True}
    body = drawn.to_html(full_html=False, include_plotlyjs=False, div_id=plan.name, config=config)
    return f"<h2>{html.escape(plan.title)}</h2>\n<p>{html.escape(READ[kind])}</p>\n{body}"


def _page(title: str, parts: Sequence[str], missing: dict[str, str]) -> str:
    """All of them on one page that needs no network."""
    head = f"<title>{html.escape(title)}</title><script>{get_plotlyjs()}</script>"
    style = "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}</style>"
    items = [f"<li>{html.escape(name.replace('_', ' '))}: {html.escape(why)}</li>" for name, why in missing.items()]
    rest = ["<h2>Not drawn</h2>", "<ul>", *items, "</ul>"] if items else []
    body = "\n".join([f"<h1>Study {html.escape(title)}</h1>", *parts, *rest])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{head}{style}</head><body>{body}</body></html>\n'
    )
