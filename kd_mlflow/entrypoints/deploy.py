"""`pull`, `predict` and `export`: from the registry to use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from kd_mlflow.data.build import side_of
from kd_mlflow.data.folders import FolderSource
from kd_mlflow.data.images import BadImage, read_decoded, read_head
from kd_mlflow.data.kinds import ending_label, is_picture, named_image, second_forms, tally
from kd_mlflow.data.ranges import misfits
from kd_mlflow.entrypoints.runs import adopted_run, check_adopted
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model
from kd_mlflow.models.export import export_onnx, export_pt2, usage
from kd_mlflow.places import check_writable
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.registry import pull, resolve
from kd_mlflow.training.device import resolve_device


def pull_model(model: str, folder: Path, tracking_uri: str = "") -> dict[str, Any]:
    """Fetch a registered model into a folder, digests verified."""
    client = connect(tracking_uri)
    found = resolve(client, model)
    pull(client, f"models:/{found.name}/{found.version}", folder)
    return {"model": found.name, "version": found.version, "run_id": found.run_id, "folder": str(folder)}


def predict_images(
    folder: Path, images: Sequence[Path], top_k: int, batch_size: int, device: str, terminal: Terminal
) -> dict[str, Any]:
    """The ``top_k`` likeliest classes of each image; files that cannot be read are listed by reason.

    Of a folder every file is taken that claims by its name or its content to be a picture, as for training; what is
    left out besides is said once.
    """
    if not folder.is_dir():
        raise InputError(f"There is no model folder {folder}; fetch one with `kd-mlflow pull NAME@champion {folder}`.")
    place = resolve_device(device)
    model = load_model(folder).to(place).eval()
    spec, files = model.spec, _files(images, terminal)
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    misfit: list[Path] = []
    with terminal.preparing("Predicting") as progress:
        for first in range(0, len(files), batch_size):
            group = files[first : first + batch_size]
            readable, pixels = _readable(group, spec.image_size, unreadable, spec.value_range, misfit)
            if readable:
                with torch.inference_mode():
                    logits = model(torch.from_numpy(np.stack(pixels)).to(place))
                predictions += _named(readable, logits.float().cpu(), spec.classes, top_k)
            progress(first + len(group), len(files))
    if misfit:
        low, high = spec.value_range
        terminal.warn(
            f"{len(misfit)} images of more than 8 bits do not fit the model's scale of {low} to {high}: they are "
            f"nearly black or partly plain white to it, the first: {misfit[0]}. Give images in the range it was taught."
        )
    return {"predictions": predictions, "unreadable": unreadable}


def export_model(model: str, file: Path, kind: str | None, tracking_uri: str = "") -> dict[str, Any]:
    """Write a model as ONNX or as an exported program, and compare it with the module."""
    kind = kind or {".onnx": "onnx", ".pt2": "pt2"}.get(file.suffix.lower())
    if kind is None:
        raise InputError(f"The format of {file} is not clear; name it .onnx or .pt2, or give --format.")
    check_writable(file.parent)
    check_adopted(tracking_uri)
    with _folder_of(model, tracking_uri) as folder:
        network = load_model(folder, own=folder != Path(model)).eval()
        difference = (export_onnx if kind == "onnx" else export_pt2)(network, file)
        metadata = usage(network)
    result = {"file": str(file), "format": kind, "bytes": file.stat().st_size, "max_difference": difference,
              "metadata": metadata}  # fmt: skip
    with adopted_run(tracking_uri, "export", f"export {kind}") as writer:
        if writer is not None:
            writer.params({"model": model, "format": kind})
            writer.final_metrics({"export/max_difference": difference, "export/bytes": result["bytes"]})
            writer.artifact(file)
    return result


@contextmanager
def _folder_of(model: str, tracking_uri: str) -> Iterator[Path]:
    """A pulled folder as it is, or a registered model fetched for the moment."""
    if Path(model).is_dir():
        yield Path(model)
        return
    with TemporaryDirectory() as scratch:
        yield pull(connect(tracking_uri), model, Path(scratch) / "model")


def _readable(
    files: Sequence[Path], size: int, unreadable: list[dict[str, str]], value_range: tuple[int, int],
    misfit: list[Path],
) -> tuple[list[Path], list[np.ndarray]]:  # fmt: skip
    """The files that are images, with their pixels; others are noted with the reason, and misfits to the range."""
    readable, pixels = [], []
    for file in files:
        try:
            image = read_decoded(file, side_of(size), value_range)
            pixels.append(_centre(image.pixels, size))
            readable.append(file)
            if image.depth is not None and misfits(image.depth, value_range):
                misfit.append(file)
        except BadImage as error:
            unreadable.append({"path": str(file), "reason": error.reason})
    return readable, pixels


def _files(images: Sequence[Path], terminal: Terminal) -> list[Path]:
    """The files that were named, and the pictures in the folders that were.

    Raises
    ------
    InputError
        A path where there is nothing, a folder that cannot be listed, or no picture at all.
    """
    files: list[Path] = []
    beside: Counter[str] = Counter()
    for path in images:
        if path.is_dir():
            files += _pictures_in(path, beside, terminal)
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"There is no file or folder {path}.")
    shown = ", ".join(str(path) for path in images)
    if beside and files:
        terminal.say(f"Left out {beside.total()} files in {shown} that are no pictures: {tally(beside)}")
    if not files:
        others = f", only {beside.total()} other files: {tally(beside)}" if beside else ""
        raise InputError(f"There are no images in {shown}{others}.")
    return files


def _pictures_in(folder: Path, beside: Counter[str], terminal: Terminal) -> list[Path]:
    """The pictures in a folder and below it, links followed; files of other kinds are counted in ``beside``."""
    source = FolderSource(folder.resolve(), follow_links=True)
    paths = [entry.path for entry in source.files()]
    if note := source.clutter_note():
        terminal.warn(note)
    second = second_forms(paths)
    pictures = []
    for path in paths:
        if named_image(path) or (path not in second and is_picture(path, read_head(folder / path))):
            pictures.append(folder / path)
        else:
            beside[ending_label(path)] += 1
    return pictures


def _centre(image: np.ndarray, size: int) -> np.ndarray:
    margin = (image.shape[1] - size) // 2
    return image[:, margin : margin + size, margin : margin + size]


def _named(files: list[Path], logits: torch.Tensor, classes: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    probability, index = logits.softmax(dim=1).topk(min(top_k, len(classes)), dim=1)
    return [
        {"path": str(file), "top": [{"class": classes[k], "probability": p} for p, k in zip(row, names, strict=True)]}
        for file, row, names in zip(files, probability.tolist(), index.tolist(), strict=True)
    ]
