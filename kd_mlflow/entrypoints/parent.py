"""Ending with `mlflow run`: when it is killed, MLflow leaves the command it started training on."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

SECONDS = 1.0
# The id of a process to end with, for the workers that a search starts.
STOP_WITH = "KD_MLFLOW_STOP_WITH"


def stop_with_parent() -> None:
    """Watch the `mlflow run` or the search above this process; once it is gone, end as if by SIGTERM."""
    above = _named() or _up_to_mlflow()
    if above:
        threading.Thread(target=_watch, args=(above,), name="parent-watch", daemon=True).start()


def _named() -> list[psutil.Process]:
    """The process that this one was told to end with, taken out of the environment."""
    try:
        return [psutil.Process(int(os.environ.pop(STOP_WITH, "")))]
    except (ValueError, psutil.Error):
        return []


def _up_to_mlflow() -> list[psutil.Process]:
    """The processes between this one and `mlflow run`, that one included; empty if there is none."""
    above: list[psutil.Process] = []
    for process in psutil.Process().parents():
        above.append(process)
        try:
            words = [os.path.basename(word) for word in process.cmdline()[:3]]
        except psutil.Error:
            return []
        if any(word == "mlflow" for word in words):
            return above
    return []


def _watch(above: list[psutil.Process]) -> None:
    while all(process.is_running() for process in above):
        time.sleep(SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
