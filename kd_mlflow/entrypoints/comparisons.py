"""The record of a comparison: its rows, tables, figures and report, in the run of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kd_mlflow.config import CompareConfig, to_yaml
from kd_mlflow.distillers.names import CONTROL
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.reports import comparison_figures as figures
from kd_mlflow.reports.comparison import (
    SHARED,
    Cell,
    Comparison,
    comparison_table,
    gain_rows,
    gain_table,
    rows,
    verdict,
    winner,
)
from kd_mlflow.reports.comparison_html import render
from kd_mlflow.reports.data import RunView
from kd_mlflow.reports.figures import to_png
from kd_mlflow.tracking.runs import RunWriter

PROGRESS = {"val/accuracy": "val_accuracy", "test/accuracy": "test_accuracy"}
PROGRESS |= {name: name.removeprefix("efficiency/") for name in SHARED}


def report_rows(
    comparisons: Sequence[Comparison],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all data sets, a summary of each, and the gain on each if there are several; all plain types."""
    all_rows, datasets = [], []
    for comparison in comparisons:
        own = rows(comparison)
        all_rows += [{"data": comparison.data, **row.to_json()} for row in own]
        datasets.append(
            {
                "data": comparison.data,
                "classes": comparison.classes,
                "image_size": comparison.image_size,
                "teacher": comparison.teacher,
                "winner": winner(own),
                "verdict": verdict(own),
                "efficiency_in_turn": comparison.sitting.to_json() if comparison.sitting else None,
                "left_out": [{"method": one.method, "reason": one.reason} for one in comparison.left_out],
            }
        )
    return all_rows, datasets, gain_rows(comparisons) if len(comparisons) > 1 else []


def record_comparison(writer: RunWriter, config: CompareConfig, comparisons: Sequence[Comparison]) -> None:
    """Everything into the run: metrics a method, JSON, tables, figures, report."""
    all_rows, datasets, gains = report_rows(comparisons)
    writer.json("comparison.json", {"rows": all_rows, "datasets": datasets, "gains": gains})
    writer.tags({"kd.winner": ", ".join(str(one["winner"]) for one in datasets)})
    pngs, metrics = {}, {}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("figures", "tables"):
            (folder / name).mkdir()
        for comparison in comparisons:
            place = "" if len(comparisons) == 1 else f"{comparison.data}_"
            own = rows(comparison)
            metrics |= _metrics(own, "" if len(comparisons) == 1 else f"{comparison.data}/")
            table = comparison_table(own, comparison.left_out)
            (folder / "tables" / f"{place}comparison.csv").write_text(table.to_csv(), encoding="utf-8")
            pngs |= {f"{place}{name}": to_png(figure) for name, figure in _figures(comparison).items()}
        if gains:
            (folder / "tables" / "gains.csv").write_text(gain_table(comparisons).to_csv(), encoding="utf-8")
            pngs["gains"] = to_png(figures.gain_figure(comparisons))
        for name, png in pngs.items():
            (folder / "figures" / f"{name}.png").write_bytes(png)
        title = f"Comparison of {len({row['method'] for row in all_rows}) - 1} methods"
        page = render(title, comparisons, pngs, to_yaml(config), [])
        (folder / "report.html").write_text(page, encoding="utf-8")
        writer.artifact(folder)
    writer.final_metrics(metrics)


def cell_of(view: RunView, method: str, seed: int) -> Cell:
    """A finished run as a cell."""
    said = view.predictions.get("test")
    evidence = "" if method == CONTROL else method_class(method).source.evidence
    predicted, labels = (None, None) if said is None else (said.predicted, said.label)
    return Cell(method, seed, view.run_id, view.metrics, predicted, labels, evidence, view.shared)


def _figures(comparison: Comparison) -> dict[str, Any]:
    return {
        "accuracy_against_training": figures.accuracy_against(comparison, "efficiency/training_seconds_per_batch"),
        "accuracy_against_latency": figures.accuracy_against(comparison, figures.latency_measured(comparison)),
        "differences": figures.differences(rows(comparison)),
    }


def _metrics(own: Sequence[Any], prefix: str) -> dict[str, float]:
    """Each method's mean accuracies and ratios as metrics of the comparison, for MLflow's own tables and charts."""
    named = {}
    for row in own:
        for key, name in PROGRESS.items():
            if key in row.mean:
                named[f"{prefix}{row.method}/{name}"] = row.mean[key]
    return named
