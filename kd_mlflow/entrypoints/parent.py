"""Ending with `mlflow run`: when it is killed, MLflow leaves the command it started training on."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

SECONDS = 1.0


def stop_with_parent() -> None:
    """Watch the `mlflow run` above this process; once it is gone, end as if by SIGTERM."""
    above = _up_to_mlflow()
    if above:
        threading.Thread(target=_watch, args=(above,), name="parent-watch", daemon=True).start()


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
