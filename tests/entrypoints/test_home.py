"""A home, or a folder below it, that cannot be written: one sentence with the path and what to set."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kd_mlflow.config import CompareConfig, DistillConfig, PrepareConfig, SearchConfig, StudentConfig, TeacherConfig
from kd_mlflow.entrypoints.compare import compare
from kd_mlflow.entrypoints.distill import distill
from kd_mlflow.entrypoints.doctor import examine
from kd_mlflow.entrypoints.prepare import prepare_data
from kd_mlflow.entrypoints.reap import delete, reap
from kd_mlflow.entrypoints.search import search
from kd_mlflow.entrypoints.sync import sync
from kd_mlflow.entrypoints.train import train_student, train_teacher
from kd_mlflow.errors import InputError
from kd_mlflow.places import HOME_VARIABLE, check_writable, home
from kd_mlflow.training.checkpoint import CheckpointFolder
from tests.conftest import TINY, Place

SMALLEST: dict[str, Any] = {"image_size": 32, "batch_size": 8, "epochs": 1, "device": "cpu"}
BOTH = SMALLEST | {"teacher_arch": TINY, "student": TINY}


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The same machine for what runs in this process."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setenv(HOME_VARIABLE, str(place.home))
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(place.path)
    return place


def _a_file(path: Path) -> Path:
    path.write_text("")
    return path


HOMES: dict[str, Callable[[Path], Path]] = {
    "a file": lambda folder: _a_file(folder / "file"),
    "below a file": lambda folder: _a_file(folder / "file") / "deep" / "home",
    "below a device": lambda folder: Path("/dev/null/home"),
    "a link to nothing": lambda folder: _link(folder / "link", Path("/proc/nothing")),
    "where no folder can be made": lambda folder: Path("/proc/kd-mlflow"),
}


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _commands(photos: Path) -> dict[str, Callable[[], Any]]:
    data = str(photos)
    return {
        "prepare": lambda: prepare_data(PrepareConfig(data=data, image_size=32)),
        "teacher": lambda: train_teacher(TeacherConfig(data=data, teacher_arch=TINY, **SMALLEST)),
        "student": lambda: train_student(StudentConfig(data=data, student=TINY, **SMALLEST)),
        "distill": lambda: distill(DistillConfig(data=data, **BOTH)),
        "offline": lambda: distill(DistillConfig(data=data, offline=True, **BOTH)),
        "compare": lambda: compare(CompareConfig(data=data, **BOTH)),
        "search": lambda: search(SearchConfig(data=data, **BOTH)),
        "sync": sync,
        "reap": reap,
        "delete": lambda: delete("0" * 32),
    }


@pytest.mark.fault("KD_MLFLOW_HOME cannot be made: a file, a path below one", "one sentence with path and variable")
@pytest.mark.parametrize("kind", HOMES)
def test_a_home_that_cannot_be_made_is_named_by_every_command(kind: str, here: Place, photos, monkeypatch) -> None:
    path = HOMES[kind](here.path)
    monkeypatch.setenv(HOME_VARIABLE, str(path))
    for name, command in _commands(photos).items():
        with pytest.raises(InputError) as error:
            command()
        assert str(path) in str(error.value), name
        assert str(error.value).endswith(f"set {HOME_VARIABLE} to a folder that can be."), name
    checks = {check["name"]: check for check in examine()["checks"]}
    assert checks["home"]["state"] == "problem"
    assert str(path) in checks["home"]["found"]
    assert HOME_VARIABLE in checks["home"]["advice"]
    assert checks["data"]["state"] == "ok"


def test_the_home_of_an_unknown_user_is_named(here: Place, monkeypatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, "~nobody-of-this-name/kd")
    with pytest.raises(InputError, match=f"{HOME_VARIABLE}=~nobody-of-this-name/kd names the home of an unknown user"):
        home()


# The folders below the home, and the commands that write into each.
FOLDERS = {
    "stores": ("prepare", "teacher", "distill"),
    "spool": ("teacher", "distill", "search", "sync", "reap", "delete"),
    "checkpoints": ("teacher", "student", "distill", "search"),
    "teacher-outputs": ("compare", "search"),
    "offline": ("offline",),
    "studies": ("search",),
}


@pytest.mark.fault(
    "a folder below KD_MLFLOW_HOME cannot be written: stores, spool, checkpoints, caches, offline runs, locks",
    "one sentence with path and variable, before anything is trained",
)
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_in_the_place_of_a_folder_of_the_home_is_named(folder: str, here: Place, photos) -> None:
    here.home.mkdir()
    (here.home / folder).write_text("")
    commands = _commands(photos)
    for name in FOLDERS[folder]:
        with pytest.raises(InputError) as error:
            commands[name]()
        assert str(here.home / folder) in str(error.value), name
        assert HOME_VARIABLE in str(error.value), name
    checks = {check["name"]: check for check in examine()["checks"]}
    assert checks["home"]["state"] == "problem"
    assert str(here.home / folder) in checks["home"]["found"]


def test_a_folder_that_takes_no_lock_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    folder = CheckpointFolder(tmp_path / "checkpoints" / "run")
    (folder.path / "lock").mkdir()
    with pytest.raises(InputError, match=rf"{folder.path} cannot be written .*{HOME_VARIABLE}"), folder.lock():
        pass


def test_a_folder_that_a_person_named_is_not_said_to_be_the_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file is in the way.; name a folder that can be") as error:
        check_writable(tmp_path / "file")
    assert HOME_VARIABLE not in str(error.value)


def test_trying_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.fault("KD_MLFLOW_HOME may not be written by this user", "exit code 2 and one sentence")
def test_a_home_without_permission_ends_the_command_with_exit_code_2(place: Place) -> None:
    place.home.mkdir()
    place.home.chmod(0o555)
    command = [sys.executable, "-m", "kd_mlflow", "prepare", "--data", "digits", "--image-size", "32"]
    if os.getuid() == 0:  # who may write everywhere, unless that is taken away
        if shutil.which("setpriv") is None:
            pytest.skip("root has every permission, and there is no setpriv to take it away")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=place.path, env=place.environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"kd-mlflow: {place.home}/stores/known cannot be written (Permission denied); set KD_MLFLOW_HOME to a folder "
        "that can be.\n"
    )
