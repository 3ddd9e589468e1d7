from __future__ import annotations

import io
import json
import logging
import shutil
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image
from torch import Tensor

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.registry import Registered, champion, pull, register, resolve, run_model
from kd_mlflow.tracking.runs import RunWriter, history
from tests.tracking.conftest import CLASSES, SIZE, TinyNet, write_model

FILES = {"model.json", "model.safetensors", "model.pt2"}


def log_run(client: MlflowClient, folder: Path, metrics: dict[str, float] | None = None) -> str:
    with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
        run.dataset("photos", "abc", {}, "photos/", "training")
        run.model(folder, CLASSES, SIZE, metrics or {})
    return run.run_id


def register_run(
    client: MlflowClient,
    run_id: str,
    trained: tuple[Path, TinyNet],
    images: Tensor,
    accuracy: float = 0.5,
    digest: str = "abc",
    parameters: int = 100,
) -> Registered:
    folder, net = trained
    with torch.inference_mode():
        logits = net(images).numpy()
    tags = {"kd.val_accuracy": accuracy, "kd.dataset_digest": digest, "kd.parameters": parameters}
    return register(
        client,
        run_id=run_id,
        name="photos-student",
        folder=folder,
        tags=tags,
        check_images=images.numpy(),
        check_logits=logits,
    )


def image_file(width: int, height: int, mode: str = "RGB", form: str = "PNG", **options: object) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def test_logged_model_is_ready_and_linked_to_run_data_and_metrics(
    client: MlflowClient, trained: tuple[Path, TinyNet]
) -> None:
    with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
        run.dataset("photos", "abc", {}, "photos/", "training")
        for step, value in ((1, 0.5), (2, 0.75), (3, 0.6)):
            run.metrics({"val/accuracy": value}, step, step)
        run.final_metrics({"test/accuracy": 0.7})
        metrics = {"val/accuracy": 0.75, "test/accuracy": 0.7, "test/macro_f1": 0.65}
        model_id = run.model(trained[0], CLASSES, SIZE, metrics)
        assert run.model(trained[0], CLASSES, SIZE, metrics) == model_id
    model = client.get_logged_model(model_id)
    assert model.status == "READY"
    assert model.source_run_id == run.run_id
    assert {(m.key, m.value, m.step, m.dataset_name, m.dataset_digest) for m in model.metrics} == {
        ("val/accuracy", 0.75, 2, "photos", "abc"),
        ("test/accuracy", 0.7, 0, "photos", "abc"),
        ("test/macro_f1", 0.65, 0, "photos", "abc"),
    }
    assert [output.model_id for output in client.get_run(run.run_id).outputs.model_outputs] == [model_id]
    assert history(client, run.run_id)["val/accuracy"] == [(1, 0.5), (2, 0.75), (3, 0.6)]


def test_model_whose_upload_fails_is_marked_failed_and_never_registered(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    run = RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={})
    experiment = client.get_run(run.run_id).info.experiment_id
    models = Path(client.get_experiment(experiment).artifact_location) / "models"
    models.parent.mkdir(parents=True, exist_ok=True)
    models.write_text("a file stands where the folder should be")
    with pytest.raises(KdMlflowError, match="could not be stored"):
        run.model(trained[0], CLASSES, SIZE, {})
    run.finish("FAILED")
    (model,) = client.search_logged_models([experiment])
    assert model.status == "FAILED"
    with pytest.raises(InputError, match="no logged model that is READY"):
        register_run(client, run.run_id, trained, images)


