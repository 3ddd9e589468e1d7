from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from torch import Tensor

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.registry import pull, resolve, run_model
from kd_mlflow.tracking.runs import RunWriter
from tests.tracking.helpers import TinyNet, log_run, register_run, write_model


@pytest.mark.fault("a registered model is replaced in the artifact store", "its digests do not match: not pulled")
def test_model_replaced_whole_in_the_store_is_not_pulled(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, tmp_path: Path
) -> None:
    run_id = log_run(client, trained[0])
    register_run(client, run_id, trained, images)
    write_model(tmp_path / "other", seed=5)
    data = Path(newest_model(client, run_id).artifact_location) / "data"
    shutil.copytree(tmp_path / "other", data, dirs_exist_ok=True)
    with pytest.raises(InputError, match="differs from its digest in the registry"):
        pull(client, "photos-student/1", tmp_path / "pulled")


@pytest.mark.fault("artifact names with `../`", "nothing is written outside of the folder")
def test_names_in_a_stored_model_json_cannot_lead_out_of_the_folder(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, tmp_path: Path
) -> None:
    run_id = log_run(client, trained[0])
    file = Path(newest_model(client, run_id).artifact_location) / "data" / "model.json"
    content = json.loads(file.read_text())
    content["digests"]["../../outside"] = "0" * 64
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="names other files"):
        run_model(client, run_id, tmp_path / "a" / "b")
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("models:/nothing@champion", "There is no model 'nothing' in the registry; it holds photos-student"),
        ("photos-student@best", r"photos-student has @champion \(version 1\), /1"),
        ("models:/photos-student/7", r"There is no models:/photos-student/7 .* /1"),
        ("photos-student", r"photos-student has @champion \(version 1\), /1"),
        ("models:/a/b/c", "is no name of a registered model"),
        ("runs:/abc/model", "is no name of a registered model"),
        ("it's\"@x", "There is no model"),
    ],
)
def test_unknown_model_is_refused_with_what_there_is(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, uri: str, sentence: str
) -> None:
    client.create_registered_model("photos-student")
    client.create_model_version("photos-student", str(trained[0]), tags={})
    client.set_registered_model_alias("photos-student", "champion", "1")
    with pytest.raises(InputError, match=sentence):
        resolve(client, uri)


def test_pull_replaces_a_pulled_folder_and_nothing_else(
    client: MlflowClient, trained: tuple[Path, TinyNet], tmp_path: Path
) -> None:
    run_id = log_run(client, trained[0])
    other = tmp_path / "source"
    write_model(other, seed=3)
    newer = log_run(client, other)
    dest = tmp_path / "deep" / "pulled"
    assert run_model(client, run_id, dest) == dest
    before = (dest / "model.json").stat().st_mtime_ns
    run_model(client, run_id, dest)
    assert (dest / "model.json").stat().st_mtime_ns == before
    run_model(client, newer, dest)
    assert (dest / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    (dest / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is no pulled model"):
        run_model(client, run_id, dest)
    assert (dest / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is no pulled model"):
        run_model(client, run_id, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    run_model(client, run_id, tmp_path / "empty")
    assert [path.name for path in dest.parent.iterdir()] == ["pulled"]


def test_damaged_pulled_folder_is_made_whole_again(
    client: MlflowClient, trained: tuple[Path, TinyNet], tmp_path: Path
) -> None:
    run_id = log_run(client, trained[0])
    dest = run_model(client, run_id, tmp_path / "pulled")
    (dest / "model.safetensors").write_bytes(b"")
    run_model(client, run_id, dest)
    assert (dest / "model.safetensors").read_bytes() == (trained[0] / "model.safetensors").read_bytes()


def test_run_without_a_model_is_refused(client: MlflowClient, tmp_path: Path) -> None:
    with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
        pass
    with pytest.raises(InputError, match="has no logged model"):
        run_model(client, run.run_id, tmp_path / "pulled")
