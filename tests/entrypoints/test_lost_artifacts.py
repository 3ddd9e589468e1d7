"""Artifacts are gone while the database still tells of them: what was found is replaced, what was named is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kd_mlflow.config import DistillConfig, StudentConfig, resolve
from kd_mlflow.entrypoints.reuse import whole_view
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import _champion, find_teachers
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.train import train_or_reuse
from kd_mlflow.errors import InputError
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter
from tests.conftest import TINY

OPTIONS = {"teacher_arch": TINY, "student": TINY, "image_size": 32, "batch_size": 8, "epochs": 1}


class Listening(Terminal):
    """A terminal that shows nothing and keeps its warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def warn_once(self, subject: str, text: str) -> None:
        """Other work on the machine, which these tests are not about."""

    def heard(self) -> str:
        """The only warning since the last look."""
        (text,) = self.warnings
        self.warnings.clear()
        return text


@pytest.mark.fault(
    "the artifacts of champion, teacher and control are removed, the database stays",
    "same weights from this machine's checkpoints, else trained anew, each with one warning; what was named is refused",
)
def test_what_was_found_and_is_gone_is_taken_from_here_or_trained_anew(place, photos, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    monkeypatch.chdir(place.path)
    config = resolve(DistillConfig, {"data": str(photos), "tracking_uri": place.uri, **OPTIONS})
    terminal = Listening()
    session = Session.open(config, terminal)
    (first,) = find_teachers(session, config, resume=None)
    control = train_or_reuse(session, config, "control", resume=None)
    session.client.delete_run(first.view.run_id)
    lost: list[str] = []
    assert _champion(session, config, lost) is None
    assert lost == ["The run of the champion models:/photos-teacher/1 was deleted"]
    session.client.restore_run(first.view.run_id)
    assert terminal.warnings == []

    shutil.rmtree(place.path / "mlruns")
    (again,) = find_teachers(session, config, resume=None)
    assert (again.uri, again.network.digest) == ("models:/photos-teacher/1", first.network.digest)
    assert again.view.metrics["test/accuracy"] == first.view.metrics["test/accuracy"]
    said = terminal.heard()
    assert said.startswith("models:/photos-teacher/1 has no artifact data/model.json in ")
    assert said.endswith(f"the same weights are taken from {place.home}/checkpoints/{first.network.run_id}/model.")
    other = train_or_reuse(session, config, "control", resume=None)
    assert other.metrics["test/accuracy"] == control.metrics["test/accuracy"]
    folder = place.path / "mlruns" / "1" / control.run_id / "artifacts"
    missing = f"Run {control.run_id} has no artifact evaluation.json in {folder}, where it was stored"
    assert terminal.heard() == f"{missing}; the control is trained again."
    assert train_or_reuse(session, config, "control", resume=None, known=control.run_id).run_id == other.run_id
    assert terminal.warnings == []

    shutil.rmtree(place.home / "checkpoints" / first.network.run_id)
    for named in ("models:/photos-teacher@champion", first.network.run_id):
        asked = config.model_copy(update={"teacher": (named,)})
        with pytest.raises(ArtifactsGone, match=rf"in {place.path}/mlruns/1/models/.*; put the artifacts back there"):
            find_teachers(session, asked, resume=None)
    with pytest.raises(
        ArtifactsGone, match=r"what goes on was taught by it; .*without --resume or with another --study"
    ):
        find_teachers(session, config, resume="newest", fixed="models:/photos-teacher/1")
    (new,) = find_teachers(session, config, resume=None)
    assert "models:/photos-teacher/1 has no artifact" in terminal.heard()
    assert new.network.digest == first.network.digest
    assert new.view.run_id not in (first.view.run_id, again.view.run_id)
    champion = session.client.get_model_version_by_alias("photos-teacher", "champion")
    assert (int(champion.version), champion.run_id) == (2, new.network.run_id)


EVALUATION = {"missing": {}, "split": "test", "per_class": [], "confusion": [], "reliability": []}
PREDICTIONS = {"test": {"index": [3, 5], "label": [0, 1], "predicted": [0, 0]}}


@pytest.fixture
def opened(place, monkeypatch):
    """As much of a session as takes over runs."""
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    monkeypatch.chdir(place.path)
    empty = dict.fromkeys(("config", "store", "device", "precision"))
    client = connect(place.uri)
    return Session(home=place.home, client=client, terminal=Listening(), experiment="photos",
                   checkpoint_root=place.home / "checkpoints", **empty)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", None),
        ("evaluation.json", "[]"),
        ("evaluation.json", json.dumps({"missing": {}})),
        ("predictions.json", None),
        ("predictions.json", "{"),
        ("predictions.json", json.dumps({"val": PREDICTIONS["test"]})),
        ("predictions.json", json.dumps({"test": {"label": [0, 1], "predicted": [0]}})),
    ],
)
def test_a_run_whose_record_is_damaged_is_not_taken_over(opened, name, content):
    with RunWriter.open(opened.client, role="control", experiment="photos", run_name="c", tags={}) as run:
        run.json("evaluation.json", EVALUATION)
        run.json("predictions.json", PREDICTIONS)
    assert whole_view(opened, run.run_id).run_id == run.run_id
    file = Path(opened.client.get_run(run.run_id).info.artifact_uri.removeprefix("file://")) / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ArtifactsGone, match=name.replace(".", r"\.")):
        whole_view(opened, run.run_id)


def test_a_deleted_run_is_not_taken_over(opened):
    with RunWriter.open(opened.client, role="control", experiment="photos", run_name="c", tags={}) as run:
        run.json("evaluation.json", EVALUATION)
        run.json("predictions.json", PREDICTIONS)
    opened.client.delete_run(run.run_id)
    for run_id in (run.run_id, "0" * 32):
        with pytest.raises(ArtifactsGone, match=f"Run {run_id} was deleted"):
            whole_view(opened, run_id)


@pytest.mark.fault("the experiment that a command writes to was deleted", "said before any data is read")
def test_a_deleted_experiment_is_refused_before_the_data_is_read(place, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    client = connect(place.uri)
    client.delete_experiment(client.create_experiment("kd-mlflow"))
    client.delete_experiment(client.create_experiment("photos"))
    for given, variable, name in (
        ({}, "", "kd-mlflow"),
        ({"experiment": "photos"}, "", "photos"),
        ({}, "photos", "photos"),
    ):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", variable)
        config = resolve(StudentConfig, {"data": "/no/such/photos", "tracking_uri": place.uri, **given})
        with pytest.raises(InputError, match=f"The experiment '{name}' is deleted"):
            Session.open(config, Terminal(quiet=True), new_run=True)
    run = client.create_run(client.create_experiment("of mlflow run"))
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with pytest.raises(InputError, match="/no/such/photos"):
        Session.open(config, Terminal(quiet=True), new_run=True)
