"""The record of a search in its run: the trials, the figures, the best configuration, the report."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kd_mlflow.config import DistillConfig, to_yaml
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.finals import Finals
from kd_mlflow.entrypoints.recipes import with_resolved_method
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import Teacher
from kd_mlflow.reports.efficiency import conditions
from kd_mlflow.reports.search import final_table, render, trial_table
from kd_mlflow.search.figures import study_figures
from kd_mlflow.search.ledger import FrozenTrial
from kd_mlflow.search.status import describe, status
from kd_mlflow.search.study import SearchStudy
from kd_mlflow.tracking.runs import RunWriter


def record_search(
    session: Session,
    study: SearchStudy,
    writer: RunWriter,
    teachers: Sequence[Teacher],
    best: Sequence[FrozenTrial],
    finals: Finals | None,
    notes: Sequence[str],
) -> None:
    """Everything into the search's run; a search that goes on later writes it anew."""
    now, chosen = status(study), describe(study, best[0])
    rows = [describe(study, trial) for trial in study.ledger().trials]
    figures = study_figures(study.study, [one.name for one in study.objectives])
    table = final_table(finals.cells, teachers[0].view.metrics if teachers else {}) if finals else None
    config = finals.config if finals else _best_config(study, best[0], teachers)
    facts = [_standing(now.trials), *([finals.verdict] if finals else []), *notes]
    facts += [conditions(finals.sitting.to_json())] if finals and finals.sitting else []
    if len(study.objectives) > 1:
        facts.append(f"The Pareto set: trials {', '.join(str(trial.number) for trial in best)}.")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("figures", "tables"):
            (folder / name).mkdir()
        for name, png in figures.pngs.items():
            (folder / "figures" / f"{name}.png").write_bytes(png)
        (folder / "figures" / "study.html").write_text(figures.page, encoding="utf-8")
        (folder / "trials.csv").write_text(trial_table(rows).to_csv(), encoding="utf-8")
        if table is not None:
            (folder / "tables" / "finals.csv").write_text(table.to_csv(), encoding="utf-8")
        (folder / "best.yaml").write_text(to_yaml(config), encoding="utf-8")
        page = render(
            f"Search {study.name}", facts, chosen, table, figures.pngs, figures.missing, to_yaml(study.config)
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        writer.artifact(folder)
    writer.json(
        "search.json", {"status": now.to_json(), "trials": rows, "finals": finals.to_json() if finals else None}
    )
    writer.final_metrics(_metrics(now.trials, chosen, finals))
    tags = {"kd.best_trial": str(best[0].number), "kd.best_run_id": str(chosen["run_id"])}
    if finals:
        tags |= {"kd.winner": finals.winner, "mlflow.note.content": html.escape(finals.verdict)}
    writer.tags(tags)


def _best_config(study: SearchStudy, best: FrozenTrial, teachers: Sequence[Teacher]) -> DistillConfig:
    config = with_resolved_method(study.config.trial(best.user_attrs["values"], study.config.seed))
    uris = tuple(teacher.uri for teacher in teachers[: method_class(config.method).teacher_count[1]])
    return config.model_copy(update={"teacher": uris or ("auto",)})


def _standing(counts: dict[str, int]) -> str:
    said = f"{counts['finished']} of {counts['total']} trials: {counts['complete']} complete, {counts['pruned']} pruned"
    said += f", {counts['failed']} failed"
    return said + (f"; {counts['abandoned']} attempts were cut off and done again." if counts["abandoned"] else ".")


def _metrics(counts: dict[str, int], best: dict[str, Any], finals: Finals | None) -> dict[str, float]:
    metrics = {f"trials/{name}": float(value) for name, value in counts.items() if name not in ("running", "waiting")}
    metrics |= {f"search/{name}": value for name, value in best["values"].items()}
    if finals:
        metrics |= {f"finals/{name}/{finals.objective}": value for name, value in finals.means.items()}
        if finals.difference:
            metrics["finals/best_minus_defaults/test/accuracy"] = finals.difference.mean
        if finals.minus_control:
            metrics["finals/winner_minus_control/test/accuracy"] = finals.minus_control.mean
    return metrics
