"""A network in formats that other programs run, held against the module; the file says how it is to be used."""

from __future__ import annotations

import copy
import importlib.util
import json
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
INPUT, OUTPUT = "images", "logits"
# Where a program of torch.export keeps what :func:`usage` says: `torch.export.load(file, extra_files={USAGE: ""})`.
USAGE = "usage.json"


def export_onnx(model: Classifier, path: Path, *, opset: int | None = None) -> float:
    """Write ONNX: uint8 ``images`` ``[batch, 3, S, S]`` in, ``logits`` ``[batch, K]`` out, batch free.

    The file carries :func:`usage` as metadata, which onnxruntime gives as ``custom_metadata_map``.
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
    import onnx
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
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )
        content = onnx.load(file)
        onnx.helper.set_model_props(content, usage(model))
        content.doc_string = usage_sentence(model)
        onnx.save(content, file)
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        return _compared(own, path, lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0]))


def export_pt2(model: Classifier, path: Path) -> float:
    """Write a ``torch.export`` program with a free batch, read it back, and compare; see :func:`export_onnx`.

    Its extra file ``usage.json`` holds :func:`usage`.
    """
    own = copy.deepcopy(model).cpu().eval()
    with _whole_or_not(path) as file:
        torch.export.save(export_program(own), file, extra_files={USAGE: json.dumps(usage(model))})
        return _compared(own, path, torch.export.load(file).module())


def usage(model: Classifier) -> dict[str, str]:
    """What a program that runs the exported file has to know, each value as text; all but ``run_id`` are JSON.

    Returns
    -------
    dict
        ``classes`` (names in the order of the logits), ``input``, ``output``, ``normalization`` (which the network
        does itself), ``preprocessing`` (what is done with an image file before), ``value_range`` (black and white in
        images of more than 8 bits a channel, which are brought to 0 to 255), ``run_id`` (empty if unknown).
    """
    spec = model.spec
    content = {
        "classes": spec.classes,
        "input": {"name": INPUT, "type": "uint8", "layout": "NCHW", "shape": ["batch", 3, *[spec.image_size] * 2],
                  "color": "RGB", "range": [0, 255]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", len(spec.classes)], "values": "logits"},
        "normalization": {"inside": True, "mean": spec.mean, "std": spec.std, "of": "pixels / 255"},
        "preprocessing": {"orient": "by EXIF", "resize_shortest_side": _resized_side(model),
                          "interpolation": "bilinear, antialiased", "center_crop": spec.image_size},
        "value_range": spec.value_range,
    }  # fmt: skip
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()} | {"run_id": model.run_id}


def usage_sentence(model: Classifier) -> str:
    """The same for a person who looks at the file."""
    spec = model.spec
    size = spec.image_size
    return (
        f"{spec.architecture}, an image classifier of {len(spec.classes)} classes. Input {INPUT!r}: uint8 RGB pixels "
        f"from 0 to 255, [batch, 3, {size}, {size}]; resize the shortest side of an image to {_resized_side(model)} "
        f"and crop the central {size} x {size}. The normalization is inside. Output {OUTPUT!r}: logits "
        f"[batch, {len(spec.classes)}], a softmax of which gives probabilities. The metadata hold the class names."
    )


def _resized_side(model: Classifier) -> int:
    return -(-8 * model.spec.image_size // 7)


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
