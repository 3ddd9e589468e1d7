"""`doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from kd_mlflow import __version__
from kd_mlflow.config import PrepareConfig
from kd_mlflow.data.sources import find_source
from kd_mlflow.errors import KdMlflowError
from kd_mlflow.measures.gpu import nvml_state
from kd_mlflow.places import home
from kd_mlflow.tracking.client import connect, describe_store, redact
from kd_mlflow.tracking.versions import registered_names

ROOM_GIB = 5.0
PACKAGES = ("torch", "torchvision", "mlflow", "optuna", "scikit-learn", "safetensors", "click")
DOWNLOADED = ("cifar10", "cifar100", "fashionmnist", "imagenette")
EXTRAS = ("onnx", "onnxruntime", "onnxscript", "timm")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``state``: ok, note (works, with less) or problem."""

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""


def examine(data: str = "digits", tracking_uri: str = "") -> dict[str, Any]:
    """Look at versions, devices, NVML, the tracking server, the registry, the disk and the data."""
    looks: list[tuple[str, Callable[[], Finding]]] = [
        ("versions", _versions),
        ("extras", _extras),
        ("device", _device),
        ("NVML", _nvml),
        ("tracking", lambda: _tracking(tracking_uri)),
        ("registry", lambda: _registry(tracking_uri)),
        ("disk", _disk),
        ("data", lambda: _data(data)),
    ]
    findings = []
    for name, look in looks:
        try:
            findings.append(look())
        except KdMlflowError as error:
            findings.append(Finding(name, "problem", str(error), ""))
        except Exception as error:
            findings.append(Finding(name, "problem", f"{type(error).__name__}: {redact(str(error))}", ""))
    return {"ok": all(item.state != "problem" for item in findings), "checks": [asdict(item) for item in findings]}


def _versions() -> Finding:
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return Finding("versions", "ok", f"kd-mlflow {__version__}, Python {platform.python_version()}, {found}")


def _extras() -> Finding:
    missing = []
    for name in EXTRAS:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if not missing:
        return Finding("extras", "ok", ", ".join(EXTRAS))
    return Finding(
        "extras",
        "note",
        f"not installed: {', '.join(missing)}",
        "needed only for `export` to ONNX (pip install onnx onnxscript onnxruntime) and for timm:… architectures",
    )


def _device() -> Finding:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        bf16 = "with bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "without bfloat16"
        return Finding("device", "ok", f"{len(names)} CUDA: {', '.join(names)}, {bf16}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "Metal (mps)")
    return Finding("device", "note", f"CPU, {torch.get_num_threads()} threads", "works, slowly; keep images small")


def _nvml() -> Finding:
    reason = nvml_state()
    if reason is None:
        return Finding("NVML", "ok", "GPU utilisation, power and energy are recorded")
    return Finding("NVML", "note", reason, "runs work the same; GPU figures are left out of the record")


def _tracking(uri: str) -> Finding:
    client = connect(uri)
    return Finding("tracking", "ok", describe_store(client, redact(uri)))


def _registry(uri: str) -> Finding:
    names = registered_names(connect(uri))
    return Finding("registry", "ok", ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "empty")


def _disk() -> Finding:
    place = home()
    free = shutil.disk_usage(place).free / 2**30
    if free < ROOM_GIB:
        return Finding(
            "disk", "problem", f"{free:.1f} GiB free in {place}", "free some, or set KD_MLFLOW_HOME elsewhere"
        )
    return Finding("disk", "ok", f"{free:.0f} GiB free in {place}")


def _data(data: str) -> Finding:
    source = find_source(PrepareConfig(data=data), home())
    if data in DOWNLOADED:
        return Finding("data", "note", f"{source.name}: by name", "downloaded when it is first prepared")
    found = source.arrangement()
    return Finding("data", "ok", f"{source.name}: {len(found.items)} images in {len(found.classes)} classes")
