"""All that is written to a run, on its way to the store: first into a journal on the local disk, then sent by a thread.

Training never waits for the server and never ends because of it. What was not sent when the process ends stays on the
disk, and every record may be sent twice without harm: sending what an earlier process left is always right.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.places import check_writable
from kd_mlflow.tracking import encode
from kd_mlflow.tracking.interrupts import uninterrupted
from kd_mlflow.tracking.journal import Journal, records
from kd_mlflow.tracking.life import HEARTBEAT, HEARTBEAT_SECONDS, heartbeat
from kd_mlflow.tracking.refusal import Refusals, describe
from kd_mlflow.tracking.sending import digests, send

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
# So long a record may lie before it is sent, so that points travel together.
LINGER_SECONDS = 3.0
ANSWER_SECONDS = 30.0
SUFFIX = ".journal"
LIMIT, LIMIT_GB = "KD_MLFLOW_SPOOL_GB", 50.0

log = logging.getLogger(__name__)


class Spool:
    """What one run is given by this process.

    Attributes
    ----------
    error:
        Why the store did not take the last that was sent; empty while it does.
    refused:
        Whether the store will never take it; nothing more is sent then.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        self.client, self.run_id, self.folder = client, run_id, folder
        check_writable(folder)
        self.lock = FileLock(folder / f"{run_id}.lock")
        try:
            self.lock.acquire(timeout=ANSWER_SECONDS)
        except Timeout:
            raise KdMlflowError(f"Run {run_id} is being written by another process.") from None
        self.box = _Box(folder, run_id)
        self.journal = Journal(self.box.journal)
        self.sent = self.box.sent()
        self.box.mark(self.sent)
        self.error = ""
        self.refused = False
        self.refusals = Refusals(getattr(client, "tracking_uri", ""))
        self.changed = threading.Condition()
        self.writing = threading.Lock()
        self.waiting = 0
        self.over = False
        self.thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self.thread.start()

    @uninterrupted()
    def put(self, record: Mapping[str, Any]) -> None:
        """Give a record; returns as soon as the local disk has it.

        Raises
        ------
        KdMlflowError
            The local disk does not take it; what was given before is whole.
        """
        try:
            with self.writing:
                self.journal.append(dict(record))
        except OSError as error:
            raise self._full(error) from None
        with self.changed:
            self.changed.notify_all()

    def metrics(self, values: Mapping[str, float], step: int, timestamp_ms: int) -> None:
        """One point of each metric."""
        self.put({"metrics": encode.numbers(values), "step": step, "timestamp": timestamp_ms})

    @uninterrupted()
    def put_files(self, fill: Callable[[Path], None], record: Mapping[str, Any]) -> None:
        """Give a record with the files that ``fill`` writes into a folder.

        Raises
        ------
        KdMlflowError
            The local disk does not take it, or what waits takes more room than KD_MLFLOW_SPOOL_GB.
        """
        with self.writing:
            name = f"{self.journal.end:012d}"
            place = self.box.files / name
            try:
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(parents=True)
                fill(place)
                _check_room(self.folder)
                _confirm(place)
                self.journal.append({**record, "files": name, "digests": digests(place)})
            except OSError as error:
                shutil.rmtree(place, ignore_errors=True)
                raise self._full(error) from None
        with self.changed:
            self.changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all that was given is in the store; False if that takes longer, or will never be."""
        with self.changed:
            self.waiting += 1
            self.changed.notify_all()
            try:
                return self.changed.wait_for(lambda: self._idle() or self.refused, seconds) and self._idle()
            finally:
                self.waiting -= 1

    def close(self, seconds: float) -> bool:
        """Flush, and stop; a journal that is sent whole is removed. Whether it is."""
        done = self.flush(seconds)
        with self.changed:
            self.over = True
            self.changed.notify_all()
        self.thread.join(timeout=5)
        self.journal.close()
        if done:
            self.box.remove()
        self.lock.release()
        return done

    def _idle(self) -> bool:
        return self.sent >= self.journal.end

    def _full(self, error: OSError) -> KdMlflowError:
        return KdMlflowError(
            f"{self.journal.path} cannot be written ({error.strerror or error}); make room and go on with --resume."
        )

    def _work(self) -> None:
        pause, beat = FIRST_PAUSE, time.monotonic() + HEARTBEAT_SECONDS
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.over or not self._idle(), max(0.0, beat - time.monotonic()))
                self.changed.wait_for(lambda: self.over or self.waiting, LINGER_SECONDS if not self._idle() else 0)
                if self.over:
                    return
            try:
                if time.monotonic() >= beat:
                    beat = time.monotonic() + HEARTBEAT_SECONDS
                    self.client.set_tag(self.run_id, HEARTBEAT, heartbeat())
                if not self._idle():
                    self._send()
            except Exception as error:  # whatever it is, the training goes on and it is tried again
                self._note(error, pause)
                if self.refused:
                    return
                with self.changed:
                    self.changed.wait_for(lambda: self.over, pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause, self.error = FIRST_PAUSE, ""
            self.refusals.accepted()

    def _send(self) -> None:
        before = self.sent
        send(self.client, self.run_id, self.journal.path, self.box.files, self.sent, self._reached)
        if self.sent == before:
            raise OSError(f"{self.journal.path} was altered while it was written")

    def _reached(self, place: int) -> None:
        self.box.mark(place)
        with self.changed:
            self.sent = place
            self.changed.notify_all()

    def _note(self, error: Exception, pause: float) -> None:
        final = self.refusals.is_final(error)  # may ask the server: not while others wait for the lock
        with self.changed:
            self.error, self.refused = describe(error), final
            self.changed.notify_all()
        if self.refused:
            log.warning("The store refuses what run %s is given; it is kept on disk: %s", self.run_id, self.error)
        else:
            level = logging.WARNING if pause == FIRST_PAUSE else logging.INFO
            log.log(level, "Run %s is kept on disk until the store takes it: %s", self.run_id, self.error)


@dataclass(frozen=True)
class Sent:
    """What became of a journal that an earlier process left."""

    run_id: str
    records: int
    error: str = ""


def send_left(client: MlflowClient, folder: Path) -> list[Sent]:
    """Send what earlier processes left; journals of processes that live are theirs."""
    found = []
    for journal in sorted(folder.glob(f"*{SUFFIX}")):
        box = _Box(folder, journal.name.removesuffix(SUFFIX))
        lock = FileLock(folder / f"{box.run_id}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            start = box.sent()
            waiting = sum(1 for _ in records(journal, start))
            send(client, box.run_id, journal, box.files, start, box.mark)
            box.remove()
            if waiting:
                found.append(Sent(box.run_id, waiting))
        except Exception as error:  # each store has exceptions of its own; the next journal may be of another run
            found.append(Sent(box.run_id, 0, describe(error)))
        finally:
            lock.release()
    return found


def forget(folder: Path, run_id: str) -> None:
    """Remove what waits for a run that nobody wants any more."""
    _Box(folder, run_id).remove()


class _Box:
    """The files of one run's spool: its journal, the folders that records name, and how far they were sent."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self.journal = folder / f"{run_id}{SUFFIX}"
        self.files = folder / f"{run_id}.files"
        self.place = folder / f"{run_id}.sent"
        self.lock = folder / f"{run_id}.lock"

    def sent(self) -> int:
        """The place behind the last record that the store has, as far as is known."""
        try:
            place = int(self.place.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0
        return place if any(behind == place for behind, _ in records(self.journal)) else 0

    def mark(self, place: int) -> None:
        """Note that the store has all before a place; files of records before it are no longer needed.

        The note keeps its length and its place on the disk, so that a full disk takes it and a power cut leaves it or
        the one before. Where it cannot be written the files stay: what is sent twice is there once.
        """
        done = [folder for folder in self.files.glob("*") if folder.name < f"{place:012d}"]
        try:
            number = os.open(self.place, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.write(number, f"{place:020d}".encode("ascii"))
                if done:  # a note that a power cut takes back would ask for files that are gone
                    os.fsync(number)
            finally:
                os.close(number)
        except OSError:
            return
        for folder in done:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """All of it, in an order that leaves no journal without its files, however soon the process dies."""
        self.place.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)
        shutil.rmtree(self.files, ignore_errors=True)
        self.lock.unlink(missing_ok=True)


def _check_room(folder: Path) -> None:
    limit = float(os.environ.get(LIMIT) or LIMIT_GB)
    taken = 0
    for above, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # senders take files away at any time
                taken += os.lstat(os.path.join(above, name)).st_size
    if taken > limit * 1e9:
        raise OSError(None, f"what waits for the store takes {taken / 1e9:.1f} GB, more than {LIMIT}={limit:g}")


def _confirm(folder: Path) -> None:
    """Have the disk confirm every file of a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
