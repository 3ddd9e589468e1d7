"""Writing a run: everything through MlflowClient with an explicit run id, never a global one."""

from __future__ import annotations

import getpass
import importlib.metadata
import logging
import os
import platform
import re
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from kd_mlflow.errors import InputError
from kd_mlflow.tracking import encode, flavor
from kd_mlflow.tracking.client import experiment_id, one_line, redact
from kd_mlflow.tracking.git import code_state
from kd_mlflow.tracking.interrupts import uninterrupted
from kd_mlflow.tracking.life import process_mark
from kd_mlflow.tracking.records import (
    RunRecord,
    download,
    find_runs,
    get_run,
    history,
    read_json,
    read_run,
)

__all__ = [
    "RunRecord",
    "RunWriter",
    "Status",
    "adopt_run_id",
    "download",
    "find_runs",
    "history",
    "read_json",
    "read_run",
]

Status = Literal["FINISHED", "FAILED", "KILLED"]

METRICS_A_BATCH = 1000
PARAMS_A_BATCH = 100
DIGEST_CHARACTERS = 36
SYSTEM_SECONDS = 2.0
# What MLflow calls a run for which nobody gave a name: an adjective, a noun and a number.
UNNAMED = re.compile(r"[a-z]+-[a-z]+-\d+")

logger = logging.getLogger(__name__)


def adopt_run_id() -> str | None:
    """The run that `mlflow run` made for this process, taken out of the environment.

    Taken out, so that neither a second run of this process nor a child process adopts it too.
    """
    return os.environ.pop("MLFLOW_RUN_ID", None) or None


