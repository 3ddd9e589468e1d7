from __future__ import annotations

import json
import logging
import multiprocessing
from base64 import b64encode
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.models.artifact import load_model, save_model
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.registry import Registered, champion, pull, register, resolve
from kd_mlflow.tracking.runs import RunWriter, history
from tests.tracking.helpers import CLASSES, SIZE, TinyNet, image_file, log_run, register_run

FILES = {"model.json", "model.safetensors", "model.pt2"}


def test_logged_model_is_ready_and_linked_to_run_data_and_metrics(
    client: MlflowClient, trained: tuple[Path, TinyNet]
) -> None:
    with RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={}) as run:
        run.dataset("photos", "abc", {}, "photos/", "training")
        for step, value in ((1, 0.5), (2, 0.75), (3, 0.6)):
            run.metrics({"val/accuracy": value}, step, step)
        run.final_metrics({"test/accuracy": 0.7})
        metrics = {"val/accuracy": 0.75, "test/accuracy": 0.7, "test/macro_f1": 0.65}
        run.model(trained[0], CLASSES, SIZE, metrics)
        run.model(trained[0], CLASSES, SIZE, metrics)
    model_id = newest_model(client, run.run_id).model_id
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


@pytest.mark.fault("the store of artifacts takes no model", "it is kept until the store does; none is there by half")
def test_model_whose_upload_fails_is_stored_when_it_can_be(
    client: MlflowClient, trained: tuple[Path, TinyNet], images: Tensor
) -> None:
    run = RunWriter.open(client, role="student", experiment="photos", run_name="kd", tags={})
    experiment = client.get_run(run.run_id).info.experiment_id
    models = Path(client.get_experiment(experiment).artifact_location) / "models"
    models.parent.mkdir(parents=True, exist_ok=True)
    models.write_text("a file stands where the folder should be")
    run.model(trained[0], CLASSES, SIZE, {})
    with pytest.raises(KdMlflowError, match="could not be stored"):
        run.settle(2)
    assert newest_model(client, run.run_id) is None
    with pytest.raises(InputError, match="no logged model that is READY"):
        register_run(client, run.run_id, trained, images)
    models.unlink()
    run.finish("FINISHED")
    assert [model.status for model in client.search_logged_models([experiment])] == ["READY"]
    assert register_run(client, run.run_id, trained, images).alias == "champion"


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


@pytest.mark.fault("a model is damaged in the artifact store", "neither registered nor pulled")
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


def _register_in_process(uri: str, folder: Path, run_id: str, accuracy: float) -> None:
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    register_run(connect(uri), run_id, (folder, TinyNet(0).eval()), images, accuracy)


@pytest.mark.fault("several register at once", "the best ends as champion")
@pytest.mark.slow
def test_best_of_several_registered_at_once_ends_as_champion(
    client: MlflowClient, trained: tuple[Path, TinyNet]
) -> None:
    runs = [(log_run(client, trained[0]), accuracy) for accuracy in (0.5, 0.9, 0.7)]
    context = multiprocessing.get_context("forkserver")
    workers = [
        context.Process(target=_register_in_process, args=(client.tracking_uri, trained[0], run_id, accuracy))
        for run_id, accuracy in runs
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert champion(client, "photos-student").run_id == runs[1][0]


def test_network_of_the_zoo_comes_back_trainable_with_the_same_logits(
    client: MlflowClient, images: Tensor, tmp_path: Path
) -> None:
    spec = ModelSpec(
        architecture="resnet18",
        classes=CLASSES,
        image_size=SIZE,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        stem="standard",
        dropout=0.0,
    )
    network = build(spec, "none", seed=0).eval()
    save_model(tmp_path / "model", network)
    register_run(client, log_run(client, tmp_path / "model"), (tmp_path / "model", network), images)
    again = load_model(pull(client, "models:/photos-student@champion", tmp_path / "pulled"))
    with torch.inference_mode():
        assert torch.equal(again.eval()(images), network(images))
    assert all(parameter.requires_grad for parameter in again.train().parameters())


@pytest.mark.fault("the alias is moved by another process in between", "never on the worse version")
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
