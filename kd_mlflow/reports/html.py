"""One self-contained page about a run: no network, no script."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.tables import efficiency_table, not_measured, quality_table

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62rem; margin: 1.5rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem;
     border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; font-size: .88rem; } th, td { padding: .22rem .7rem; text-align: right;
        border-bottom: 1px solid #eee; } th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #999; } tbody tr:hover { background: #f5f8fb; }
.scroll { overflow-x: auto; } img { max-width: 100%; height: auto; } pre { background: #f6f6f6; padding: .8rem;
        overflow-x: auto; font-size: .8rem; } .note { border-left: 3px solid #d95f0e; padding-left: .7rem; }
.small { color: #666; font-size: .85rem; }
"""
SECTIONS = (
    ("Curves", ("accuracy", "loss")),
    ("Confusion", ("confusion", "confusion_normalised")),
    ("Per class", ("per_class_f1",)),
    ("Calibration", ("reliability",)),
    ("Samples", ("samples",)),
)


def render(
    title: str,
    views: Sequence[RunView],
    classes: Sequence[str],
    figures: Mapping[str, Figure],
    config_yaml: str,
    notes: Sequence[str],
) -> str:
    """The page as HTML. ``views[-1]`` is the run's own; ``figures`` by the names in :data:`SECTIONS`."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="small">Run {html.escape(views[-1].run_id)}</p>']
    parts += ["<h2>Result</h2>", *[f"<p>{html.escape(line)}</p>" for line in verdict(views)]]
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in notes]
    parts += ["<h2>Quality</h2>", f'<div class="scroll">{quality_table(views).to_html()}</div>']
    absent = not_measured(views)
    parts += [
        "<h2>Efficiency</h2>",
        f'<div class="scroll">{efficiency_table(views).to_html()}</div>',
        f'<p class="small">Not measured: {html.escape(absent)}.</p>' if absent else "",
    ]
    for heading, names in SECTIONS:
        shown = [_picture(figures[name], name) for name in names if name in figures]
        if shown:
            parts += [f"<h2>{heading}</h2>", *shown]
    parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(config_yaml)}</pre>"]
    parts += [f'<p class="small">Classes: {html.escape(", ".join(classes))}</p>']
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def verdict(views: Sequence[RunView]) -> list[str]:
    """What came out, in words, no stronger than the figures carry."""
    lines = [
        f"{view.role.capitalize()} ({view.architecture}): "
        + ", ".join(
            f"{view.metrics[key]:.2%} accuracy on {split}"
            for split, key in (("validation", "val/accuracy"), ("test", "test/accuracy"))
            if key in view.metrics
        )
        + "."
        for view in views
    ]
    by_role = {view.role: view for view in views}
    if not {"student", "control"} <= set(by_role):
        return lines
    student, control = by_role["student"].metrics, by_role["control"].metrics
    images = sum(row["support"] for row in by_role["student"].per_class)
    gains = {split: student[f"{split}/accuracy"] - control[f"{split}/accuracy"] for split in ("val", "test")}
    error = _error(student["test/accuracy"], control["test/accuracy"], images)
    word = "above" if gains["test"] > 0 else "below" if gains["test"] < 0 else "level with"
    size = "more than" if abs(gains["test"]) > 2 * error else "less than"
    lines.append(
        f"The distilled student is {word} the labels-only control on test by {abs(gains['test']) * 100:.2f} points "
        f"({gains['val'] * 100:+.2f} on validation). That is {size} two standard errors of such a difference on "
        f"{images} images ({error * 100:.2f} points each), and it rests on one seed."
    )
    return lines


def _error(first: float, second: float, images: int) -> float:
    """Standard error of the difference of two accuracies on ``images`` images, taken as independent."""
    return math.sqrt(sum(max(p * (1 - p), 1e-6) for p in (first, second)) / max(images, 1))


def _picture(figure: Figure, name: str) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    coded = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{coded}">'
