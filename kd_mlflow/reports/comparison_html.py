"""One self-contained page about a comparison: no network, no script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from kd_mlflow.reports.comparison import Comparison, comparison_table, gain_table, rows, verdict
from kd_mlflow.reports.efficiency import conditions, mark_explained
from kd_mlflow.reports.html import page, picture

INTERVALS = (
    "Differences are paired: the same seeds and the same test images. With one seed the exact McNemar test decides "
    "(p < 0.05), and the 95 % interval leaves 0 out exactly then; it knows nothing of how trainings vary. From two "
    "seeds on the interval is a percentile bootstrap over test images and seeds. "
    "Each interval stands for one method alone: of many that change nothing, about one in twenty leaves 0 out. "
    "± is the standard deviation over seeds. Students that cost the same in use share one measurement of it. "
    "The winner is chosen on validation; test decides nothing."
)


def render(
    title: str, comparisons: Sequence[Comparison], pngs: Mapping[str, bytes], config_yaml: str, notes: Sequence[str]
) -> str:
    """The page as HTML; figures are PNGs by name, those of several data sets preceded by ``DATA_``."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    several = len(comparisons) > 1
    for comparison in comparisons:
        parts += _dataset(comparison, pngs, f"{comparison.data}_" if several else "")
    if several:
        parts += ["<h2>Gain and data</h2>", f'<div class="scroll lines">{gain_table(comparisons).to_html()}</div>']
        parts += [picture(pngs["gains"], "gains")] if "gains" in pngs else []
    if notes:
        parts += ["<h2>Notes</h2>", *[f'<p class="note">{html.escape(note)}</p>' for note in notes]]
    parts += [f'<p class="small">{html.escape(INTERVALS)}</p>']
    parts += ["<h2>Configuration</h2>", f"<pre>{html.escape(config_yaml)}</pre>"]
    return page(title, parts)


def _dataset(comparison: Comparison, pngs: Mapping[str, bytes], prefix: str) -> list[str]:
    own = rows(comparison)
    teacher = comparison.teacher.get("test/accuracy")
    facts = (
        f"{comparison.classes} classes, {comparison.images_per_class:.0f} training images a class, "
        f"{comparison.image_size} px; student {comparison.student}"
    )
    if teacher is not None:
        validation = comparison.teacher.get("val/accuracy")
        facts += f"; teacher {comparison.teacher_name}: {teacher:.2%} accuracy on test"
        facts += "" if validation is None else f", {validation:.2%} on validation"
    parts = [f"<h2>{html.escape(comparison.data)}</h2>", f"<p>{html.escape(verdict(own))}</p>"]
    parts += [f'<p class="small">{html.escape(facts)}.</p>']
    parts += [f'<div class="scroll lines">{comparison_table(own).to_html()}</div>']
    if marked := mark_explained({row.method: row.shared for row in own}):
        parts += [f'<p class="note">{html.escape(marked)}</p>']
    if comparison.sitting:
        parts += [f'<p class="small">{html.escape(conditions(comparison.sitting.to_json()))}</p>']
    parts += [f'<p class="note">{html.escape(note)}</p>' for note in comparison.notes]
    if comparison.left_out:
        items = "".join(f"<li>{html.escape(one.method)}: {html.escape(one.reason)}</li>" for one in comparison.left_out)
        parts += ["<h3>Left out</h3>", f"<ul>{items}</ul>"]
    reconstructed = [row.method for row in own if row.evidence == "reconstruction"]
    if reconstructed:
        named = html.escape(", ".join(reconstructed))
        warning = "reconstructions. Their sources leave choices open; published figures do not apply."
        parts += [f'<p class="note">{named}: {warning}</p>']
    names = [f"{prefix}{name}" for name in ("differences", "accuracy_against_training", "accuracy_against_latency")]
    return parts + [picture(pngs[name], name) for name in names if name in pngs]
