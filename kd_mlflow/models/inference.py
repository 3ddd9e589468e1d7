"""Networks that are only asked, never trained: frozen, and made as fast as the device allows."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Outputs, Tapped

Backend = Literal["eager", "traced", "compiled"]
Forward = Callable[[Tensor], Outputs]

# The largest difference to the plain network, as a share of the largest output.
TOLERANCE = 1e-3

log = logging.getLogger(__name__)
# None: the plain form. Nothing in here may hold the network itself, or neither would ever be freed.
_built: WeakKeyDictionary[Classifier, dict[tuple, Forward | None]] = WeakKeyDictionary()


def freeze(model: Classifier) -> Classifier:
    """Put a teacher into eval mode for good and take its parameters out of autograd.

    Changes ``model`` and returns it. A later ``train()``, its own or that of a module that holds it,
    leaves it in eval mode, so that its BatchNorm statistics never move.
    """
    model.frozen = True
    model.requires_grad_(False)
    model.eval()
    return model


def resolve_backend(name: str, device: torch.device, precision: str) -> Backend:
    """What ``auto`` stands for: traced on a CPU in float32, compiled on a GPU, eager elsewhere."""
    if name != "auto":
        return name  # type: ignore[return-value]
    if device.type == "cpu":
        return "traced" if precision == "float32" else "eager"
    return "compiled" if device.type == "cuda" else "eager"


class FastForward:
    """The outputs of a frozen network, by the backend that was asked for.

    The fast form is built at the first batch, for batches of that shape, and held against the plain
    network there and then; should it differ, or not be possible, the plain one is used and a warning says
    so. Batches of another shape go through the plain network. Networks of one process share what was built.
    """

    def __init__(self, tapped: Tapped, backend: Backend) -> None:
        self.tapped = tapped
        self.backend = backend
        self.shape: tuple | None = None
        self.fast: Forward | None = None

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs for images ``[B, 3, H, W]`` in pixel units, without gradient."""
        with torch.no_grad():
            if self.backend == "eager":
                return self.tapped(images)
            if self.shape is None:
                self.shape = _shape(images)
                self.fast = self._shared(images)
            return self.fast(images) if self.fast and _shape(images) == self.shape else self.tapped(images)

    def _shared(self, images: Tensor) -> Forward | None:
        known = _built.setdefault(self.tapped.model, {})
        kind = images.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        key = (self.backend, self.tapped.needs, _shape(images), precision)
        if key not in known:
            known[key] = self._build(images)
        return known[key]

    def _build(self, images: Tensor) -> Forward | None:
        plain = self.tapped(images)
        try:
            fast = _traced(self.tapped, images) if self.backend == "traced" else _compiled(self.tapped)
            if fast is None:
                return None
            apart = _difference(fast(images), plain)
        except Exception as error:  # whatever an architecture does that these tools do not know
            log.warning("The teacher cannot be %s (%s); its plain form is used.", self.backend, _first_line(error))
            return None
        if not apart <= TOLERANCE * (1 if plain.logits.dtype == torch.float32 else 30):
            log.warning("The %s teacher differs by %.2g; its plain form is used.", self.backend, apart)
            return None
        return fast


class _Flat(nn.Module):
    """A tapped network whose outputs are a tuple of tensors."""

    def __init__(self, tapped: Tapped) -> None:
        super().__init__()
        self.model = tapped.model
        self.tapped = tapped

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return _flat(self.tapped(images))


def _traced(tapped: Tapped, images: Tensor) -> Forward:
    """BatchNorm folded, ReLU fused, weights packed: TorchScript, which is deprecated, stands here alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(_Flat(tapped).eval(), images, check_trace=False)
        ready = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
    needs = tapped.needs
    return lambda images: _outputs(ready(images), needs)


def _compiled(tapped: Tapped) -> Forward | None:
    """torch.compile for logits; taps are hooks, which it would trip over at every call."""
    if tapped.needs - {"logits"}:
        return None
    compiled = torch.compile(tapped.model, dynamic=False)
    return lambda images: Outputs(compiled(images))


def _flat(outputs: Outputs) -> tuple[Tensor, ...]:
    pooled = () if outputs.pooled is None else (outputs.pooled,)
    return (outputs.logits, *pooled, *(outputs.stages or ()), *(outputs.preactivations or ()))


def _outputs(values: tuple[Tensor, ...], needs: frozenset[str]) -> Outputs:
    logits, *rest = values
    pooled = rest.pop(0) if "pooled" in needs else None
    half = len(rest) // 2 if needs >= {"stages", "preactivations"} else len(rest)
    stages = rest[:half] if "stages" in needs else None
    return Outputs(logits, pooled, stages, rest[-half:] if "preactivations" in needs else None)


def _difference(one: Outputs, other: Outputs) -> float:
    pairs = zip(_flat(one), _flat(other), strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-12)) for a, b in pairs)


def _shape(images: Tensor) -> tuple:
    return (*images.shape, images.dtype, str(images.device))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
