from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_mlflow.tracking.client import connect

SIZE = 32
CLASSES = ("cat", "dog", "owl")


class TinyNet(nn.Module):
    """uint8 [B, 3, 32, 32] -> logits [B, 3]; looks at where the light is, so that crops matter."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.head = nn.Linear(4 * 7 * 7, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images.float() / 255).relu().flatten(1))


def write_model(folder: Path, seed: int = 0) -> TinyNet:
    """A model folder as the package writes it: safetensors, exported program, JSON with digests."""
    folder.mkdir(parents=True)
    net = TinyNet(seed).eval()
    save_file(net.state_dict(), folder / "model.safetensors")
    example = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), folder / "model.pt2")
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("model.safetensors", "model.pt2")
    }
    spec = {
        "architecture": "tiny",
        "classes": CLASSES,
        "image_size": SIZE,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "stem": "standard",
        "dropout": 0.0,
    }
    (folder / "model.json").write_text(json.dumps({"spec": spec, "run_id": "", "digests": digests}))
    return net


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyNet]:
    """A model folder and the module it was written from."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    return folder, write_model(folder)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return torch.randint(0, 256, (7, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite store as MLflow creates it; copied, because creating one takes seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{database}")
    return database


@pytest.fixture
def client(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A fresh sqlite store with its artifacts in the test's own folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return connect(f"sqlite:///{tmp_path / 'mlflow.db'}")
