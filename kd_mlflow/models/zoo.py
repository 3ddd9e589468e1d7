"""Networks by name, with the weights they start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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
from kd_mlflow.models.weights import (
    INSIDE,
    default_entry,
    imagenet_weights,
    is_torchvision_file,
    load_weights,
    read_weights,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NORMALIZATIONS",
    "build",
    "known",
    "normalization_for",
    "stored_normalization",
]

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
# Mean and std on the 0..1 scale by the names that options have for them.
NORMALIZATIONS: dict[str, tuple[Triple, Triple]] = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "unit": ((0.0,) * 3, (1.0,) * 3),
    "symmetric": ((0.5,) * 3, (0.5,) * 3),
    "bytes": ((0.0,) * 3, (1 / 255,) * 3),
}


def build(
    spec: ModelSpec,
    weights: str = "none",
    *,
    seed: int | None = None,
    whole: bool = False,
    side: str = "",
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
    whole:
        Whether a classifier or stem that the weights lack, or have in another shape, is an error; else it is fresh.
    side:
        ``teacher`` or ``student``: which weights to take from a checkpoint that holds those of both.
    sized:
        Build transformers of timm's for the spec's image size; else for the size of timm's own weights.

    Raises
    ------
    InputError
        An unknown architecture, weights that cannot be had or do not fit, or images too small.
    """
    if seed is None:
        return _build(spec, weights, whole, side, sized)
    with torch.random.fork_rng(devices=[]):
        # Only the CPU's generator: fresh weights are drawn there, and others must not notice.
        torch.default_generator.manual_seed(seed)
        return _build(spec, weights, whole, side, sized)


def normalization_for(
    choice: str, architecture: str, weights: str, data_mean: Sequence[float], data_std: Sequence[float]
) -> tuple[Triple, Triple]:
    """Mean and std that go into a network, on the 0..1 scale.

    Parameters
    ----------
    choice:
        ``data``, a name of :data:`NORMALIZATIONS`, or ``auto``: what the starting weights were trained with where
        that is known (ImageNet weights, files under torchvision's names, files that carry mean and std), else the
        data's own.
    data_mean, data_std:
        Of the training split.
    """
    data = _triple(data_mean), _triple(data_std)
    if choice == "data":
        return data
    if choice in NORMALIZATIONS:
        return NORMALIZATIONS[choice]
    if weights == "none":
        return data
    if weights == "imagenet":
        return _imagenet_normalization(architecture)
    return stored_normalization(architecture, Path(weights)) or data


def stored_normalization(architecture: str, path: Path) -> tuple[Triple, Triple] | None:
    """Mean and std that a weights file says it was trained with; None where it does not say.

    Torchvision's files say so by their names; others by three numbers each under ``mean`` and ``std``, beside the
    mapping or the ``body.`` that holds the weights, on the scale 0..1 or 0..255.
    """
    if is_torchvision_file(architecture, path):
        return IMAGENET_MEAN, IMAGENET_STD
    try:
        state = read_weights(path)
    except InputError:
        return None
    for name in sorted((name for name in state if name.endswith("mean")), key=len):
        place = name.removesuffix("mean")
        holds = any(rest.startswith("body.") or INSIDE in rest for rest in _behind(state, place))
        if place[-1:] in ("", ".", INSIDE) and holds:
            found = _channels(state[name]), _channels(state.get(f"{place}std"))
            if found[0] and found[1] and min(found[1]) > 0:
                scale = 255 if max(found[0]) > 1 else 1
                return tuple(m / scale for m in found[0]), tuple(s / scale for s in found[1])  # type: ignore[return-value]
    return None


def _behind(state: dict[str, Tensor], place: str) -> list[str]:
    return [name[len(place) :] for name in state if name.startswith(place)]


def _channels(value: Tensor | None) -> Triple | None:
    if value is None or value.shape not in ((3,), (1, 3, 1, 1), (3, 1, 1)) or not value.is_floating_point():
        return None
    return _triple(value.flatten().tolist()) if bool(value.isfinite().all()) else None


def _build(spec: ModelSpec, weights: str, whole: bool, side: str, sized: bool) -> Classifier:
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
        heads = [] if whole else head_names(body)
        replaceable = {f"{head}.{part}": "classifier" for head in heads for part in ("weight", "bias")}
        stem = replaced_stem_key(body, spec.architecture, spec.stem)
        if stem is not None and not whole:
            replaceable |= {stem: "stem", stem.removesuffix("weight") + "bias": "stem"}
        source = weights if is_file else f"torchvision's {spec.architecture}"
        load_weights(body, state, source, replaceable, gate_names(body), side)
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


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
