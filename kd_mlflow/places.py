"""Where things lie on this machine."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """The folder of prepared stores, checkpoints and caches: KD_MLFLOW_HOME, else one of the user's."""
    chosen = os.environ.get("KD_MLFLOW_HOME")
    path = Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("kd-mlflow"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def absolute(data: str) -> str:
    """A path that means the same in every working directory; names stay names."""
    return str(Path(data).resolve()) if os.path.exists(data) else data


def checkpointed_model(run_id: str) -> Path:
    """Where the model of a run lies on this machine if it was trained here."""
    return home() / "checkpoints" / run_id / "model"


def offline_store() -> str:
    """The tracking URI of the runs that are kept on this machine until `kd-mlflow sync` sends them."""
    folder = home() / "offline"
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder}/mlflow.db"


def offline_artifacts(tracking_uri: str, experiment: str) -> str | None:
    """Where an experiment's artifacts lie, for that store; None for every other."""
    if tracking_uri != offline_store():
        return None
    return str(home() / "offline" / "artifacts" / hashlib.sha256(experiment.encode()).hexdigest()[:16])
