"""One self-contained page about a run: no network, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence

from kd_mlflow.measures.in_turn import Sitting
from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.efficiency import conditions, mark_explained
from kd_mlflow.reports.tables import efficiency_table, not_measured, quality_table
from kd_mlflow.reports.verdict import verdict

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; max-width: 62rem; margin: 1.5rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2rem;
     border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
table { border-collapse: collapse; font-size: .88rem; } th, td { padding: .22rem .7rem; text-align: right;
        border-bottom: 1px solid #eee; } th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #999; } tbody tr:hover { background: #f5f8fb; }
.scroll { overflow-x: auto; } .lines td { white-space: nowrap; } td:first-child { white-space: nowrap; }
img { max-width: 100%; height: auto; } img.wide { max-width: none; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem; }
.note { border-left: 3px solid #d95f0e; padding-left: .7rem; }
.small { color: #666; font-size: .85rem; }
"""
WIDE = 1320  # pixels; a wider figure is scrolled, not shrunk until its labels cannot be read
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
    figures: Mapping[str, bytes],
    config_yaml: str,
    notes: Sequence[str],
    sitting: Sitting | None = None,
) -> str:
    """The page as HTML. ``views[-1]`` is the run's own; ``figures`` are PNGs by the names in :data:`SECTIONS`."""
    parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="small">Run {html.escape(views[-1].run_id)}</p>']
    parts += ["<h2>Result</h2>", *[f"<p>{html.escape(line)}</p>" for line in verdict(views)]]
    parts += ["<h2>Quality</h2>", f'<div class="scroll lines">{quality_table(views).to_html()}</div>']
    absent, marked = not_measured(views), mark_explained({view.role: view.shared for view in views})
    parts += [
        "<h2>Efficiency</h2>",
        f'<div class="scroll">{efficiency_table(views).to_html()}</div>',
        f'<p class="note">{html.escape(marked)}</p>' if marked else "",
        f'<p class="small">{html.escape(conditions(sitting.to_json()))}</p>' if sitting else "",
        f'<p class="small">Not measured: {html.escape(absent)}.</p>' if absent else "",
    ]
    for heading, names in SECTIONS:
        shown = [picture(figures[name], name) for name in names if name in figures]
        if shown:
            parts += [f"<h2>{heading}</h2>", *shown]
    if notes:
        parts += ["<h2>Notes</h2>", *[f'<p class="note">{html.escape(note)}</p>' for note in notes]]
    parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(config_yaml)}</pre>"]
    parts += [f'<p class="small">Classes: {html.escape(", ".join(classes))}</p>']
    return page(title, parts)


def page(title: str, parts: Sequence[str]) -> str:
    """The parts, which are HTML already, as a page in the reports' style."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def picture(png: bytes, name: str) -> str:
    """A PNG inside the page; a wide one is scrolled."""
    coded = base64.b64encode(png).decode()
    style = ' class="wide"' if _width(png) > WIDE else ""
    image = f'<img{style} alt="{html.escape(name)}" src="data:image/png;base64,{coded}">'
    return f'<div class="scroll">{image}</div>' if style else image


def _width(png: bytes) -> int:
    """Pixels, from the PNG's header."""
    return int.from_bytes(png[16:20], "big")
