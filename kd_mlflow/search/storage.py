"""Where a study is kept: opening the storage, patience while it is away, and its lock."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import optuna
import psutil
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from kd_mlflow.errors import InputError, KdMlflowError

DEFAULT_FILE = "optuna.db"
# A worker that was silent for so many of its signs of life is taken for dead.
SILENT_BEATS = 4
ANSWER_SECONDS = 10
PATIENCE_SECONDS = 900.0
FIRST_PAUSE = 0.2
NETWORK_DISKS = ("nfs", "cifs", "smb", "sshfs", "lustre", "gpfs", "ceph", "afs", "9p", "gluster", "beegfs")
# What Optuna lets out when the database goes away in mid-call; the last is a slip of its own.
AWAY = (OperationalError, InterfaceError, StorageInternalError, UnboundLocalError)


class StorageAway(KdMlflowError):
    """The storage stayed away for longer than anybody waits; nothing is lost by ending now."""


log = logging.getLogger(__name__)
Result = TypeVar("Result")


def storage_url(asked: str, tracking_uri: str = "") -> str:
    """The URL that was asked for, that of KD_MLFLOW_STORAGE, or the default file.

    That lies beside the tracking store where this is an sqlite file, since `mlflow run` works in the project's folder,
    and else in the working directory.
    """
    if given := asked or os.environ.get("KD_MLFLOW_STORAGE"):
        return absolute_sqlite(given)
    store = _plain_file(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""))
    folder = store.parent if store else Path.cwd()
    return f"sqlite:///{folder / DEFAULT_FILE}"


def absolute_sqlite(url: str) -> str:
    """The same file in every working directory; other URLs as they are."""
    file = _plain_file(url)
    return f"{url.partition(':///')[0]}:///{file}" if file else url


def _plain_file(url: str) -> Path | None:
    """The file of an sqlite URL without anything special."""
    head, _, path = url.partition(":///")
    plain = head.startswith("sqlite") and path and path != ":memory:" and "?" not in path
    return Path(path).expanduser().resolve() if plain else None


def check_storage(url: str) -> bool:
    """Whether there is a storage already, which leaves nothing behind.

    Raises
    ------
    InputError
        It is of a kind that cannot be used, lies on a network disk, or does not answer.
    """
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _check_sqlite(parsed)
    engine = create_engine(parsed, connect_args={"connect_timeout": ANSWER_SECONDS})
    try:
        with engine.connect() as connection:
            found = connection.execute(text("SELECT to_regclass('studies')")).scalar()
    except SQLAlchemyError as error:
        raise _unusable(url, error) from None
    finally:
        engine.dispose()
    return found is not None


def open_storage(url: str, heartbeat: int) -> RDBStorage:
    """Connect, and create the tables of a storage that is new.

    Raises
    ------
    InputError
        As :func:`check_storage`.
    """
    check_storage(url)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used with")
    if is_sqlite(url):
        options = {"connect_args": {"timeout": 60}}
    else:
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": ANSWER_SECONDS}}
    try:
        with warnings.catch_warnings(), _creation_lock(url):
            warnings.simplefilter("ignore")
            grace = SILENT_BEATS * heartbeat
            return RDBStorage(url, engine_kwargs=options, heartbeat_interval=heartbeat, grace_period=grace)
    except (SQLAlchemyError, RuntimeError, *AWAY) as error:
        raise _unusable(url, error) from None


def patiently(call: Callable[[], Result], seconds: float = PATIENCE_SECONDS) -> Result:
    """The call's result, tried again with growing pauses while the storage is away.

    Raises
    ------
    StorageAway
        It stayed away for ``seconds``.
    """
    pause, started = FIRST_PAUSE, time.monotonic()
    while True:
        try:
            return call()
        except AWAY as error:
            if not _is_away(error):
                raise
            away = time.monotonic() - started
            Outage.last = time.monotonic()
            if away > seconds:
                raise StorageAway(
                    f"The storage of the study was away for {away:.0f} s ({_first_line(error)}); "
                    "the trial goes on where it was when the search is started again."
                ) from error
            if pause == FIRST_PAUSE:
                log.warning("The storage of the study does not answer (%s); trying again.", _first_line(error))
            time.sleep(pause)
            pause = min(pause * 2, 10.0)


class Outage:
    """When this process last found the storage away, on the monotonic clock."""

    last = -math.inf

    @classmethod
    def is_recent(cls, seconds: float) -> bool:
        """Whether that was less than so many seconds ago: others could give no sign of life either."""
        return time.monotonic() - cls.last < seconds


class StudyLock:
    """One process at a time, on one machine by a file, over many by the database."""

    def __init__(self, storage: RDBStorage, url: str, study: str) -> None:
        self.storage = storage
        self.key = int.from_bytes(hashlib.sha256(study.encode()).digest()[:8], "big", signed=True)
        self.file = None
        if is_sqlite(url):
            database = Path(_parsed(url).database).resolve()
            self.file = FileLock(f"{database}.{hashlib.sha256(study.encode()).hexdigest()[:8]}.lock")

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Yields a check that the lock is still ours, which raises when the database lost it."""
        if self.file is not None:
            with self.file:
                yield lambda: None
            return
        # Not in a transaction: a server may end one that stands idle for as long as the claim takes.
        with self.storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            own = self._take(connection)
            try:
                yield lambda: self._still(connection, own)
            finally:
                self._give_back(connection)

    def _take(self, connection: Connection) -> int:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": self.key})
        return connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

    def _still(self, connection: Connection, own: int) -> None:
        if connection.execute(text("SELECT pg_backend_pid()")).scalar_one() != own:
            raise StorageInternalError("the lock of the study was lost")

    def _give_back(self, connection: Connection) -> None:
        try:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": self.key})
        except SQLAlchemyError:
            connection.invalidate()


