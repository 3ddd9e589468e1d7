"""Real images, real stores, real processes for every test that wants them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# How long an example takes says something about the machine alone.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

ROOT = Path(__file__).parents[1]
pytest_plugins = ["tests.faults"]

# Two small families; a ShuffleNet checkpoint takes milliseconds to write, a ResNet's takes seconds.
SMALL = ["--teacher-arch", "shufflenet_v2_x1_0", "--student", "shufflenet_v2_x0_5", "--image-size", "32"]


# A network of a few hundred weights, for tests of what happens around a training.
TINY = "tests.entrypoints.tiny:make"
QUICK = ["--teacher-arch", TINY, "--student", TINY, "--image-size", "32", "--batch-size", "8"]


def make_photos(root: Path, per_class: int = 20, size: int = 40) -> Path:
    """A folder of JPEGs in three classes that differ in colour and stripe, with noise."""
    draw = np.random.default_rng(0)
    for number, name in enumerate(["amber", "blue sky", "cyan"]):
        folder = root / name
        folder.mkdir(parents=True)
        for image in range(per_class):
            pixels = draw.integers(0, 110, (size, size + image % 9, 3))
            pixels[:, :: number + 2, number] += 120
            Image.fromarray(pixels.astype("uint8")).save(folder / f"{image:03d}.jpg", quality=90)
    return root


@dataclass(frozen=True)
class Place:
    """A machine of its own: an empty home, a store of runs, a working directory."""

    path: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.path}/mlflow.db"

    @property
    def home(self) -> Path:
        return self.path / "kd-home"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KD_"))}
        return kept | {
            "MLFLOW_TRACKING_URI": self.uri,
            "KD_MLFLOW_HOME": str(self.home),
            "HOME": str(self.path / "home"),
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            # One font cache for all: a fresh HOME would have every process look for fonts anew.
            "MPLCONFIGDIR": str(Path(tempfile.gettempdir()) / "kd-mlflow-tests-matplotlib"),
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A `kd-mlflow` process."""
        return subprocess.Popen(
            [sys.executable, "-m", "kd_mlflow", *arguments],
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Its standard output, once it has ended with the expected exit code."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=500)
        assert process.returncode == code, f"exit {process.returncode}\n{out}\n{err}"
        return out if code == 0 else err


@lru_cache
def empty_store() -> bytes:
    """A fresh MLflow store, made once: MLflow takes seconds for it."""
    from kd_mlflow.tracking.client import connect

    with tempfile.TemporaryDirectory() as folder:
        connect(f"sqlite:///{folder}/mlflow.db")
        return (Path(folder) / "mlflow.db").read_bytes()


def make_place(path: Path) -> Place:
    (path / "home").mkdir(parents=True)
    (path / "mlflow.db").write_bytes(empty_store())
    return Place(path)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path / "place")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that runs in the tests' own process touches a person's files."""
    os.environ["KD_MLFLOW_HOME"] = str(tmp_path_factory.mktemp("kd-home"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("data") / "photos")
