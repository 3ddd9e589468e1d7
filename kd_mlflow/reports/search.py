"""The words, tables and page of a search."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from kd_mlflow.reports.comparison import CONTROL, IN_TURN, Cell
from kd_mlflow.reports.efficiency import with_spread
from kd_mlflow.reports.html import page, picture
from kd_mlflow.reports.paired import LABELS_ONLY, UNPAIRED, caveat, told
from kd_mlflow.reports.statistics import Difference
from kd_mlflow.reports.tables import Table

SPREAD = (
    "± is the standard deviation over seeds. Chosen by validation; test decides nothing. The control is trained with "
    "the options of the search's best (or of the defaults, where there is none), without a teacher."
)
BEST, DEFAULTS = "best", "defaults"
LABELS = {
    CONTROL: "control: labels only",
    DEFAULTS: "the source report's defaults",
    BEST: "best of the search",
}
REST = {
    "steps": "steps",
    "last_value": "last value",
    "seconds": "seconds",
    "host": "host",
    "run_id": "run",
    "follows": "follows",
    "error": "error",
}
COLUMNS = {
    "val/accuracy": "accuracy, validation",
    "test/accuracy": "accuracy, test",
    "test/macro_f1": "F1 (macro), test",
    "test/calibration_error": "calibration error, test",
    "test/teacher_agreement": "agreement with the teacher, test",
}


def verdict(
    objective: str,
    means: Mapping[str, float],
    winner: str,
    difference: Difference | None,
    minus_control: Difference | None,
    broken: Mapping[str, Sequence[str]],
    unpaired: bool = False,
) -> str:
    """Whether the search found anything better than the report's defaults and than labels alone.

    No stronger than the figures carry; ``unpaired`` if some of the runs do not keep what was said of the images.
    """
    labels = " ".join(filter(None, ["", _told("the winner", LABELS_ONLY, minus_control), caveat(minus_control)]))
    labels += f" {UNPAIRED}" if unpaired else ""
    kept = "".join(f" Not kept on fresh seeds by {LABELS[name]}: {', '.join(broken[name])}." for name in broken)
    if BEST not in means:
        return f"The search found nothing better than the report's defaults; they are what is registered.{labels}{kept}"
    ours, theirs = means[BEST], means[DEFAULTS]
    said = f"On fresh seeds the best of the search has {objective} {ours:.4f}, the report's defaults {theirs:.4f}"
    if winner == BEST:
        said += "." if DEFAULTS not in broken else "; the best is what is registered."
    elif BEST in broken and DEFAULTS not in broken:
        said += "; they are what is registered."
    else:
        said += ": the search's best does not beat them, and they are what is registered."
    against = _told(f"the {LABELS[BEST]}", LABELS[DEFAULTS], difference)
    return said + (f" {against}" if against else "") + labels + kept


def final_table(cells: Sequence[Cell], teacher: Mapping[str, float]) -> Table:
    """Control, defaults, best and teacher; spread over seeds after ±."""
    ratios = [key for key in IN_TURN if any(key in cell.metrics for cell in cells)]
    lines = []
    for name in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == name]
        figures = [_spread([cell.metrics[key] for cell in own if key in cell.metrics]) for key in COLUMNS]
        lines.append([LABELS[name], str(len(own)), *figures, *[_in_turn(own[0].metrics, key) for key in ratios]])
    if teacher:
        figures = [_spread([teacher[key]] if key in teacher else []) for key in COLUMNS]
        lines.append(["teacher", "1", *figures, *["1" if key.endswith("teacher") else "" for key in ratios]])
    return Table(["", "seeds", *COLUMNS.values(), *[IN_TURN[key][0] for key in ratios]], lines)


def trial_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """A line a trial: state, objectives, parameters, seconds, run."""
    values = list(dict.fromkeys(name for trial in trials for name in trial["values"]))
    params = list(dict.fromkeys(name for trial in trials for name in trial["params"]))
    lines = []
    for trial in trials:
        own = [_plain(trial["values"].get(name)) for name in values] + [_plain(trial["params"].get(n)) for n in params]
        rest = [
            _plain(trial[name]) for name in ("steps", "last_value", "seconds", "host", "run_id", "follows", "error")
        ]
        lines.append([str(trial["number"]), _plain(trial["slot"]), trial["state"], *own, *rest])
    header = ["number", "slot", "state", *values, *params]
    return Table([*header, *REST.values()], lines)


def render(
    title: str,
    facts: Sequence[str],
    best: Mapping[str, Any],
    finals: Table | None,
    pngs: Mapping[str, bytes],
    missing: Mapping[str, str],
    config_yaml: str,
) -> str:
    """The page as HTML: what was found, the finals, the figures, how to repeat it."""
    parts = [f"<h1>{html.escape(title)}</h1>", *[f"<p>{html.escape(fact)}</p>" for fact in facts]]
    named = [[name, _plain(value)] for name, value in {**best["values"], **best["params"]}.items()]
    parts += [f"<h2>Best trial: {best['number']}</h2>", Table(["", "value"], named).to_html()]
    if finals is not None:
        parts += ["<h2>On fresh seeds</h2>", f'<div class="scroll lines">{finals.to_html()}</div>']
        parts += [f'<p class="small">{SPREAD}</p>']
    for name, png in pngs.items():
        parts += [f"<h3>{html.escape(name.replace('_', ' '))}</h3>", picture(png, name)]
    if missing:
        items = "".join(f"<li>{html.escape(name)}: {html.escape(why)}</li>" for name, why in missing.items())
        parts += ["<h2>Not drawn</h2>", f"<ul>{items}</ul>"]
    parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(config_yaml)}</pre>"]
    return page(title, parts)


def _in_turn(metrics: Mapping[str, float], key: str) -> str:
    """A ratio, which all networks that cost the same share."""
    return with_spread(metrics[key], metrics.get(f"{key}_spread"), IN_TURN[key][1]) if key in metrics else ""


def _told(subject: str, reference: str, difference: Difference | None) -> str:
    return "" if difference is None else told(subject, reference, "test", difference)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