class RunWriter:
    """One run being written. As a context manager it ends the run as the block ends.

    The block's normal end makes the run FINISHED, an exception FAILED, an interruption or an exit
    KILLED, each with its reason in the tag ``kd.reason``. A writer that is dropped without an end, or
    still open when the interpreter exits, makes it KILLED; only SIGKILL leaves a run RUNNING.

    >>> with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
    ...     run.metrics({"val/accuracy": 0.9}, step=1, timestamp_ms=1_700_000_000_000)  # doctest: +SKIP
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self._monitor: SystemMetricsMonitor | None = None
        self._unfinished = weakref.finalize(self, _abandon, client, run_id, os.getpid())

    @classmethod
    def open(
        cls,
        client: MlflowClient,
        *,
        role: str,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        run_id: str | None = None,
        parent_run_id: str | None = None,
    ) -> RunWriter:
        """A new run, or an existing one to go on with.

        Parameters
        ----------
        role:
            The tag ``kd.role``.
        experiment:
            Name of the experiment of a new run; an existing one stays in its own.
        run_id:
            A run to go on with, or the one from :func:`adopt_run_id`; it is set RUNNING again.
        parent_run_id:
            The run that this one is nested in.

        Raises
        ------
        InputError
            There is no run ``run_id``, or it is deleted.
        """
        own = {"kd.role": role, "kd.process": process_mark(), **tags}
        if parent_run_id:
            own["mlflow.parentRunId"] = parent_run_id
        if run_id is None:
            source = {"mlflow.source.name": "kd-mlflow", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
            created = client.create_run(experiment_id(client, experiment), tags=source, run_name=run_name)
            writer = cls(client, created.info.run_id)
        else:
            _reopen(client, run_id, run_name)
            writer = cls(client, run_id)
        try:
            writer.tags(own)
            writer._code()
        except BaseException as error:
            writer._end(error)
            raise
        return writer

    @property
    def experiment(self) -> str:
        """The name of the experiment that the run is in."""
        run = get_run(self.client, self.run_id)
        return self.client.get_experiment(run.info.experiment_id).name

    @uninterrupted()
    def params(self, values: Mapping[str, Any]) -> None:
        """Options as parameters ``cfg.<name>``, nested ones with dots, values cut at 6000 characters.

        A parameter cannot change in MLflow: one that the run has already keeps its first value.
        """
        known = get_run(self.client, self.run_id).data.params
        new = []
        for name, value in encode.flat_params(values).items():
            if name not in known:
                new.append(Param(name, value))
            elif known[name] != value:
                logger.warning("Run %s keeps %s = %s; it is %s now.", self.run_id, name, known[name], value)
        for first in range(0, len(new), PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, params=new[first : first + PARAMS_A_BATCH])

    @uninterrupted()
    def tags(self, values: Mapping[str, str]) -> None:
        """Tags, values cut at 8000 characters."""
        tags = [RunTag(key, encode.clean(str(value), encode.TAG_CHARACTERS)) for key, value in values.items()]
        for first in range(0, len(tags), PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, tags=tags[first : first + PARAMS_A_BATCH])

    @uninterrupted()
    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """One point of each metric, in one batch; the same points sent again change nothing.

        NaN stays NaN; SQL stores keep an infinity as the largest float, about 1.8e308.
        """
        points = [Metric(encode.name_of(name), float(value), timestamp_ms, step) for name, value in values.items()]
        for first in range(0, len(points), METRICS_A_BATCH):
            self.client.log_batch(self.run_id, metrics=points[first : first + METRICS_A_BATCH])

    def final_metrics(self, values: Mapping[str, float]) -> None:
        """Figures that have no curve; one that the run holds already with this value is not sent again."""
        known = get_run(self.client, self.run_id).data.metrics
        new = {name: value for name, value in values.items() if known.get(encode.name_of(name)) != float(value)}
        self.metrics(new, 0, int(time.time() * 1000))

    def text(self, path: str, content: str) -> None:
        """A text artifact."""
        with TemporaryDirectory() as scratch:
            file = Path(scratch) / PurePosixPath(path).name
            file.write_text(content, encoding="utf-8", errors="backslashreplace")
            self._upload(file, path)

    def json(self, path: str, obj: Any) -> None:
        """A JSON artifact; numpy values as numbers and lists, non-finite numbers as null."""
        self.text(path, encode.to_json(obj) + "\n")

    def table(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table as ``<path>.csv``, safe to open in a spreadsheet, and as ``<path>.json`` for MLflow's view."""
        path = path.removesuffix(".csv").removesuffix(".json")
        self.text(f"{path}.csv", encode.table_csv(rows))
        self.text(f"{path}.json", encode.table_json(rows))
        listed = encode.table_list(get_run(self.client, self.run_id).data.tags, f"{path}.json")
        self.tags(listed)

    def artifact(self, local: Path, folder: str = "") -> None:
        """A file, or the content of a folder, below ``folder`` of the run's artifacts."""
        if Path(local).is_dir():
            self.client.log_artifacts(self.run_id, str(local), folder or None)
        else:
            self.client.log_artifact(self.run_id, str(local), folder or None)

    @uninterrupted()
    def dataset(self, name: str, digest: str, profile: Mapping[str, Any], source: str, context: str) -> None:
        """The data as an input of the run, shown in MLflow's dataset column.

        Parameters
        ----------
        digest:
            Of the content; MLflow keeps 36 characters.
        profile:
            Numbers about the data, as JSON.
        context:
            What the run does with it: training, evaluation.
        """
        entity = Dataset(
            name=encode.clean(name, 500),
            digest=digest[:DIGEST_CHARACTERS],
            source_type="local",
            source=encode.to_json({"uri": redact(source)}, indent=None),
            profile=encode.to_json(profile, indent=None),
        )
        self.client.log_inputs(self.run_id, [DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

    def environment(self) -> None:
        """Python, platform and every installed distribution with its version, as ``environment.txt``."""
        installed = {
            f"{found.metadata['Name']}=={found.version}"
            for found in importlib.metadata.distributions()
            if found.metadata["Name"]
        }
        head = [
            f"# Python {platform.python_version()} ({platform.python_implementation()})",
            f"# {platform.platform()}",
        ]
        self.text("environment.txt", "\n".join([*head, *sorted(installed, key=str.lower)]) + "\n")

    def model(self, folder: Path, classes: Sequence[str], image_size: int, metrics: Mapping[str, float]) -> str:
        """The model folder as a LoggedModel with its figures and data set; returns its id (``m-…``), READY."""
        return flavor.log_model(self.client, self.run_id, folder, classes, image_size, metrics)

    def start_system_metrics(self) -> None:
        """Record processor, memory, disk, network and GPU every two seconds until the run ends.

        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides the two seconds.
        """
        if self._monitor is not None:
            return
        try:
            self._monitor = SystemMetricsMonitor(
                self.run_id,
                sampling_interval=SYSTEM_SECONDS,
                resume_logging=True,
                tracking_uri=self.client.tracking_uri,
            )
            self._monitor.start()
        except Exception as error:  # a figure less is no reason to lose the run
            logger.warning("System metrics are not recorded: %s", one_line(error))
            self._monitor = None

    def stop_system_metrics(self) -> None:
        """Stop recording and send what is left."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()

    @uninterrupted()
    def finish(self, status: Status, reason: str = "") -> None:
        """End the run; ``reason`` goes into the tag ``kd.reason``."""
        self.stop_system_metrics()
        if reason:
            self.tags({"kd.reason": reason})
        self.client.set_terminated(self.run_id, status)
        self._unfinished.detach()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._unfinished.alive:
            return  # ended inside the block, with a reason of its own
        if error is not None:
            self._end(error)
        else:
            self.finish("FINISHED")

    def _end(self, error: BaseException) -> None:
        """End the run as the exception says, without taking its place."""
        status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
        reason = f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__
        for _ in range(2):
            try:
                return self.finish(status, reason)
            except KeyboardInterrupt:  # an impatient second Ctrl-C must not leave the run RUNNING
                continue
            except Exception as failure:
                logger.error("Run %s could not be marked %s: %s", self.run_id, status, one_line(failure))
                self._unfinished.detach()  # trying once more at exit would only wait for the store again
                return None
        return None

    def _code(self) -> None:
        """The commit of this code, whether it was changed since, and how."""
        state = code_state()
        if state is None:
            return
        found = {"kd.git.dirty": str(state.dirty).lower()}
        if state.commit:
            found["mlflow.source.git.commit"] = state.commit
        self.tags(found)
        if state.diff:
            self.text("git.diff", state.diff)

    def _upload(self, file: Path, path: str) -> None:
        parent = str(PurePosixPath(path).parent)
        self.client.log_artifact(self.run_id, str(file), None if parent == "." else parent)


def _reopen(client: MlflowClient, run_id: str, run_name: str) -> None:
    run = get_run(client, run_id)
    if run.info.lifecycle_stage == "deleted":
        raise InputError(f"Run {run_id} is deleted; bring it back with `mlflow runs restore --run-id {run_id}`.")
    # Before the run is RUNNING again: whoever looks for dead processes shall not find the old one.
    client.set_tag(run_id, "kd.process", process_mark())
    unnamed = not run.info.run_name or UNNAMED.fullmatch(run.info.run_name)
    client.update_run(run_id, status="RUNNING", name=run_name if unnamed else None)
    if "kd.reason" in run.data.tags:
        client.delete_tag(run_id, "kd.reason")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return str(os.getuid())


def _abandon(client: MlflowClient, run_id: str, process: int) -> None:
    """End a run whose writer is gone; in the process that opened it, not in a fork of that."""
    if os.getpid() == process:
        client.set_terminated(run_id, "KILLED")
