"""All runs of the store in one list, best first."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import active_experiments, one_line, require_not_deleted
from kd_mlflow.tracking.records import RunRecord, quote, search

# A column's figure is the first of these metrics that the run has: the selected epoch's, else the last.
COLUMNS: dict[str, tuple[str, ...]] = {
    "val_accuracy": ("best/accuracy", "val/accuracy"),
    "val_loss": ("best/negative_log_likelihood", "val/loss"),
    "test_accuracy": ("test/accuracy",),
    "test_macro_f1": ("test/macro_f1",),
    "parameters": ("efficiency/parameters_total",),
    "flops": ("efficiency/flops",),
    "latency_ms_b1_median": ("efficiency/latency_ms_b1_median",),
    "throughput_images_per_s": ("efficiency/throughput_images_per_s",),
}


def leaderboard(
    client: MlflowClient,
    *,
    role: str | None = None,
    status: str | None = None,
    experiment: str | None = None,
    filter_string: str = "",
    sort: str = "val/accuracy",
    ascending: bool = False,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """One object a run of ours, in whatever state, deleted ones left out.

    Parameters
    ----------
    role, status, experiment:
        Only runs of this role, in this state (RUNNING, FINISHED, FAILED, KILLED), of this experiment.
    filter_string:
        An MLflow filter: ``metrics.`test/accuracy` > 0.9 and params.`cfg.method` = 'kd'``.
    sort:
        A key of the objects, or the name of any metric; runs without it come last.
    limit:
        The number of objects.

    Returns
    -------
    list of dict
        ``run_id``, ``role``, ``status``, ``name``, ``experiment``, ``start`` (ISO 8601, UTC),
        ``duration_s`` (of a running one: so far), ``data``, ``architecture``, ``method``, and the
        figures of :data:`COLUMNS`, None where the run has none.

    Raises
    ------
    InputError
        An unknown state, experiment or sort key, or a filter that MLflow cannot read.
    """
    experiments = _experiments(client, experiment)
    wanted = [_role(role), *_status(status), *([filter_string] if filter_string.strip() else [])]
    try:
        runs = search(client, " and ".join(wanted), list(experiments))
    except MlflowException as error:
        raise InputError(f"The filter {filter_string!r} cannot be used: {one_line(error)}") from None
    rows = [(_row(run, experiments[run.experiment_id]), run) for run in runs]
    keyed = [(_key(row, run, sort), row) for row, run in rows]
    if rows and sort not in rows[0][0] and _column(sort) is None and all(key is None for key, _ in keyed):
        raise InputError(f"No run has a metric '{sort}' to sort by; the columns are {', '.join(rows[0][0])}.")
    present = sorted((item for item in keyed if item[0] is not None), key=lambda item: item[0], reverse=not ascending)
    absent = [item for item in keyed if item[0] is None]
    return [row for _, row in [*present, *absent]][:limit]


def _experiments(client: MlflowClient, name: str | None) -> dict[str, str]:
    known = active_experiments(client)
    if not name:
        return known
    found = {number: title for number, title in known.items() if title == name}
    if not found:
        require_not_deleted(client, name)
        raise InputError(f"There is no experiment '{name}' in this store; it has {', '.join(sorted(known.values()))}.")
    return found


def _role(role: str | None) -> str:
    return f"tags.`kd.role` = {quote(role)}" if role else "tags.`kd.role` LIKE '%'"


def _status(status: str | None) -> list[str]:
    if not status:
        return []
    known = [RunStatus.to_string(number) for number in RunStatus.all_status()]
    if status.upper() not in known:
        raise InputError(f"'{status}' is no state of a run; choose one of {', '.join(known)}.")
    return [f"attributes.status = '{status.upper()}'"]


def _row(run: RunRecord, experiment: str) -> dict[str, Any]:
    start = datetime.fromtimestamp(run.start_time / 1000, UTC)
    end = datetime.fromtimestamp(run.end_time / 1000, UTC) if run.end_time else datetime.now(UTC)
    return {
        "run_id": run.run_id,
        "role": run.role,
        "status": run.status,
        "name": run.name,
        "experiment": experiment,
        "start": start.isoformat(timespec="seconds"),
        "duration_s": round((end - start).total_seconds(), 1),
        "data": run.tags.get("kd.dataset"),
        "architecture": run.tags.get("kd.architecture"),
        "method": run.tags.get("kd.method"),
        **{column: _figure(run, metrics) for column, metrics in COLUMNS.items()},
    }


def _figure(run: RunRecord, metrics: tuple[str, ...]) -> float | None:
    """The first that is there and finite: JSON knows neither NaN nor infinity."""
    return next((run.metrics[name] for name in metrics if math.isfinite(run.metrics.get(name, math.nan))), None)


def _column(sort: str) -> str | None:
    """The column that shows this metric, if there is one."""
    return next((column for column, metrics in COLUMNS.items() if sort in metrics), None)


def _key(row: dict[str, Any], run: RunRecord, sort: str) -> Any:
    column = sort if sort in row else _column(sort)
    return row[column] if column else _figure(run, (sort,))
