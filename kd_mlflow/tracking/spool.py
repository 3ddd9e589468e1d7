"""Curves on their way to the store: first into a journal on the local disk, then sent by a thread that keeps at it.

Training never waits for the server. What was not sent when the process ends stays in the journal; a point that is sent
twice with the same moment is one point (SQL stores pass over it), so that sending again is always right.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Metric

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.tracking import encode
from kd_mlflow.tracking.client import one_line
from kd_mlflow.tracking.journal import Journal, records

POINTS_A_BATCH = 1000
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
ANSWER_SECONDS = 30.0
SUFFIX = ".journal"

log = logging.getLogger(__name__)


class Spool:
    """The curves of one run, from this process.

    Attributes
    ----------
    error:
        Why the store did not take the last that was sent; empty while it does.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self.client, self.run_id = client, run_id
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / f"{run_id}.lock")
        try:
            self.lock.acquire(timeout=ANSWER_SECONDS)
        except Timeout:
            raise KdMlflowError(f"The curves of run {run_id} are being written by another process.") from None
        self.journal = Journal(folder / f"{run_id}{SUFFIX}")
        self.sent = 0
        self.error = ""
        self.changed = threading.Condition()
        self.over = False
        self.thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self.thread.start()

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """One point of each metric; returns as soon as the local disk has them."""
        try:
            self.journal.append({"metrics": _plain(values), "step": step, "timestamp": timestamp_ms})
        except OSError as error:
            raise KdMlflowError(
                f"{self.journal.path} cannot be written ({error.strerror}); make room and go on with --resume."
            ) from None
        with self.changed:
            self.changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was given is in the store; False if that takes longer."""
        with self.changed:
            return self.changed.wait_for(lambda: self.sent >= self.journal.end, seconds)

    def close(self, seconds: float) -> bool:
        """Flush, and stop; a journal that is sent whole is removed. Whether it is."""
        done = False
        try:
            done = self.flush(seconds)
        finally:
            with self.changed:
                self.over = True
                self.changed.notify_all()
            self.thread.join(timeout=5)
            self.journal.close()
            if done:
                _remove(self.journal.path)
            self.lock.release()
        return done

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.over or self.sent < self.journal.end)
                if self.over:
                    return
            try:
                reached = send(self.client, self.run_id, self.journal.path, self.sent)
                if reached == self.sent:
                    raise OSError(f"{self.journal.path} was altered while it was written")
            except Exception as error:  # whatever it is, the training goes on and it is tried again
                self.error = one_line(error)
                log.log(
                    logging.WARNING if pause == FIRST_PAUSE else logging.INFO,
                    "Curves of run %s are kept on disk until the store takes them: %s", self.run_id, self.error,
                )  # fmt: skip
                with self.changed:
                    self.changed.wait_for(lambda: self.over, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, self.error = FIRST_PAUSE, ""
            with self.changed:
                self.sent = reached
                self.changed.notify_all()


@dataclass(frozen=True)
class Sent:
    """What became of a journal that an earlier process left."""

    run_id: str
    points: int
    error: str = ""


def send(client: MlflowClient, run_id: str, journal: Path, start: int = 0) -> int:
    """Every whole record from a place on, in batches; the place that was reached."""
    points: list[Metric] = []
    reached = start
    for behind, record in records(journal, start):
        own = _points(record)
        if points and len(points) + len(own) > POINTS_A_BATCH:
            _log(client, run_id, points)
            points = []
        points += own
        reached = behind
    if points:
        _log(client, run_id, points)
    return reached


def send_left(client: MlflowClient, folder: Path) -> list[Sent]:
    """Send what earlier processes left; journals of processes that live are theirs."""
    found = []
    for journal in sorted(folder.glob(f"*{SUFFIX}")):
        run_id = journal.name.removesuffix(SUFFIX)
        lock = FileLock(folder / f"{run_id}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            points = sum(len(_points(record)) for _, record in records(journal))
            send(client, run_id, journal)
            _remove(journal)
            if points:
                found.append(Sent(run_id, points))
        except Exception as error:  # each store has exceptions of its own; the next journal may be of another run
            found.append(Sent(run_id, 0, one_line(error)))
        finally:
            lock.release()
    return found


def forget(folder: Path, run_id: str) -> None:
    """Remove what waits for a run that nobody wants any more."""
    _remove(folder / f"{run_id}{SUFFIX}")


def _remove(journal: Path) -> None:
    journal.unlink(missing_ok=True)
    journal.with_suffix(".lock").unlink(missing_ok=True)


def _log(client: MlflowClient, run_id: str, points: list[Metric]) -> None:
    for first in range(0, len(points), POINTS_A_BATCH):
        client.log_batch(run_id, metrics=points[first : first + POINTS_A_BATCH])


def _points(record: Mapping[str, Any]) -> list[Metric]:
    return [
        Metric(encode.name_of(name), float(value), record["timestamp"], record["step"])
        for name, value in record["metrics"].items()
    ]


def _plain(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no words for what is not finite."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}
