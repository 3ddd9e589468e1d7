"""A network that learns, through torch.compile: held against itself before it is trusted."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd_mlflow.models.classifier import Classifier

# The largest difference to the plain network, as a share of the largest logit.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}

log = logging.getLogger(__name__)


class Compiled:
    """Logits of a network in training, compiled for batches of the shape of the first.

    At the first batch the compiled form is held against the plain one; should it differ, or not be possible, the plain
    one is used and a warning says so. Parameters and their names stay those of the network itself; batches of another
    shape, and evaluation, go through the plain form. A network with dropout draws other numbers when compiled and is
    not compared.
    """

    def __init__(self, model: Classifier) -> None:
        self.model = model
        self.compiled = torch.compile(model, dynamic=False)
        self.shape: torch.Size | None = None
        self.usable = False

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``[B, K]`` of images ``[B, 3, H, W]``."""
        if self.shape is None:
            self.shape, self.usable = images.shape, self._is_right(images)
        if self.usable and self.model.training and images.shape == self.shape:
            return self.compiled(images)
        return self.model(images)

    def _is_right(self, images: Tensor) -> bool:
        try:
            with _kept(self.model, images.device):
                plain = self.model(images).detach()
            with _kept(self.model, images.device):
                fast = self.compiled(images).detach()
        except Exception as error:  # an architecture that the compiler does not know, or a machine without one
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            log.warning("The student cannot be compiled (%s); its plain form is trained.", said)
            return False
        if self.model.spec.dropout or any(isinstance(one, nn.Dropout) and one.p for one in self.model.modules()):
            return bool(fast.isfinite().all())
        apart = float((fast - plain).abs().max() / plain.abs().max().clamp(min=1e-12))
        if not apart <= TOLERANCE.get(plain.dtype, 5e-2):
            log.warning("The compiled student differs by %.2g; its plain form is trained.", apart)
            return False
        return True


@contextmanager
def _kept(model: nn.Module, device: torch.device) -> Iterator[None]:
    """What a forward pass changes (running statistics, random numbers) is put back afterwards."""
    before = [buffer.clone() for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.data.copy_(value)
