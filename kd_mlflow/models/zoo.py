"""Networks by name, with the weights they start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from kd_mlflow.errors import InputError
from kd_mlflow.models.architectures import (
    TIMM,
    SizeRefused,
    import_timm,
    is_factory,
    known,
    make_body,
    replaced_stem_key,
)
from kd_mlflow.models.attention import gate_names
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.exits import ExitBranches
from kd_mlflow.models.heads import head_names
from kd_mlflow.models.sizes import size_error
from kd_mlflow.models.weights import default_entry, imagenet_weights, is_torchvision_file, load_weights, read_weights

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "build", "known", "normalization_for"]

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def build(
    spec: ModelSpec,
    weights: str = "none",
    *,
    seed: int | None = None,
    replace_head: bool = True,
    sized: bool = True,
) -> Classifier:
    """A network as described, in training mode, on the CPU.

    The classifier layer has K outputs and is fresh unless the weights' own fits. ``spec.dropout``
    takes the place of a dropout that the family has right before its classifier. Gates start fresh where
    the weights have none; exits always do.

    Parameters
    ----------
    weights:
        ``none``, ``imagenet``, or a file (see :func:`kd_mlflow.models.weights.read_weights`).
    seed:
        Of the fresh weights; None draws from torch's global generator. With a seed, the global
        generator is left as it was.
    replace_head:
        Leave the classifier layer fresh when the weights' own has another shape; else that is an error.
    sized:
        Build transformers of timm's for the spec's image size; else for the size of timm's own weights.

    Raises
    ------
    InputError
        An unknown architecture, weights that cannot be had or do not fit, or images too small.
    """
    if seed is None:
        return _build(spec, weights, replace_head, sized)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: fresh weights are drawn there, and others must not notice.
        torch.default_generator.manual_seed(seed)
        return _build(spec, weights, replace_head, sized)


def normalization_for(
    choice: str, architecture: str, weights: str, data_mean: Sequence[float], data_std: Sequence[float]
) -> tuple[Triple, Triple]:
    """Mean and std that go into a network, on the 0..1 scale.

    Parameters
    ----------
    choice:
        ``data``, ``imagenet``, or ``auto``: what the starting weights were trained with where that is
        known (ImageNet weights, files under torchvision's names, files written by this package), else
        the data's own.
    data_mean, data_std:
        Of the training split.
    """
    data = _triple(data_mean), _triple(data_std)
    if choice == "data":
        return data
    if choice == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    if weights == "none":
        return data
    if weights == "imagenet":
        return _imagenet_normalization(architecture)
    path = Path(weights)
    if is_torchvision_file(architecture, path):
        return IMAGENET_MEAN, IMAGENET_STD
    return _stored_normalization(path) or data


def _build(spec: ModelSpec, weights: str, replace_head: bool, sized: bool) -> Classifier:
    from_timm = weights == "imagenet" and spec.architecture.startswith(TIMM)
    if weights == "imagenet" and is_factory(spec.architecture):
        raise InputError(f"There are no ImageNet weights for '{spec.architecture}'; use none or a weights file.")
    try:
        body = make_body(spec, pretrained=from_timm, sized=sized)
    except SizeRefused as refusal:
        raise size_error(spec, refusal) from refusal
    if weights != "none" and not from_timm:
        is_file = weights != "imagenet"
        state = read_weights(Path(weights)) if is_file else imagenet_weights(spec.architecture)
        heads = head_names(body) if replace_head else []
        replaceable = {f"{head}.{part}": "classifier" for head in heads for part in ("weight", "bias")}
        stem = replaced_stem_key(body, spec.architecture, spec.stem)
        if stem is not None:
            replaceable |= {stem: "stem", stem.removesuffix("weight") + "bias": "stem"}
        source = weights if is_file else f"torchvision's {spec.architecture}"
        load_weights(body, state, source, replaceable, gate_names(body))
    model = Classifier(spec, body)
    _check_takes_images(model)
    if spec.exits != "none":
        model.exits = ExitBranches(model)
    return model


def _check_takes_images(model: Classifier) -> None:
    """One image through the network, so that a size it cannot take is named before any work."""
    spec = model.spec
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(1, 3, spec.image_size, spec.image_size, dtype=torch.uint8))
    except Exception as error:
        raise size_error(spec, error, model) from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, model.num_classes):
        got = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError(f"'{spec.architecture}' must return logits [B, {model.num_classes}], but returned {got}.")


def _imagenet_normalization(architecture: str) -> tuple[Triple, Triple]:
    if architecture.startswith(TIMM):
        entry = import_timm(architecture).get_pretrained_cfg(architecture.removeprefix(TIMM))
        return (_triple(entry.mean), _triple(entry.std)) if entry else (IMAGENET_MEAN, IMAGENET_STD)
    if is_factory(architecture):
        return IMAGENET_MEAN, IMAGENET_STD
    transforms = default_entry(architecture).transforms()
    return _triple(transforms.mean), _triple(transforms.std)


def _stored_normalization(path: Path) -> tuple[Triple, Triple] | None:
    """Mean and std out of a weights file that this package wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            if not {"mean", "std"} <= set(file.keys()):
                return None
            shapes = [file.get_slice(name).get_shape() for name in ("mean", "std")]
            if shapes != [[1, 3, 1, 1]] * 2:
                return None
            mean, std = (_triple(file.get_tensor(name).flatten().tolist()) for name in ("mean", "std"))
    except (SafetensorError, OSError, TypeError):
        return None
    known = all(math.isfinite(value) for value in (*mean, *std)) and min(std) > 0
    return (mean, std) if known else None


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
