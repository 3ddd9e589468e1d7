"""The range of 16-bit images goes from the data into the model, and with it to every place that uses the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import Model
from PIL import Image

from kd_mlflow.config import EvaluateConfig, StudentConfig
from kd_mlflow.data.build import side_of
from kd_mlflow.data.images import read_image
from kd_mlflow.data.store import prepare
from kd_mlflow.entrypoints.deploy import predict_images
from kd_mlflow.entrypoints.evaluate import evaluate
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.train import train_student
from kd_mlflow.models.artifact import load_model, read_spec
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.tracking.flavor import write_flavor
from tests.conftest import TINY, Place

SIZE = 32


def write_pictures(root: Path, largest: int, per_class: int = 12) -> Path:
    """16-bit gray PNGs in two classes, light and dark, with values up to ``largest``."""
    draw = np.random.default_rng(largest)
    for name, top in (("dark", largest // 2), ("light", largest)):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = draw.integers(top // 2, top + 1, (40, 44)).astype(np.uint16)
            pixels[0, 0] = top
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def ours(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """This process works at the place."""
    for name in ("MLFLOW_TRACKING_URI", "KD_MLFLOW_HOME", "HOME"):
        monkeypatch.setenv(name, place.environment[name])
    monkeypatch.chdir(place.path)
    return place


def test_training_evaluation_prediction_and_serving_use_the_range_of_the_training_data(
    ours: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_pictures(ours.path / "photos", 3000)
    options = {"data": str(root), "image_size": SIZE, "tracking_uri": ours.uri, "batch_size": 8, "device": "cpu"}
    run_id = train_student(StudentConfig(student=TINY, epochs=1, **options)).run_id
    folder = ours.home / "checkpoints" / run_id / "model"
    assert read_spec(folder).value_range == (0, 4095)

    store = prepare(StudentConfig(**options), ours.home)
    measured = evaluate(EvaluateConfig(model=run_id, split="test", **options))
    network = load_model(folder, own=True).eval()
    margin = (store.side - SIZE) // 2
    test = store.images[store.splits["test"]][:, :, margin : margin + SIZE, margin : margin + SIZE]
    with torch.inference_mode():
        right = network(torch.from_numpy(test)).argmax(dim=1).numpy() == store.labels[store.splits["test"]]
    assert measured.metrics["accuracy"] == pytest.approx(right.mean())

    # Other data, whose largest value is another: the model's range is what counts.
    elsewhere = write_pictures(ours.path / "others", 900)
    evaluate(EvaluateConfig(model=run_id, split="test", **options | {"data": str(elsewhere)}))
    kept = [json.loads(meta.read_text()) for meta in (ours.home / "stores").glob("*/store.json")]
    assert sorted(tuple(meta["value_range"]) for meta in kept) == [(0, 1023), (0, 4095), (0, 4095)]

    file = root / "light" / "0.png"
    expected = probabilities(network, file, (0, 4095))
    assert not np.allclose(expected, probabilities(network, file, (0, 65535)), atol=1e-3)
    shutil.copytree(folder, ours.path / "pulled")
    (predicted,) = predict_images(ours.path / "pulled", [file], 2, 8, "cpu", Terminal(quiet=True))["predictions"]
    by_name = {one["class"]: one["probability"] for one in predicted["top"]}
    np.testing.assert_allclose([by_name["dark"], by_name["light"]], expected, atol=1e-5)
    for value, fits in ((4095, True), (4096, False), (65535, False), (127, False)):
        Image.fromarray(np.full((40, 40), value, np.uint16)).save(ours.path / "flat.png")
        predict_images(ours.path / "pulled", [ours.path / "flat.png"], 2, 8, "cpu", Terminal())
        warned = "1 images of more than 8 bits do not fit the model's scale of 0 to 4095" in capsys.readouterr().err
        assert warned is not fits
    write_flavor(ours.path / "flavor", folder, Model(artifact_path="m", run_id=run_id))
    served = mlflow.pyfunc.load_model(str(ours.path / "flavor"))
    for given in (file.read_bytes(), file, [file], Image.open(file)):
        np.testing.assert_allclose(served.predict(given)["probabilities"][0], expected, atol=1e-5)


def probabilities(network: Classifier, file: Path, value_range: tuple[int, int]) -> np.ndarray:
    """The network's answer to a file."""
    margin = (side_of(SIZE) - SIZE) // 2
    pixels = read_image(file, side_of(SIZE), value_range)[None, :, margin : margin + SIZE, margin : margin + SIZE]
    with torch.inference_mode():
        return network(torch.from_numpy(pixels.copy())).softmax(dim=1)[0].numpy()
