"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of prepared stores, checkpoints and caches: KD_MLFLOW_HOME, else one of the user's."""
    chosen = os.environ.get("KD_MLFLOW_HOME")
    path = Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("kd-mlflow"))
    path.mkdir(parents=True, exist_ok=True)
    return path
