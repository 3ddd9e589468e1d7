"""A network in formats that other programs run, held against the module."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.models.artifact import export_program
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.places import check_writable

TOLERANCE = 1e-3
BATCHES = (1, 3)
NEEDED = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(model: Classifier, path: Path, *, opset: int | None = None) -> float:
    """Write ONNX: uint8 ``images`` ``[batch, 3, S, S]`` in, ``logits`` ``[batch, K]`` out, batch free.

    Nothing is left at ``path`` when the logits differ.

    Parameters
    ----------
    opset:
        The ONNX operator set; None takes torch's default.

    Returns
    -------
    float
        The largest difference of onnxruntime's logits from the module's.

    Raises
    ------
    InputError
        A package of the extra ``onnx`` is not installed.
    KdMlflowError
        The logits differ by more than 1e-3.
    """
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(f"Export to ONNX needs more packages; install them with: pip install {' '.join(absent)}.")
    import onnxruntime

    own = copy.deepcopy(model).cpu().eval()
    with _whole_or_not(path) as file:
        with _quiet("onnxscript"):
            torch.onnx.export(
                own,
                (_images(own, 2),),
                file,
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return _compared(own, path, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))


def export_pt2(model: Classifier, path: Path) -> float:
    """Write a ``torch.export`` program with a free batch, read it back, and compare; see :func:`export_onnx`."""
    own = copy.deepcopy(model).cpu().eval()
    with _whole_or_not(path) as file:
        torch.export.save(export_program(own), file)
        return _compared(own, path, torch.export.load(file).module())


@contextmanager
def _whole_or_not(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place if all goes well."""
    check_writable(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        file = Path(scratch) / path.name
        yield file
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        file.replace(path)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compared(model: Classifier, path: Path, run: Callable[[Tensor], Tensor]) -> float:
    with torch.no_grad():
        pairs = [(run(images), model(images)) for images in (_images(model, count) for count in BATCHES)]
    differences = [(one - other).abs().max().item() for one, other in pairs]
    difference = math.nan if any(map(math.isnan, differences)) else max(differences)
    if not difference <= TOLERANCE:
        raise KdMlflowError(f"{path} gives other logits than the module (by {difference:.3g}); it is not to be used.")
    return difference


def _images(model: Classifier, count: int) -> Tensor:
    size = model.spec.image_size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
