"""provisional"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build


def save_model(folder: Path, model: Classifier, *, run_id: str = "", extra=None, program: bool = True) -> None:
    import copy
    own = copy.deepcopy(model).cpu().eval()
    tmp = folder.with_name(folder.name + ".part")
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in own.state_dict().items()}, tmp / "model.safetensors")
    if program:
        s = own.spec.image_size
        ep = torch.export.export(own, (torch.zeros(2, 3, s, s, dtype=torch.uint8),),
                                 dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
        torch.export.save(ep, tmp / "model.pt2")
    dig = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in tmp.iterdir()}
    (tmp / "model.json").write_text(json.dumps({"spec": own.spec.model_dump(), "run_id": run_id, "digests": dig}))
    shutil.rmtree(folder, ignore_errors=True)
    tmp.rename(folder)


def read_run_id(folder: Path) -> str:
    return json.loads((Path(folder) / "model.json").read_text())["run_id"]


def load_model(folder, device="cpu", verify=True) -> Classifier:
    folder = Path(folder)
    spec = ModelSpec(**json.loads((folder / "model.json").read_text())["spec"])
    m = build(spec, seed=0)
    m.load_state_dict(load_file(folder / "model.safetensors"))
    m.run_id = read_run_id(folder)
    return m.to(device)
