"""Image sizes that a network takes, found by trying."""

from __future__ import annotations

import torch

from kd_mlflow.errors import InputError
from kd_mlflow.models.architectures import TIMM, import_timm, is_factory, make_body
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.stages import eval_mode, noise
from kd_mlflow.models.weights import default_entry

# Most networks halve the resolution five times.
STEP = 32
LARGEST = 1024


def size_error(spec: ModelSpec, error: Exception, model: Classifier | None = None) -> InputError:
    """What to tell of a network that cannot take images of the size that its spec asks for.

    Parameters
    ----------
    error:
        Why it cannot.
    model:
        The network, if it could be built.
    """
    # Without memory a network is built to be looked at alone, as often as it fails.
    looked_at = torch.get_default_device().type == "meta"
    tried = [] if looked_at else _candidates(spec)
    sizes = [size for size in tried if _takes(spec.model_copy(update={"image_size": size}), model)]
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    asked = f"'{spec.architecture}' cannot take images of {spec.image_size} px"
    if not sizes:
        return InputError(f"{asked} ({cause}); choose another --image-size or architecture.")
    listed = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    return InputError(
        f"{asked} ({cause}); of the sizes that were tried it takes {listed} px: give "
        f"{'one of these' if len(sizes) > 1 else 'that'} as --image-size, or choose another architecture."
    )


def _candidates(spec: ModelSpec) -> list[int]:
    """Two multiples of 32 on either side of the size, and the network's own size and its double, ascending."""
    below = spec.image_size // STEP * STEP
    near = {below - STEP, below, below + STEP, below + 2 * STEP}
    own = _own_size(spec.architecture)
    tried = near | ({own, 2 * own} if own else set())
    return sorted(size for size in tried if 0 < size <= LARGEST and size != spec.image_size)


def _own_size(architecture: str) -> int | None:
    """The size that the library made its weights for."""
    if architecture.startswith(TIMM):
        entry = import_timm(architecture).get_pretrained_cfg(architecture.removeprefix(TIMM))
        return entry.input_size[-1] if entry is not None else None
    if is_factory(architecture):
        return None
    try:
        return default_entry(architecture).transforms().crop_size[0]
    except InputError:
        return None


def _takes(spec: ModelSpec, model: Classifier | None) -> bool:
    """Whether images of this size pass; a person's own network is not built again for it."""
    try:
        body = model.body if model is not None and is_factory(spec.architecture) else make_body(spec)
        tried = Classifier(spec, body)
        with eval_mode(tried):
            logits = tried(noise(tried, spec.image_size))
    except Exception:
        return False
    return isinstance(logits, torch.Tensor) and logits.shape == (1, tried.num_classes)
