"""Losses scaled up for float16, whose smallest gradients would else be 0, and updates skipped where they overflow.

Micikevicius et al., Mixed Precision Training, ICLR 2018, section 3.2; the scale follows torch.amp.GradScaler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from kd_mlflow.distillers.base import Progress
from kd_mlflow.errors import GuardError
from kd_mlflow.training.group import Group

START = 2.0**16
# Steps without an overflow after which the scale is doubled.
GROWTH_INTERVAL = 2000
# Below it the gradients would overflow without any scale.
SMALLEST = 1.0


class LossScaler:
    """One scale for all optimizers: an overflow in the gradients of one skips the update of all.

    Attributes
    ----------
    skipped:
        Updates that were skipped since :meth:`begin_epoch`, a scalar on the device.
    """

    def __init__(self, optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
        self.scaler = torch.amp.GradScaler(device.type, init_scale=START, growth_interval=GROWTH_INTERVAL)
        self.skipped = torch.zeros((), device=device)
        for optimizer in optimizers:
            _begin_momentum(optimizer)

    def begin_epoch(self) -> None:
        """Count from 0."""
        self.skipped = torch.zeros_like(self.skipped)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return self.scaler.scale(loss)

    def unscale(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Bring all gradients to their own size; where one of them is not finite, no optimizer will step."""
        self.used = [optimizer for optimizer in optimizers if _has_gradient(optimizer)]
        for optimizer in self.used:
            self.scaler.unscale_(optimizer)
        flags = [flag for one in self.used for flag in self.scaler._found_inf_per_device(one).values()]
        anywhere = torch.stack(flags).amax()
        for flag in flags:
            flag.copy_(anywhere)
        self.skipped += anywhere

    def step(self) -> None:
        """Let the optimizers of :meth:`unscale` step, or skip the update, on the device; then move the scale."""
        for optimizer in self.used:
            self.scaler.step(optimizer)
        self.scaler.update()

    def check(self, progress: Progress, group: Group) -> None:
        """Wait for the device, and raise a GuardError where no scale helps; in a group in all processes at once."""
        if self.scaler.get_scale() < SMALLEST:
            group.agreed = True  # the gradients, and with them the scale, are those of all
            raise GuardError(
                f"The gradients are infinite or not a number in float16 even without scaling, by epoch "
                f"{progress.epoch}, step {progress.step}; give --precision float32, or bfloat16 on a device that has "
                "it, or lower --learning-rate."
            )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, by name."""
        state = self.scaler.state_dict()
        return {"scale": torch.tensor(state["scale"]), "growth": torch.tensor(state["_growth_tracker"])}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave."""
        own = {"scale": tensors["scale"].item(), "_growth_tracker": int(tensors["growth"])}
        self.scaler.load_state_dict(self.scaler.state_dict() | own)


def _has_gradient(optimizer: torch.optim.Optimizer) -> bool:
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])


def _begin_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Zeros for the momentum of SGD, from which its first step is what it is without.

    The fused SGD makes its buffers in the first step and fills them there; were that step skipped, they would hold
    whatever the memory held.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
