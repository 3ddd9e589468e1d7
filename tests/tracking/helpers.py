"""A tiny network as a model folder, logged and registered."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_mlflow.tracking.registry import Registered, register
from kd_mlflow.tracking.runs import RunWriter

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
