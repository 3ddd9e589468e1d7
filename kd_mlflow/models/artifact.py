"""The model folder: weights, recipe and program, with digests; what is registered, pulled and used."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from kd_mlflow.errors import InputError
from kd_mlflow.models.architectures import TIMM, require_installed
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.places import check_writable

FORMAT = 1
WEIGHTS, DESCRIPTION, PROGRAM = "model.safetensors", "model.json", "model.pt2"
FILES = (WEIGHTS, DESCRIPTION, PROGRAM)
DESCRIPTION_BYTES = 2**24


class Description(BaseModel):
    """The content of ``model.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(le=FORMAT)
    spec: ModelSpec
    run_id: str = ""
    digests: dict[str, str]
    extra: dict[str, Any] = Field(default_factory=dict)


def save_model(
    folder: Path, model: Classifier, *, run_id: str = "", extra: dict[str, Any] | None = None, program: bool = True
) -> None:
    """Write a network as a folder, whole or not at all; an older one of the same name is replaced.

    Parameters
    ----------
    run_id:
        The run that trained it.
    program:
        Also write ``model.pt2``, the exported network: uint8 pixels ``[B, 3, S, S]`` in, logits out, B free.

    Raises
    ------
    InputError
        The place is taken by something that is no model folder.
    """
    _refuse_to_replace(folder)
    check_writable(folder.parent)
    own = copy.deepcopy(model).cpu().eval()
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        # Cloned: safetensors takes no two names for one tensor, and a person's network may share weights.
        save_file({name: value.clone().contiguous() for name, value in own.state_dict().items()}, new / WEIGHTS)
        if program:
            torch.export.save(export_program(own), new / PROGRAM)
        digests = {file.name: _sha256(file) for file in sorted(new.iterdir())}
        description = Description(format=FORMAT, spec=own.spec, run_id=run_id, digests=digests, extra=extra or {})
        (new / DESCRIPTION).write_text(description.model_dump_json(indent=2) + "\n", encoding="utf-8")
        for place in (*new.iterdir(), new):
            _sync(place)
        _exchange(folder, new, Path(scratch) / "old")
        _sync(folder.parent)


def load_model(
    folder: str | Path, device: str | torch.device = "cpu", verify: bool = True, *, own: bool = False
) -> Classifier:
    """A trainable network out of a folder that ``kd-mlflow pull`` or a run wrote.

    Nothing in the folder is executed: the recipe is JSON, the weights are safetensors. Only an
    architecture ``module:factory`` imports code, the person's own.

    Parameters
    ----------
    verify:
        Hold the files against their digests.
    own:
        The folder comes from the person's own runs or registry: its ``module:factory`` may lie in the working
        directory. That of a stranger's folder must be installed or on the PYTHONPATH, lest a file that came along
        with it be run.

    >>> import kd_mlflow
    >>> model = kd_mlflow.load_model("student/")                       # doctest: +SKIP
    >>> model.eval()(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))   # doctest: +SKIP

    Raises
    ------
    InputError
        It is no model folder, or a file differs from its digest or from the recipe.
    """
    folder = Path(folder)
    description = read_description(folder)
    if verify:
        _verify(folder, description)
    shapes = _shapes(folder / WEIGHTS)
    if not own:
        require_installed(description.spec.architecture)
    sized = _check_shapes(folder / WEIGHTS, shapes, description.spec)
    model = build(description.spec, seed=0, sized=sized)
    _compare(folder / WEIGHTS, shapes, model)
    model.load_state_dict(load_file(folder / WEIGHTS))
    model.run_id = description.run_id
    return model.to(device)


def read_description(folder: str | Path) -> Description:
    """The content of a folder's ``model.json``.

    Raises
    ------
    InputError
        There is none, or it is not what this version writes.
    """
    file = Path(folder) / DESCRIPTION
    try:
        if file.stat().st_size > DESCRIPTION_BYTES:
            raise InputError(f"{file} is too large to be the description of a model.")
        return Description(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{folder} is no model folder: it has no readable {DESCRIPTION}.") from None
    except (ValueError, TypeError, RecursionError, ValidationError) as error:
        raise InputError(f"{file} does not describe a model of this version: {str(error).splitlines()[0]}.") from None


def read_spec(folder: str | Path) -> ModelSpec:
    """How the network in a folder is built."""
    return read_description(folder).spec


def read_run_id(folder: str | Path) -> str:
    """The run that trained the network in a folder; empty if unknown."""
    return read_description(folder).run_id


def export_program(model: Classifier) -> torch.export.ExportedProgram:
    """A CPU network in eval mode as a program with a free batch size; it refuses other types and sizes."""
    size = model.spec.image_size
    # Two images: a batch of one would freeze the batch size.
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _refuse_to_replace(folder: Path) -> None:
    """Only an empty folder or an older model gives way: a person's files are never lost to a slip of the path."""
    if not folder.exists():
        return
    foreign = [folder] if not folder.is_dir() else [f for f in folder.iterdir() if f.name not in FILES]
    if foreign:
        raise InputError(f"{foreign[0]} is in the way of a model folder and is kept; choose another folder or move it.")


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Put the new folder in the place of an older one, which comes back if that fails."""
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _verify(folder: Path, description: Description) -> None:
    if WEIGHTS not in description.digests:
        raise InputError(f"{folder / DESCRIPTION} names no digest of {WEIGHTS}; pull the model again.")
    for name, digest in description.digests.items():
        if name not in (WEIGHTS, PROGRAM):
            raise InputError(f"{folder / DESCRIPTION} names a file that does not belong to a model: {name!r}.")
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing; pull the model again.")
        if _sha256(file) != digest:
            raise InputError(f"{file} does not match its digest; it was altered or cut off. Pull the model again.")


def _shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes out of the file's header; the tensors stay where they are."""
    try:
        with safe_open(file, framework="pt") as content:
            return {name: content.get_slice(name).get_shape() for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} cannot be read as weights: {error}.") from None


def _check_shapes(file: Path, shapes: dict[str, list[int]], spec: ModelSpec) -> bool:
    """Refuse a description that the weights do not bear out before a network of its size takes memory.

    The network is built without memory where its architecture can be; where not, some matrix must have a row or a
    column a class.

    Returns
    -------
    bool
        Whether the network was built for its image size. Older versions left networks of timm's that take any size as
        timm makes them.
    """
    skeleton = _skeleton(spec, sized=True)
    if skeleton is not None and spec.architecture.startswith(TIMM) and _differing(shapes, skeleton):
        older = _skeleton(spec, sized=False)
        if older is not None and not _differing(shapes, older):
            return False
    if skeleton is not None:
        _compare(file, shapes, skeleton)
    elif not any(len(shape) > 1 and len(spec.classes) in shape for shape in shapes.values()):
        raise InputError(f"{file} does not fit {spec.architecture}: nothing in it has {len(spec.classes)} classes.")
    return True


def _skeleton(spec: ModelSpec, sized: bool) -> Classifier | None:
    """The network without memory; None where that cannot be."""
    try:
        with torch.device("meta"):
            return build(spec, sized=sized)
    except InputError:
        return None


def _compare(file: Path, shapes: dict[str, list[int]], model: Classifier) -> None:
    differing = _differing(shapes, model)
    if differing:
        names = ", ".join(name if name.isprintable() else repr(name) for name in differing[:3])
        raise InputError(f"{file} does not fit {model.spec.architecture}: {names} differ.")


def _differing(shapes: dict[str, list[int]], model: Classifier) -> list[str]:
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    return sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
