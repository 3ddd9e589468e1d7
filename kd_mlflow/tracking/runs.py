"""Writing a run: everything through MlflowClient with an explicit run id, never a global one."""

from __future__ import annotations

import getpass
import importlib.metadata
import logging
import os
import platform
import shutil
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from mlflow import MlflowClient

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.places import SPOOL, home, home_folder
from kd_mlflow.tracking import encode
from kd_mlflow.tracking.client import experiment_id, one_line, redact
from kd_mlflow.tracking.existing import Status, adopt_run_id, check_artifact_root, check_open, end_run, reopen
from kd_mlflow.tracking.flavor import MODEL_FILES, check_model_folder
from kd_mlflow.tracking.git import code_state
from kd_mlflow.tracking.life import HEARTBEAT, heartbeat, process_mark
from kd_mlflow.tracking.monitor import Monitor
from kd_mlflow.tracking.records import (
    RunRecord,
    download,
    find_runs,
    get_run,
    history,
    read_json,
    read_run,
)
from kd_mlflow.tracking.spool import Spool

__all__ = [
    "RunRecord",
    "RunWriter",
    "Status",
    "adopt_run_id",
    "download",
    "end_run",
    "find_runs",
    "history",
    "read_json",
    "read_run",
]

DIGEST_CHARACTERS = 36
# How long what is over waits for the store to take it; and what is cut off.
PATIENCE_SECONDS, ENDING_SECONDS = 900.0, 10.0

logger = logging.getLogger(__name__)