def test_incomplete_model_folder_is_refused(client: MlflowClient, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks model.json, model.safetensors, model.pt2"):
        log_run(client, tmp_path)


def test_registered_version_loads_every_way_without_pickle(
    client: MlflowClient,
    trained: tuple[Path, TinyNet],
    images: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    net = trained[1]
    register_run(client, log_run(client, trained[0]), trained, images)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    uri = "models:/photos-student@champion"
    program = mlflow.pytorch.load_model(uri)
    for count in (1, 2, 7):
        with torch.inference_mode():
            assert torch.equal(program(images[:count]), net(images[:count]))
    model = mlflow.pyfunc.load_model(uri)
    with torch.inference_mode():
        expected = net(images).softmax(dim=1)
    table = model.predict(images.numpy())
    assert list(table.columns) == ["class", "probability", "probabilities"]
    assert table["class"].tolist() == [CLASSES[k] for k in expected.argmax(dim=1)]
    np.testing.assert_allclose(np.stack(table["probabilities"]), expected, atol=1e-6)
    np.testing.assert_allclose(table["probability"], expected.max(dim=1).values, atol=1e-6)
    file = image_file(SIZE * 2, SIZE * 3)
    frame = pd.DataFrame({"image": [file, b64encode(file).decode()]})
    answers = model.predict(frame)
    assert answers["probabilities"][0] == answers["probabilities"][1]
    folder = pull(client, uri, tmp_path / "pulled")
    assert {path.name for path in folder.iterdir()} == FILES
    assert all((folder / name).read_bytes() == (trained[0] / name).read_bytes() for name in FILES)


def test_stored_model_is_self_contained(client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor) -> None:
    run_id = log_run(client, trained[0])
    folder = Path(newest_model(client, run_id).artifact_location)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    (code,) = (name for name in names if name.startswith("code/"))
    assert names == {
        "MLmodel",
        "requirements.txt",
        "python_env.yaml",
        "conda.yaml",
        code,
        *(f"data/{name}" for name in FILES),
    }
    for name in ("requirements.txt", "python_env.yaml", "conda.yaml"):
        text = (folder / name).read_text()
        assert "kd" not in text.replace("-", "").replace("_", "")
    assert "kd_mlflow." not in (folder / code).read_text()
    assert "import kd_mlflow" not in (folder / code).read_text()


def test_model_that_answers_otherwise_is_not_registered(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    folder, net = trained
    run_id = log_run(client, folder)
    with torch.inference_mode():
        logits = net(images).numpy()
    for wrong in (logits + 1e-3, np.full_like(logits, np.nan), logits[:, :2]):
        with pytest.raises(KdMlflowError, match="its logits differ"):
            register(
                client,
                run_id=run_id,
                name="photos-student",
                folder=folder,
                tags={},
                check_images=images.numpy(),
                check_logits=wrong,
            )
    assert champion(client, "photos-student") is None


def test_model_damaged_in_the_store_is_neither_registered_nor_pulled(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, tmp_path: Path
) -> None:
    good, bad = log_run(client, trained[0]), log_run(client, trained[0])
    register_run(client, good, trained, images)
    for run_id in (good, bad):
        file = Path(newest_model(client, run_id).artifact_location) / "data" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(KdMlflowError, match=r"model.safetensors of the stored model differs"):
        register_run(client, bad, trained, images)
    with pytest.raises(InputError, match=r"model.safetensors of models:/photos-student/1 differs"):
        pull(client, "photos-student@champion", tmp_path / "pulled")
    assert not list(tmp_path.glob("*pulled*"))


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


def test_champion_moves_only_to_the_better_version_on_the_same_data(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    def add(accuracy: float, digest: str = "abc", parameters: int = 100) -> tuple[int, str]:
        found = register_run(client, log_run(client, trained[0]), trained, images, accuracy, digest, parameters)
        return found.version, found.alias

    assert champion(client, "photos-student") is None
    assert add(0.5) == (1, "champion")
    assert add(0.4) == (2, "challenger")
    assert add(0.6) == (3, "champion")
    assert add(0.6) == (4, "challenger")
    assert add(0.6, parameters=99) == (5, "champion")
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert add(0.9, digest="other") == (6, "challenger")
    assert "cannot be compared" in caplog.text
    found = champion(client, "photos-student")
    assert (found.version, found.tags["kd.val_accuracy"]) == (5, "0.6")
    assert resolve(client, "photos-student@challenger").version == 6


def test_registering_a_run_again_keeps_its_version(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    run_id = log_run(client, trained[0])
    first = register_run(client, run_id, trained, images, 0.5)
    second = register_run(client, log_run(client, trained[0]), trained, images, 0.6)
    assert register_run(client, run_id, trained, images, 0.5) == Registered("photos-student", 1, "challenger")
    assert first.version == 1
    assert champion(client, "photos-student").version == second.version == 2


def test_champion_chosen_by_hand_is_the_one_to_beat(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    for accuracy in (0.5, 0.9):
        register_run(client, log_run(client, trained[0]), trained, images, accuracy)
    client.set_registered_model_alias("photos-student", "champion", "1")
    third = register_run(client, log_run(client, trained[0]), trained, images, 0.6)
    assert (third.version, third.alias) == (3, "champion")


def test_best_of_several_registered_at_once_ends_as_champion(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    accuracies = {log_run(client, trained[0]): accuracy for accuracy in (0.5, 0.9, 0.7, 0.6)}
    with ThreadPoolExecutor(len(accuracies)) as pool:
        found = list(pool.map(lambda item: register_run(client, item[0], trained, images, item[1]), accuracies.items()))
    assert sorted(one.version for one in found) == [1, 2, 3, 4]
    assert accuracies[champion(client, "photos-student").run_id] == 0.9
    assert found[1].alias == "champion"


@pytest.mark.parametrize(("slow", "quick", "best"), [(0.5, 0.9, 2), (0.9, 0.5, 1), (0.5, 0.5, 1)])
def test_alias_moved_by_another_process_in_between_is_not_lost(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor, slow: float, quick: float, best: int
) -> None:
    class Overtaken(MlflowClient):
        """Another registration runs from start to end just before this one first moves an alias."""

        overtaken = False

        def set_registered_model_alias(self, name: str, alias: str, version: str) -> None:
            if not self.overtaken:
                self.overtaken = True
                register_run(client, second, trained, images, quick)
            super().set_registered_model_alias(name, alias, version)

    first, second = (log_run(client, trained[0]) for _ in range(2))
    found = register_run(Overtaken(client.tracking_uri), first, trained, images, slow)
    assert found.alias == ("champion" if best == 1 else "challenger")
    assert champion(client, "photos-student").version == best


def test_version_tags_tell_where_it_comes_from(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    run_id = log_run(client, trained[0])
    register_run(client, run_id, trained, images)
    found = resolve(client, "models:/photos-student/1")
    assert (found.run_id, found.tags["kd.run_id"]) == (run_id, run_id)
    digests = json.loads((trained[0] / "model.json").read_text())["digests"]
    assert found.tags["kd.digest.model.safetensors"] == digests["model.safetensors"]
    assert "kd.digest.model.json" in found.tags


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
