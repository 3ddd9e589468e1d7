"""Weights and model folders from strangers: sizes are compared before memory is taken, and no code of theirs runs."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model, save_model
from kd_mlflow.models.weights import read_weights
from kd_mlflow.models.zoo import IMAGENET_MEAN, IMAGENET_STD, normalization_for
from tests.conftest import ROOT


def described(folder: Path, **spec: object) -> Path:
    """The folder with another description, its digests as they are."""
    file = folder / "model.json"
    content = json.loads(file.read_text())
    content["spec"].update(spec)
    file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(make, tmp_path) -> Path:
    save_model(tmp_path / "model", make(), program=False)
    return tmp_path / "model"


@pytest.mark.fault("a model.json that claims a huge network", "refused before memory is taken for it")
@pytest.mark.parametrize(
    ("claim", "said", "shaped_on"),
    [
        ({"architecture": "vit_h_14", "image_size": 224}, r"does not fit vit_h_14: body\.class_token", {"meta"}),
        ({"classes": [str(number) for number in range(130_000)]}, r"body\.fc\.bias, body\.fc\.weight differ", {"meta"}),
        ({"classes": [str(number) for number in range(200_000)]}, "does not describe a model", set()),
        ({"image_size": 4096}, "does not describe a model", set()),
    ],
    ids=lambda claim: " ".join(claim) if isinstance(claim, dict) else "",
)
def test_a_network_that_the_weights_do_not_bear_out_is_never_built(folder, claim, said, shaped_on, monkeypatch):
    taken = []
    plain = torch.nn.Linear.reset_parameters

    def watched(layer: torch.nn.Linear) -> None:
        taken.append(layer.weight.device.type)
        plain(layer)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", watched)
    with pytest.raises(InputError, match=said):
        load_model(described(folder, **claim))
    assert set(taken) == shaped_on


@pytest.mark.fault("an architecture that is a part of Python", "refused; it is not even imported")
@pytest.mark.parametrize("name", ["antigravity:fly", "os:system", "subprocess:Popen", "this:d", "idlelib.idle:main"])
def test_a_part_of_python_makes_no_network(folder, name):
    with pytest.raises(InputError, match="a part of Python itself"):
        load_model(described(folder, architecture=name), own=True)
    assert "antigravity" not in sys.modules


SCRIPT = """
import sys
sys.path = [place for place in sys.path if place not in ("", sys.argv[1])]
import kd_mlflow
from kd_mlflow.errors import InputError
try:
    kd_mlflow.load_model("model", own=sys.argv[2] == "own")
except InputError as error:
    print(error)
"""


@pytest.mark.fault("a model folder with a Python file beside it", "the file is not run, unless the model is one's own")
@pytest.mark.parametrize("whose", ["own", "stranger's"])
def test_code_that_came_with_a_folder_is_not_run(folder, whose):
    place = folder.parent
    (place / "evil.py").write_text("from pathlib import Path\nPath('trap').touch()\n")
    described(folder, architecture="evil:make")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), whose],
        cwd=place, env={"PYTHONPATH": str(ROOT), "HOME": str(place)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (place / "trap").exists() == (whose == "own")
    assert "where you trust it" in done.stdout or whose == "own"


def test_a_file_of_the_working_directory_never_takes_the_place_of_a_package(folder):
    place = folder.parent
    (place / "wheel.py").write_text("from pathlib import Path\nPath('trap').touch()\n")
    installed = place / "site" / "wheel"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    described(folder, architecture="wheel:make")
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(place), "own"],
        cwd=place, env={"PYTHONPATH": f"{ROOT}:{place / 'site'}", "HOME": str(place)}, check=True,
    )  # fmt: skip
    assert not (place / "trap").exists()


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("trap"),))


@pytest.mark.fault("a pickle among the weights", "refused; nothing of it is run")
@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.pkl"])
def test_a_pickle_is_not_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Evil()}))
    torch.save({"weight": Evil()}, tmp_path / f"torch-{name}")
    for file in (tmp_path / name, tmp_path / f"torch-{name}"):
        with pytest.raises(InputError, match=r"refused|cannot be read"):
            read_weights(file)
    assert not (tmp_path / "trap").exists()


@pytest.mark.fault("a compressed archive as weights", "refused before it is unpacked")
def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"weight": torch.zeros(2**24)}, tmp_path / "plain.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in plain.namelist():
            packed.writestr(entry, plain.read(entry))
    assert bomb.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="compressed archive"):
            read_weights(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
    assert list(read_weights(tmp_path / "plain.pt")) == ["weight"]


@pytest.mark.parametrize("value", [torch.eye(3).to_sparse(), torch.empty(3, device="meta")], ids=["sparse", "meta"])
def test_tensors_that_are_not_plain_are_refused(value, tmp_path):
    torch.save({"weight": value}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"'weight'|cannot be read"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "stored",
    [
        {"mean": torch.zeros(1, 3, 1, 1), "std": torch.zeros(1, 2, 1, 1)},
        {"mean": torch.zeros(1, 3, 1, 1), "std": torch.zeros(1, 3, 1, 1)},
        {"mean": torch.full((1, 3, 1, 1), float("nan")), "std": torch.ones(1, 3, 1, 1)},
        {"mean": torch.zeros(1, 3, 1, 1, dtype=torch.complex64), "std": torch.ones(1, 3, 1, 1)},
    ],
    ids=["two", "zero", "nan", "complex"],
)
def test_a_normalisation_that_cannot_be_meant_is_that_of_the_data(stored, tmp_path):
    save_file(stored, tmp_path / "w.safetensors")
    found = normalization_for("auto", "resnet18", str(tmp_path / "w.safetensors"), IMAGENET_MEAN, IMAGENET_STD)
    assert found == (IMAGENET_MEAN, IMAGENET_STD)