class RunWriter:
    """One run being written. As a context manager it ends the run as the block ends.

    What it is given is on the local disk when a method returns, and goes from there to the store in order
    (see :mod:`kd_mlflow.tracking.spool`); after :meth:`settle`, and when the run has ended, all of it is there.

    The block's normal end makes the run FINISHED, an exception FAILED, an interruption or an exit
    KILLED, each with its reason in the tag ``kd.reason``. A writer that is dropped without an end, or
    still open when the interpreter exits, makes it KILLED; only SIGKILL leaves a run RUNNING.

    >>> with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
    ...     run.metrics({"val/accuracy": 0.9}, step=1, timestamp_ms=1_700_000_000_000)  # doctest: +SKIP
    """

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client = client
        self.run_id = run_id
        self.spool = Spool(client, run_id, home() / SPOOL)
        self._monitor: Monitor | None = None
        self._ended = False
        self._unfinished = weakref.finalize(self, _abandon, self.spool, os.getpid())

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
            There is no run ``run_id``, it is deleted, its artifacts cannot be written on this machine, or the spool
            cannot be.
        KdMlflowError
            Another process is writing it, or the store went away.
        """
        home_folder(SPOOL)  # what cannot be written is refused before the store has a run of it
        own = {"kd.role": role, "kd.process": process_mark(), HEARTBEAT: heartbeat(), **tags}
        if parent_run_id:
            own["mlflow.parentRunId"] = parent_run_id
        if run_id is None:
            source = {"mlflow.source.name": "kd-mlflow", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
            own = {key: encode.clean(str(value), encode.TAG_CHARACTERS) for key, value in own.items()}
            created = client.create_run(experiment_id(client, experiment), tags=source | own, run_name=run_name)
            writer = cls(client, created.info.run_id)
        else:
            check_open(client, run_id)
            writer = cls(client, run_id)
        try:
            if run_id is not None:
                writer.settle()  # what an earlier process left, its end among it
                reopen(client, run_id, run_name, own)
            check_artifact_root(client, writer.run_id)
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

    def params(self, values: Mapping[str, Any]) -> None:
        """Options as parameters ``cfg.<name>``, nested ones with dots, values cut at 6000 characters.

        A parameter cannot change in MLflow: one that the run has already keeps its first value.
        """
        self.spool.put({"params": encode.flat_params(values)})

    def tags(self, values: Mapping[str, str]) -> None:
        """Tags, values cut at 8000 characters."""
        self.spool.put({"tags": {key: encode.clean(str(v), encode.TAG_CHARACTERS) for key, v in values.items()}})

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """One point of each metric; the same points given again change nothing.

        NaN stays NaN; SQL stores keep an infinity as the largest float, about 1.8e308.
        """
        self.spool.metrics(values, step, timestamp_ms)

    def final_metrics(self, values: Mapping[str, float]) -> None:
        """Figures that have no curve; one that the run holds already with this value is no new point."""
        self.spool.put({"final": encode.numbers(values), "timestamp": time.time_ns() // 1_000_000})

    def text(self, path: str, content: str) -> None:
        """A text artifact."""
        self._files({path: content}, {})

    def json(self, path: str, obj: Any) -> None:
        """A JSON artifact; numpy values as numbers and lists, non-finite numbers as null."""
        self.text(path, encode.to_json(obj) + "\n")

    def table(self, path: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table as ``<path>.csv``, safe to open in a spreadsheet, and as ``<path>.json`` for MLflow's view."""
        path = path.removesuffix(".csv").removesuffix(".json")
        files = {f"{path}.csv": encode.table_csv(rows), f"{path}.json": encode.table_json(rows)}
        self._files(files, {"table": f"{path}.json"})

    def artifact(self, local: Path, folder: str = "") -> None:
        """A file, or the content of a folder, below ``folder`` of the run's artifacts."""

        def fill(place: Path) -> None:
            if local.is_dir():
                shutil.copytree(local, place, dirs_exist_ok=True)
            else:
                shutil.copyfile(local, place / local.name)

        self.spool.put_files(fill, {"artifacts": folder})

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
        told = {
            "name": encode.clean(name, 500),
            "digest": digest[:DIGEST_CHARACTERS],
            "source": encode.to_json({"uri": redact(source)}, indent=None),
            "profile": encode.to_json(profile, indent=None),
            "context": context,
        }
        self.spool.put({"dataset": told})

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

    def model(self, folder: Path, classes: Sequence[str], image_size: int, metrics: Mapping[str, float]) -> None:
        """The model folder as a LoggedModel with its figures and data set, READY once it is in the store.

        Raises
        ------
        InputError
            The folder lacks one of the model's files.
        """
        check_model_folder(folder)
        told = {"classes": list(classes), "image_size": image_size, "metrics": encode.numbers(metrics)}

        def fill(place: Path) -> None:
            for name in MODEL_FILES:
                shutil.copyfile(folder / name, place / name)

        self.spool.put_files(fill, {"model": told})

    def start_system_metrics(self) -> None:
        """Record processor, memory, disk, network and GPU every two seconds until the run ends.

        MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL overrides the two seconds.
        """
        if self._monitor is not None:
            return
        try:
            self._monitor = Monitor(self.run_id, self.client.tracking_uri, self.spool)
            self._monitor.start()
        except Exception as error:  # a figure less is no reason to lose the run
            logger.warning("System metrics are not recorded: %s", one_line(error))
            self._monitor = None

    def stop_system_metrics(self) -> None:
        """Stop recording."""
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.finish()

    def settle(self, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the store has all that was given.

        Raises
        ------
        KdMlflowError
            It stayed away for so long, or refuses; nothing is lost.
        """
        if not self.spool.flush(seconds):
            raise self._away(seconds)

    def finish(self, status: Status, reason: str = "") -> None:
        """End the run; ``reason`` goes into the tag ``kd.reason``.

        Raises
        ------
        KdMlflowError
            The store stayed away from a run that is FINISHED; its end is kept on disk like all that was given.
        """
        self.stop_system_metrics()
        if not self._ended:
            if reason:
                self.tags({"kd.reason": reason})
            self.spool.put({"end": status, "at": time.time_ns() // 1_000_000})
            self._ended = True
        self._unfinished.detach()
        seconds = PATIENCE_SECONDS if status == "FINISHED" else ENDING_SECONDS
        if self.spool.close(seconds):
            return
        if status == "FINISHED":
            raise self._away(seconds)
        logger.warning("%s", self._away(seconds))

    def _away(self, seconds: float) -> KdMlflowError:
        if self.spool.refused:
            return KdMlflowError(f"The store refuses what run {self.run_id} was given: {self.spool.error}")
        why = f" ({self.spool.error})" if self.spool.error else ""
        return KdMlflowError(
            f"The tracking store has not answered for {seconds:.0f} seconds{why}. What run {self.run_id} was given is "
            "kept on disk: `kd-mlflow sync` sends it, and --resume goes on."
        )

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
                return self._end_at_once(status, reason, failure)
        return None

    def _end_at_once(self, status: Status, reason: str, failure: Exception) -> None:
        """Past the local disk, which takes nothing more."""
        self._unfinished.detach()  # trying once more at exit would only fail again
        logger.error("%s", one_line(failure))
        try:
            end_run(self.client, self.run_id, status, reason)
        except Exception as error:
            logger.error("Run %s could not be marked %s: %s", self.run_id, status, one_line(error))

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

    def _files(self, files: Mapping[str, str], more: Mapping[str, str]) -> None:
        """Texts by their paths among the artifacts, which have one folder."""
        folder = str(PurePosixPath(next(iter(files))).parent)

        def fill(place: Path) -> None:
            for path, content in files.items():
                (place / PurePosixPath(path).name).write_text(content, encoding="utf-8", errors="backslashreplace")

        self.spool.put_files(fill, {"artifacts": "" if folder == "." else folder, **more})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return str(os.getuid())


def _abandon(spool: Spool, process: int) -> None:
    """End a run whose writer is gone; in the process that opened it, not in a fork of that."""
    if os.getpid() == process:
        spool.put({"end": "KILLED", "at": time.time_ns() // 1_000_000})
        spool.close(ENDING_SECONDS)
