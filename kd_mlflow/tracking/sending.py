"""What waits in a run's journal, put into the store: each kind of record by its own call, each safe to repeat."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

from kd_mlflow.errors import InputError
from kd_mlflow.tracking import encode, flavor
from kd_mlflow.tracking.journal import records
from kd_mlflow.tracking.records import get_run

POINTS_A_BATCH = 1000
ENTRIES_A_BATCH = 100

log = logging.getLogger(__name__)


def send(
    client: MlflowClient, run_id: str, journal: Path, files: Path, start: int, reached: Callable[[int], None]
) -> None:
    """Every whole record from a place on, in order.

    Parameters
    ----------
    files:
        The folder of the folders that records name.
    reached:
        Is told the place behind each record that the store has.
    """
    points: list[Metric] = []
    place = start
    for behind, record in records(journal, start):
        own = _points(record)
        if points and (own is None or len(points) + len(own) > POINTS_A_BATCH):
            _log_points(client, run_id, points)
            reached(place)
            points = []
        if own is None:
            deliver(client, run_id, record, files)
            reached(behind)
        else:
            points += own
        place = behind
    if points:
        _log_points(client, run_id, points)
        reached(place)


def deliver(client: MlflowClient, run_id: str, record: Mapping[str, Any], files: Path) -> None:
    """One record other than points of curves.

    Raises
    ------
    InputError
        Its files are not what they were when they were given, or it is of a kind that is not known.
    """
    (kind,) = record.keys() & _KINDS.keys() or {""}
    if not kind:
        raise InputError(f"The journal of run {run_id} was written by another version of this package.")
    folder = files / record["files"] if "files" in record else files
    if "files" in record:
        check_files(folder, record["digests"])
    _KINDS[kind](client, run_id, record, folder)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path in it."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        with file.open("rb") as handle:
            found[file.relative_to(folder).as_posix()] = hashlib.file_digest(handle, "sha256").hexdigest()
    return found


def check_files(folder: Path, expected: Mapping[str, str]) -> None:
    """Raise an InputError unless a folder holds these very files."""
    if digests(folder) != expected:
        raise InputError(f"The files in {folder} are not those that were recorded; they are not sent.")


def _points(record: Mapping[str, Any]) -> list[Metric] | None:
    if "metrics" not in record or "step" not in record:
        return None
    return [
        Metric(encode.name_of(name), float(value), record["timestamp"], record["step"])
        for name, value in record["metrics"].items()
    ]


def _log_points(client: MlflowClient, run_id: str, points: list[Metric]) -> None:
    for first in range(0, len(points), POINTS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + POINTS_A_BATCH])


def _final(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    """Figures without a curve; one that the run holds already with this value is not a new point."""
    known = get_run(client, run_id).data.metrics
    values = {encode.name_of(name): float(value) for name, value in record["final"].items()}
    new = [Metric(name, value, record["timestamp"], 0) for name, value in values.items() if known.get(name) != value]
    _log_points(client, run_id, new)


def _params(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    """A parameter cannot change in MLflow: one that the run has already keeps its first value."""
    known = get_run(client, run_id).data.params
    new = []
    for name, value in record["params"].items():
        if name not in known:
            new.append(Param(name, value))
        elif known[name] != value:
            log.warning("Run %s keeps %s = %s; it is %s now.", run_id, name, known[name], value)
    for first in range(0, len(new), ENTRIES_A_BATCH):
        client.log_batch(run_id, params=new[first : first + ENTRIES_A_BATCH])


def _tags(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    tags = [RunTag(key, value) for key, value in record["tags"].items()]
    for first in range(0, len(tags), ENTRIES_A_BATCH):
        client.log_batch(run_id, tags=tags[first : first + ENTRIES_A_BATCH])


def _artifacts(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    client.log_artifacts(run_id, str(folder), record["artifacts"] or None)
    if table := record.get("table"):
        _tags(client, run_id, {"tags": encode.table_list(get_run(client, run_id).data.tags, table)}, folder)


def _dataset(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    told = dict(record["dataset"])
    tag = InputTag("mlflow.data.context", told.pop("context"))
    client.log_inputs(run_id, [DatasetInput(Dataset(source_type="local", **told), [tag])])


def _model(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    told = record["model"]
    flavor.log_model(client, run_id, folder, told["classes"], told["image_size"], told["metrics"])


def _end(client: MlflowClient, run_id: str, record: Mapping[str, Any], folder: Path) -> None:
    client.set_terminated(run_id, record["end"], record["at"])


_KINDS: dict[str, Callable[[MlflowClient, str, Mapping[str, Any], Path], None]] = {
    "final": _final,
    "params": _params,
    "tags": _tags,
    "artifacts": _artifacts,
    "dataset": _dataset,
    "model": _model,
    "end": _end,
}
