"""`doctor` says what to do about each thing that does not work, changes nothing, and lets no failure hide another."""

from __future__ import annotations

import json
import resource
import sqlite3
import tempfile
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch

from kd_mlflow.cli import cli
from kd_mlflow.entrypoints import doctor
from kd_mlflow.entrypoints import machine_checks as machine
from kd_mlflow.entrypoints.doctor import examine
from kd_mlflow.entrypoints.machine_checks import Finding
from tests.conftest import Place
from tests.tracking.loopback import loopback, mlflow_answers

NAMES = [
    *("versions", "extras", "device", "NVML", "home", "disk", "working directory", "temporary folder", "shared memory"),
    *("file handles", "proxy", "tracking", "registry", "environment", "data"),
]
PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY")


@pytest.fixture
def here(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    for name in (*PROXIES, "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(place.path)
    return place


def checks(**options: Any) -> dict[str, dict[str, str]]:
    result = examine(**options)
    assert [check["name"] for check in result["checks"]] == NAMES
    assert result["ok"] == all(check["state"] != "problem" for check in result["checks"])
    for check in result["checks"]:
        assert check["state"] == "ok" or check["advice"], check
    return {check["name"]: check for check in result["checks"]}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("store", ["there", "not there", "empty"])
def test_doctor_changes_nothing_and_leaves_nothing(store: str, here: Place, monkeypatch) -> None:
    scratch = here.path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if store == "not there":
        (here.path / "mlflow.db").unlink()
    if store == "empty":
        (here.path / "mlflow.db").write_bytes(b"")
    before = files(here.path)
    found = checks()
    assert files(here.path) == before
    assert not here.home.exists()
    expected = "experiments: 1, registered models: 0" if store == "there" else "the first command makes it"
    assert found["tracking"]["found"].endswith(expected)
    assert found["tracking"]["state"] == found["registry"]["state"] == found["home"]["state"] == "ok"


def test_a_database_of_another_mlflow_is_not_brought_up_to_date(here: Place) -> None:
    with sqlite3.connect(here.path / "mlflow.db") as database:
        database.execute("DROP TABLE logged_model_tags")
    database.close()
    before = files(here.path)
    found = checks()
    assert found["tracking"]["state"] == "note"
    assert "back the database up" in found["tracking"]["advice"]
    assert files(here.path) == before


def test_both_versions_of_mlflow_are_said(here: Place) -> None:
    with loopback(mlflow_answers("3.99.1", logged_models=True)) as (uri, _):
        found = checks(tracking_uri=uri)["tracking"]
    versions = f"{uri} (server MLflow 3.99.1, client MLflow {mlflow.__version__}): experiments: 0, registered models: 0"
    assert (found["state"], found["found"]) == ("ok", versions)


@pytest.mark.fault("doctor meets a server without logged models", "a problem with its version and the way out")
@pytest.mark.parametrize("version", ["2.22.5", None])
def test_an_old_server_is_a_problem_with_the_way_out(version: str | None, here: Place) -> None:
    with loopback(mlflow_answers(version, logged_models=False)) as (uri, _):
        found = checks(tracking_uri=uri)
    assert found["tracking"]["state"] == "problem"
    assert (version or "no logged models") in found["tracking"]["found"]
    assert "mlflow db upgrade" in found["tracking"]["advice"]
    assert found["data"]["state"] == "ok"


def test_a_proxy_before_the_server_is_noted_without_its_password(here: Place, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    found = checks(tracking_uri="http://mlflow.example")
    assert found["proxy"]["state"] == "note"
    assert "add mlflow.example to NO_PROXY" in found["proxy"]["advice"]
    assert "secret" not in json.dumps(found)
    assert found["tracking"]["state"] == "problem"
    monkeypatch.setenv("NO_PROXY", "mlflow.example")
    assert machine.proxy("http://mlflow.example").state == "ok"


def test_a_stale_run_id_is_a_problem(here: Place, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    found = checks()["environment"]
    assert found["state"] == "problem"
    assert "unset MLFLOW_RUN_ID" in found["advice"]


Usage = namedtuple("Usage", "total used free")


def _fail(*arguments: Any, **options: Any) -> Any:
    raise RuntimeError("it does not work at http://me:secret@host/")


# What is broken, and the state of the check that looks at it.
BROKEN: dict[str, tuple[str, Callable[[pytest.MonkeyPatch, Path], Any]]] = {
    "versions": ("problem", lambda patch, _: patch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))),
    "extras": ("note", lambda patch, _: patch.setattr(doctor, "EXTRAS", ("no-such-package",))),
    "device": ("problem", lambda patch, _: patch.setattr(torch.cuda, "is_available", _fail)),
    "NVML": ("problem", lambda patch, _: patch.setattr(doctor, "nvml_state", _fail)),
    "home": ("problem", lambda patch, _: patch.setenv("KD_MLFLOW_HOME", "/proc/kd-mlflow")),
    "disk": ("problem", lambda patch, _: patch.setattr(machine.shutil, "disk_usage", lambda _: Usage(9, 9, 9))),
    "working directory": ("note", lambda patch, _: patch.chdir("/proc")),
    "temporary folder": ("problem", lambda patch, _: patch.setattr(tempfile, "tempdir", "/proc")),
    "shared memory": (
        "note",
        lambda patch, _: patch.setattr(machine.shutil, "disk_usage", lambda _: Usage(9, 9, 9)),
    ),
    "file handles": (
        "note",
        lambda patch, _: patch.setattr(machine.resource, "getrlimit", lambda _: (256, 4096)),
    ),
    "proxy": ("problem", lambda patch, _: patch.setattr(machine, "proxy_variables", _fail)),
    "tracking": ("problem", lambda patch, _: patch.setenv("MLFLOW_TRACKING_URI", "./mlruns")),
    "registry": ("problem", lambda patch, _: patch.setattr(doctor, "registered_names", _fail)),
    "environment": ("problem", lambda patch, _: patch.setenv("MLFLOW_EXPERIMENT_ID", "77")),
    "data": ("problem", lambda patch, _: patch.setattr(doctor, "find_source", _fail)),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_check_that_fails_says_what_to_do_and_hides_no_other(name: str, here: Place, monkeypatch) -> None:
    state, break_it = BROKEN[name]
    break_it(monkeypatch, here.path)
    found = checks()
    assert found[name]["state"] == state
    assert found[name]["advice"]
    assert "secret" not in json.dumps(found)
    assert found["versions" if name != "versions" else "extras"]["found"]


def test_a_note_or_a_problem_without_advice_cannot_be_made() -> None:
    for state in ("note", "problem"):
        with pytest.raises(ValueError, match="without advice"):
            Finding("disk", state, "1 GiB")


@pytest.mark.parametrize(("hard", "advice"), [(4096, "run `ulimit -n 1024`"), (512, "--ulimit nofile=1024")])
def test_few_file_handles_are_noted_with_what_this_system_allows(hard: int, advice: str, monkeypatch) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, hard))
    assert advice in machine.file_handles().advice
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert machine.file_handles().state == "ok"


def test_little_shared_memory_is_noted_with_the_option_of_the_container(monkeypatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 64 * 2**20))
    found = machine.shared_memory()
    assert (found.state, found.found) == ("note", "64 MiB free in /dev/shm")
    assert "--shm-size" in found.advice
    monkeypatch.setattr(machine, "SHARED_MEMORY", Path("/nowhere/shm"))
    assert machine.shared_memory().state == "ok"


@pytest.mark.fault("doctor meets several problems at once", "exit code 1, and each problem with its way out")
def test_doctor_prints_one_json_object_and_ends_with_1(here: Place, monkeypatch, capsys) -> None:
    (here.path / "file").write_text("")
    monkeypatch.setenv("KD_MLFLOW_HOME", str(here.path / "file"))
    arguments = ["doctor", "--json", "--tracking-uri", "http://127.0.0.1:9", "--data", "missing/"]
    with pytest.raises(SystemExit) as ending:
        cli.main(arguments, standalone_mode=False)
    assert ending.value.code == 1
    result = json.loads(capsys.readouterr().out)
    problems = {check["name"]: check for check in result["checks"] if check["state"] == "problem"}
    assert set(problems) == {"home", "tracking", "registry", "data"}
    assert all(check["advice"] for check in problems.values())


def test_doctor_ends_with_0_when_all_that_is_needed_works(here: Place, capsys) -> None:
    cli.main(["doctor"], standalone_mode=False)
    assert "what to do" in capsys.readouterr().out
