"""`doctor`: what works here, what does not, and what to do about it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from kd_mlflow import __version__
from kd_mlflow.config import PrepareConfig
from kd_mlflow.data.sources import find_source
from kd_mlflow.entrypoints.machine_checks import Finding, machine_looks
from kd_mlflow.errors import KdMlflowError
from kd_mlflow.measures.gpu import nvml_state
from kd_mlflow.places import home_path
from kd_mlflow.tracking.client import describe_store, one_line
from kd_mlflow.tracking.existing import RUN_VARIABLE, check_adoptable
from kd_mlflow.tracking.experiments import ID_VARIABLE, NAME_VARIABLE, experiment_name
from kd_mlflow.tracking.look import Look, impatient, look_at
from kd_mlflow.tracking.server import OldServer
from kd_mlflow.tracking.versions import registered_names

VARIABLES = (RUN_VARIABLE, NAME_VARIABLE, ID_VARIABLE)
PACKAGES = ("torch", "torchvision", "mlflow", "optuna", "scikit-learn", "safetensors", "click")
DOWNLOADED = ("cifar10", "cifar100", "fashionmnist", "imagenette")
EXTRAS = ("onnx", "onnxruntime", "onnxscript", "timm")
INSTALL = "install the package anew: pip install --upgrade kd-mlflow"
STORE_ADVICE = (
    "start the tracking server, name another store with --tracking-uri or MLFLOW_TRACKING_URI, or keep runs on this "
    "machine with --offline until `kd-mlflow sync` sends them"
)
UPGRADE_ADVICE = (
    "on the server: back up its database, pip install --upgrade mlflow, mlflow db upgrade DATABASE, start it again; or "
    "name another store with --tracking-uri, or train with --offline"
)


def examine(data: str = "digits", tracking_uri: str = "") -> dict[str, Any]:
    """Look at versions, devices, NVML, the machine, the tracking server, the registry and the data; change nothing.

    A look that fails is a problem, and hides no other one.
    """
    store = _Store(tracking_uri)
    looks: list[tuple[str, Callable[[], Finding], str]] = [
        ("versions", _versions, INSTALL),
        ("extras", _extras, INSTALL),
        ("device", _device, "install a PyTorch that fits the driver, or train with --device cpu"),
        ("NVML", _nvml, "runs work the same; GPU figures are left out of the record"),
        *machine_looks(tracking_uri),
        ("tracking", store.tracking, STORE_ADVICE),
        ("registry", store.registry, STORE_ADVICE),
        ("environment", store.environment, "unset MLFLOW_RUN_ID, MLFLOW_EXPERIMENT_ID and MLFLOW_EXPERIMENT_NAME"),
        ("data", lambda: _data(data), "name a folder with a folder of images per class, a .tar of one, or digits"),
    ]
    findings = [_finding(*look) for look in looks]
    return {"ok": all(item.state != "problem" for item in findings), "checks": [asdict(item) for item in findings]}


def _finding(name: str, look: Callable[[], Finding], advice: str) -> Finding:
    try:
        return look()
    except OldServer as error:
        return Finding(name, "problem", str(error), UPGRADE_ADVICE)
    except KdMlflowError as error:
        return Finding(name, "problem", str(error), advice)
    except Exception as error:  # whatever it is, the other looks are worth having
        return Finding(name, "problem", f"{type(error).__name__}: {one_line(error)}", advice)


class _Store:
    """The tracking store, asked once for all looks at it."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self.look: Look | None = None

    def tracking(self) -> Finding:
        """Whether it answers, which versions server and client are, and what is in it."""
        with impatient():
            self.look = look_at(self.tracking_uri)
            if self.look.client is not None:
                return Finding("tracking", "ok", describe_store(self.look.client, self.look.name))
        if self.look.tables == "none":
            return Finding("tracking", "ok", f"{self.look.name}: the first command makes it")
        return Finding(
            "tracking",
            "note",
            f"{self.look.name}: the tables of another MLflow",
            "back the database up: the first command with this MLflow changes its tables, and an older MLflow cannot "
            "use them then",
        )

    def registry(self) -> Finding:
        """The names in it."""
        if self.look is None:
            return Finding("registry", "problem", "not looked at: see tracking", STORE_ADVICE)
        if self.look.client is None:
            return Finding("registry", "ok", "not there yet")
        with impatient():
            names = registered_names(self.look.client)
        return Finding("registry", "ok", ", ".join(names[:5]) + (" …" if len(names) > 5 else "") if names else "empty")

    def environment(self) -> Finding:
        """Whether the run and the experiment that MLflow's variables name are in the store."""
        said = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name))
        if self.look is None or self.look.client is None or not said:
            return Finding("environment", "ok", said or "no run and no experiment of MLflow's is named")
        with impatient():
            check_adoptable(self.look.client)
            name = experiment_name(self.look.client)
        return Finding("environment", "ok", f"{said}: runs go to the experiment {name}")


def _versions() -> Finding:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    here = f"kd-mlflow {__version__}, Python {platform.python_version()}, {', '.join(found)}"
    if missing:
        return Finding("versions", "problem", f"{here}; not installed: {', '.join(missing)}", INSTALL)
    return Finding("versions", "ok", here)


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


def _data(data: str) -> Finding:
    source = find_source(PrepareConfig(data=data), home_path())
    if data in DOWNLOADED:
        return Finding("data", "note", f"{source.name}: by name", "downloaded when it is first prepared")
    found = source.arrangement()
    return Finding("data", "ok", f"{source.name}: {len(found.items)} images in {len(found.classes)} classes")
