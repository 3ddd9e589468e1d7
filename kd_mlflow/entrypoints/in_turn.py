"""What networks cost in use, measured in one sitting at the end of a command, outside all training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from kd_mlflow.entrypoints.evaluate import network_of_run
from kd_mlflow.entrypoints.machine import IN_TURN, watched
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import KdMlflowError
from kd_mlflow.measures.in_turn import Sitting, measure_in_turn
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.reports.comparison import CONTROL, Cell
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.runs import RunWriter

ARTIFACT = "efficiency_in_turn.json"
# Figures of a run that two networks share only if they cost the same in use.
COUNTS = tuple(f"efficiency/{name}" for name in ("parameters_total", "buffers_total", "flops"))

log = logging.getLogger(__name__)


def measure_views(
    session: Session, writer: RunWriter, teacher: Classifier | None, views: Sequence[RunView], student: Classifier
) -> tuple[list[RunView], Sitting | None]:
    """Measure teacher, control and student in turn, and record it in the student's run.

    Parameters
    ----------
    teacher:
        The first one; None for a method without.
    views:
        What was recorded of all networks, the student's last.

    Returns
    -------
    The views with the ratios among their metrics, and the sitting; None if there is nothing to compare with.
    """
    control = next((view for view in views if view.role == "control"), None)
    beside = _loaded(session, control.run_id) if control else None
    networks = {"teacher": teacher, "control": beside, "student": student}
    sitting = _sit(session, writer, {role: model for role, model in networks.items() if model is not None})
    if sitting is None:
        return list(views), None
    shared = {IN_TURN: sitting.shared} if sitting.shared else {}
    writer.final_metrics(_metrics(sitting, "student"))
    writer.json(ARTIFACT, sitting.to_json())
    first = next((view for view in views if view.role == "teacher"), None)
    told = []
    for view in views:
        measured = view.role in sitting.networks and (view.role != "teacher" or view is first)
        metrics = view.metrics | _metrics(sitting, view.role) if measured else view.metrics
        told.append(replace(view, metrics=metrics, shared={**view.shared, **shared} if measured else view.shared))
    return told, sitting


def measure_cells(
    session: Session, writer: RunWriter, teacher: Classifier | None, cells: Sequence[Cell]
) -> tuple[list[Cell], Sitting | None]:
    """Measure the teacher and each distinct network among the cells in turn.

    Cells whose networks have the same counts share a measurement: they do not differ in cost.

    Returns
    -------
    The cells with the ratios of this sitting among their metrics and no others, and the sitting.
    """
    cells = [replace(cell, metrics={k: v for k, v in cell.metrics.items() if "_ratio_to_" not in k}) for cell in cells]
    distinct: dict[tuple[float | None, ...], list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.method != CONTROL):
        distinct.setdefault(_counts(cell), []).append(cell)
    names = {key: _name(alike, teacher is not None, len(distinct) == 1) for key, alike in distinct.items()}
    networks: dict[str, Classifier | None] = {"teacher": teacher}
    networks |= {name: _loaded(session, distinct[key][0].run_id) for key, name in names.items()}
    sitting = _sit(session, writer, {name: model for name, model in networks.items() if model is not None})
    if sitting is None:
        return cells, None
    return [
        replace(cell, metrics=cell.metrics | _metrics(sitting, names[_counts(cell)]))
        if names[_counts(cell)] in sitting.networks
        else cell
        for cell in cells
    ], sitting


def _sit(session: Session, writer: RunWriter, networks: Mapping[str, Classifier]) -> Sitting | None:
    if len(networks) < 2:
        return None
    try:
        with watched(session, writer, IN_TURN) as seen:
            sitting = measure_in_turn(networks, image_size=session.store.image_size, device=session.device)
    except torch.OutOfMemoryError as error:
        log.warning("The networks are not measured in turn: %s", error)
        return None
    return replace(sitting, shared=str(seen[0])) if seen and seen[0].shared else sitting


def _loaded(session: Session, run_id: str) -> Classifier | None:
    """A finished run's network; None, and a line, if its files are gone: no figure is worth a finished training."""
    try:
        return network_of_run(session.client, run_id).model
    except (KdMlflowError, OSError) as error:
        session.terminal.warn(f"The network of run {run_id} cannot be measured beside the others: {error}")
        return None


def _metrics(sitting: Sitting, name: str) -> dict[str, float]:
    return {f"efficiency/{key}": value for key, value in sitting.ratios(name).items()}


def _name(alike: Sequence[Cell], taught: bool, only: bool) -> str:
    """What networks that cost the same are called beside a teacher, or as what ratios refer to."""
    if not taught and alike[0].method == CONTROL:
        return "control"
    return "student" if only else ", ".join(dict.fromkeys(cell.method for cell in alike))


def _counts(cell: Cell) -> tuple[float | None, ...]:
    return tuple(cell.metrics.get(name) for name in COUNTS)
