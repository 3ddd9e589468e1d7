"""A team's day: train, search with two workers, register and pull, all through the server with a login."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass

import pytest
from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.search.study import RUN, SearchStudy
from kd_mlflow.tracking.runs import find_runs
from tests.conftest import TINY, Place, make_place
from tests.server.stack import COMPOSE, Team

OPTIONS = ["--teacher-arch", TINY, "--image-size", "32", "--batch-size", "8", "--epochs", "1", "--json"]


@dataclass(frozen=True)
class Member(Place):
    """A machine of somebody of the team: what it knows of the server are its settings."""

    settings: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | self.settings


@pytest.fixture
def member(team: Team, tmp_path, monkeypatch) -> Member:
    settings = team.client_environment()
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return Member(make_place(tmp_path / "member").path, settings)


def study_of(url: str, name: str, search: subprocess.Popen[str]) -> SearchStudy:
    """The study, once the search has made it and trained its teacher."""
    until = time.monotonic() + 200
    while time.monotonic() < until:
        assert search.poll() is None, search.communicate()[1]
        try:
            study = SearchStudy.load(url, name)
            if study.noted(RUN):
                return study
        except InputError:
            pass
        time.sleep(0.2)
    raise TimeoutError(name)


def as_in_compose(study: str, **places: str) -> list[str]:
    """The command of compose.yaml's search-worker, with places of this machine."""
    command = COMPOSE["services"]["search-worker"]["command"]
    return [places.get(word, word.replace("${KD_STUDY}", study)) for word in command]


@pytest.mark.slow
def test_a_team_trains_searches_registers_and_pulls(team, member, photos, tmp_path):
    log = len(team.log.read_bytes())
    done = json.loads(member.run("distill", "--data", str(photos), *OPTIONS, "--student", "resnet18"))
    client = MlflowClient()
    first = client.get_model_version_by_alias("photos-student", "champion")
    assert first.run_id == done["student"]["run_id"]

    checkpoints = str(tmp_path / "checkpoints")
    options = ["--study", "team", "--trials", "4", "--final-seeds", "1", "--checkpoints", checkpoints]
    search = member.start("search", "--data", str(photos), *OPTIONS, "--student", TINY, "--workers", "0", *options)
    study = study_of(member.settings["KD_MLFLOW_STORAGE"], "team", search)
    command = as_in_compose("team", **{"/data": str(photos), "/checkpoints": checkpoints})
    workers = [Member(make_place(tmp_path / name).path, member.settings).start(*command) for name in ("one", "two")]
    for process in [*workers, search]:
        out, said = process.communicate(timeout=400)
        assert process.returncode == 0, said
    assert json.loads(out)["trials"]["finished"] == 4
    # A slow machine may let one of them do all.
    assert {trial.user_attrs["pid"] for trial in study.ledger().finished} <= {worker.pid for worker in workers}
    assert len(find_runs(client, tags={"kd.study": "team"}, role="trial")) == 4

    versions = client.search_model_versions("name = 'photos-student'")
    assert {int(version.version) for version in versions} == {1, 2}
    member.run("pull", "photos-student@champion", "pulled")
    assert (member.path / "pulled/model.safetensors").stat().st_size > 0
    # Nothing of it went around the server.
    assert b"presigned" not in team.log.read_bytes()[log:]


@pytest.mark.slow
@pytest.mark.fault("a command with a wrong password for the server", "exit code 2 and a sentence, without the password")
def test_a_command_with_a_wrong_password_says_so(member):
    stranger = Member(member.path, member.settings | {"MLFLOW_TRACKING_PASSWORD": "not-the-password"})
    said = stranger.run("runs", code=2)
    assert len(said.strip().splitlines()) == 1
    assert "not-the-password" not in said
    assert "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said