def is_sqlite(url: str) -> bool:
    """Whether the storage is a file."""
    return _parsed(url).get_backend_name() == "sqlite"


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        parsed.get_dialect()
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError):
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"--storage {shown_url(url)}: give sqlite:///FILE or postgresql://USER@HOST/DATABASE.")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise InputError("--storage: a study in memory ends with its process; give sqlite:///FILE.")
    return parsed


def _check_sqlite(parsed: URL) -> bool:
    database = Path(parsed.database)
    if not database.parent.is_dir():
        raise InputError(f"--storage {database} cannot be created: there is no folder {database.parent}.")
    if kind := _network_disk(database.parent.resolve()):
        raise InputError(
            f"--storage {database} lies on a network disk ({kind}), where sqlite loses locks; use postgresql://."
        )
    if not database.exists():
        if not os.access(database.parent, os.W_OK):
            raise InputError(f"--storage {database} cannot be created: {database.parent} is not writable.")
        return False
    try:
        with database.open("rb") as handle:
            header = handle.read(16)
    except OSError as error:
        raise InputError(f"--storage {database} cannot be read: {error.strerror}.") from None
    if header not in (b"", b"SQLite format 3\0"):
        raise InputError(f"--storage {database} is not an sqlite database.")
    return True


def _network_disk(folder: Path) -> str:
    """The kind of a file system that several machines share; empty for a local one."""
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    kind = next((mounts[place] for place in (folder, *folder.parents) if place in mounts), "")
    return kind if any(name in kind.lower() for name in NETWORK_DISKS) else ""


@contextmanager
def _creation_lock(url: str) -> Iterator[None]:
    """Several processes that create a database at once get in each other's way."""
    if not is_sqlite(url):
        yield
        return
    with FileLock(f"{Path(_parsed(url).database).resolve()}.lock"):
        yield


def _unusable(url: str, error: BaseException) -> InputError:
    if "compatible with the table schema" in str(error):
        return InputError(
            f"The database of {shown_url(url)} is another Optuna's, or holds the tables of MLflow; give Optuna a "
            "database of its own."
        )
    return InputError(f"The storage {shown_url(url)} cannot be used: {_first_line(error)}")


def shown_url(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(given)"


def _is_away(error: BaseException) -> bool:
    """Whether it is the storage that failed, and not our own code."""
    if not isinstance(error, UnboundLocalError):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "optuna" in trace.tb_frame.f_globals.get("__name__", "")


def _first_line(error: BaseException) -> str:
    error = error.__cause__ or error  # Optuna's own words are about something else
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
