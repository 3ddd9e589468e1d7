"""Make the environment in which `mlflow run .` works without flags, or repair one left half-made.

MLflow takes an environment folder that exists as finished. One whose making was interrupted would be
used as it is and fail on import, so its imports are tried first, and a broken one is made anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from mlflow.utils.environment import _PythonEnv
from mlflow.utils.virtualenv import _get_mlflow_virtualenv_root, _get_virtualenv_name

PROJECT = Path(__file__).parents[1]
TRY = (
    "import kd_mlflow, torch, torchvision, mlflow, optuna, sklearn, pynvml, psutil, psycopg, rich_click, pydantic, "
    "yaml, safetensors, matplotlib, platformdirs"
)


def environment_folder() -> Path:
    """Where MLflow looks for this project's environment."""
    environment = _PythonEnv.from_yaml(str(PROJECT / "python_env.yaml"))
    return Path(_get_mlflow_virtualenv_root()) / _get_virtualenv_name(environment, PROJECT)


def works(folder: Path) -> bool:
    """Whether everything the project imports is there."""
    python = folder / "bin" / "python"
    return python.exists() and subprocess.run([python, "-c", TRY], cwd=PROJECT, capture_output=True).returncode == 0


def make() -> None:
    """Let MLflow make the folder with uv; its run is recorded nowhere that lasts."""
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        project.mkdir()
        shutil.copy(PROJECT / "python_env.yaml", project)
        entry = {"name": "environment", "python_env": "python_env.yaml", "entry_points": {"main": {"command": "true"}}}
        (project / "MLproject").write_text(yaml.safe_dump(entry))
        mlflow = Path(sys.executable).with_name("mlflow")
        store = f"sqlite:///{scratch}/environment.db"
        subprocess.run(
            [mlflow, "run", str(project), "--env-manager", "uv"],
            check=True,
            cwd=scratch,
            env={**os.environ, "MLFLOW_TRACKING_URI": store},
        )


def main() -> None:
    """Check, remove what is broken, make, check again."""
    folder = environment_folder()
    if works(folder):
        return
    if folder.exists():
        print(f"The environment {folder} is not whole; making it anew.", file=sys.stderr)
        shutil.rmtree(folder)
    make()
    if not works(folder):
        sys.exit(f"The environment {folder} was made, but not everything in it can be imported.")


if __name__ == "__main__":
    main()
