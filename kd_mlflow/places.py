"""Where things lie on this machine."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

from kd_mlflow.errors import InputError

HOME_VARIABLE = "KD_MLFLOW_HOME"
# Folders below it that more than one module names.
SPOOL, CHECKPOINTS, TEACHER_OUTPUTS = "spool", "checkpoints", "teacher-outputs"
# What a folder that cannot be used answers: no permission, a read-only disk, a file in the way, no room.
UNUSABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ELOOP,
     errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG}
)  # fmt: skip


def home_path() -> Path:
    """The folder of stores, checkpoints and caches: KD_MLFLOW_HOME, else one of the user's; nothing is made.

    Raises
    ------
    InputError
        It starts with ``~`` and the name of a user who does not exist.
    """
    chosen = os.environ.get(HOME_VARIABLE)
    try:
        return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("kd-mlflow"))
    except RuntimeError:
        raise InputError(
            f"{HOME_VARIABLE}={chosen} names the home of an unknown user; set it to a full path."
        ) from None


def home() -> Path:
    """:func:`home_path`, made if it is not there yet.

    Raises
    ------
    InputError
        It cannot be made.
    """
    return make_folder(home_path())


def home_folder(name: str) -> Path:
    """A folder below :func:`home`, made if it is not there yet, and tried: a file can be written into it.

    Raises
    ------
    InputError
        It cannot be made or written; names it and KD_MLFLOW_HOME.
    """
    return check_writable(home() / name)


def make_folder(path: Path, *, below_home: bool = False) -> Path:
    """A folder with all above it, made if it is not there yet; returns it.

    Parameters
    ----------
    below_home:
        Whether it is of a home that the caller was handed, which may be another than that of the environment.

    Raises
    ------
    InputError
        It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable(path, error, below_home=below_home) from None
    return path


def check_writable(path: Path, *, below_home: bool = False) -> Path:
    """:func:`make_folder`, and try to write into it; what is written has no name and is gone at once.

    Raises
    ------
    InputError
        It cannot be made or written.
    """
    make_folder(path, below_home=below_home)
    try:
        # Permission bits say too little: a disk may be read-only or full, a share may deny what they allow.
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"\0")
    except OSError as error:
        raise unusable(path, error, below_home=below_home) from None
    return path


def unusable(path: Path, error: OSError, *, below_home: bool = False) -> InputError:
    """The sentence for a folder that cannot be made or written, with what helps."""
    reason = "a file is in the way" if error.errno == errno.EEXIST else error.strerror or str(error)
    if below_home or _is_below_home(path):
        return InputError(f"{path} cannot be written ({reason}); set {HOME_VARIABLE} to a folder that can be.")
    return InputError(f"{path} cannot be written ({reason}); name a folder that can be.")


def unusable_home(error: OSError) -> InputError | None:
    """The sentence for an error of the operating system about a path below the home; None for every other."""
    if error.errno not in UNUSABLE or not isinstance(error.filename, str | os.PathLike):
        return None
    path = Path(error.filename)
    return unusable(path, error) if _is_below_home(path) else None


def absolute(data: str) -> str:
    """A path that means the same in every working directory; names stay names."""
    return str(Path(data).resolve()) if os.path.exists(data) else data


def checkpointed_model(run_id: str) -> Path:
    """Where the model of a run lies on this machine if it was trained here."""
    return home() / CHECKPOINTS / run_id / "model"


def offline_store() -> str:
    """The tracking URI of the runs that are kept on this machine until `kd-mlflow sync` sends them.

    Raises
    ------
    InputError
        Its folder cannot be made or written.
    """
    home_folder("offline")
    return offline_uri()


def offline_uri() -> str:
    """:func:`offline_store`, whose folder may not be there."""
    return f"sqlite:///{home_path() / 'offline'}/mlflow.db"


def offline_artifacts(tracking_uri: str, experiment: str) -> str | None:
    """Where an experiment's artifacts lie, for that store; None for every other."""
    if tracking_uri != offline_uri():
        return None
    return str(home_path() / "offline" / "artifacts" / hashlib.sha256(experiment.encode()).hexdigest()[:16])


def _is_below_home(path: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(home_path()))
