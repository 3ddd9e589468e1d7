"""Everything that changes while a network trains, and its way into a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_mlflow.config import Recipe
from kd_mlflow.distillers.base import Distiller
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.training.checkpoint import Meta
from kd_mlflow.training.optimizer import build_optimizers
from kd_mlflow.training.scaling import LossScaler


@dataclass
class TrainingState:
    """Networks, optimisers by the group of parameters they are for, and what is known so far.

    Attributes
    ----------
    smallest_part:
        The fewest images that may go through the networks at once.
    scaler:
        For training in float16.
    """

    student: Classifier
    distiller: Distiller
    optimizers: dict[str, torch.optim.Optimizer]
    average: AveragedModel | None
    smallest_part: int = 1
    scaler: LossScaler | None = None
    meta: Meta = field(default_factory=Meta)

    @classmethod
    def fresh(cls, recipe: Recipe, student: Classifier, distiller: Distiller, device: torch.device) -> TrainingState:
        """The state before the first step."""
        average = None
        if recipe.ema:
            average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        optimizers = build_optimizers(recipe, student, distiller, device)
        scaler = LossScaler(optimizers.values(), device) if recipe.precision == "float16" else None
        return cls(student, distiller, optimizers, average, smallest_part(student, distiller), scaler)

    @property
    def judged(self) -> Classifier:
        """The network that is evaluated and kept: the average if there is one."""
        return self.average.module if self.average is not None else self.student

    def judged_weights(self) -> dict[str, Tensor]:
        """The weights of the network that is evaluated, as copies on the CPU."""
        return {k: v.detach().cpu().clone().contiguous() for k, v in self.judged.state_dict().items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, by name, as copies on the CPU that share no memory."""
        parts = {f"{prefix}.{name}": value for prefix, module in self._modules() for name, value in _state(module)}
        for name, (parameter, optimizer) in self._optimized().items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    parts[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        if self.scaler is not None:
            parts |= {f"scaler.{name}": value for name, value in self.scaler.tensors().items()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in parts.items()}

    def restore(self, tensors: dict[str, Tensor], meta: Meta) -> None:
        """Put back what :meth:`tensors` gave."""
        for prefix, module in self._modules():
            own = {n.removeprefix(f"{prefix}."): v for n, v in tensors.items() if n.startswith(f"{prefix}.")}
            module.load_state_dict(own)
        for name, (parameter, optimizer) in self._optimized().items():
            state, fused = {}, bool(optimizer.param_groups[0].get("fused"))
            for full, value in tensors.items():
                if full.startswith("optimizer.") and full.endswith(f".{name}"):
                    key = full.removeprefix("optimizer.").removesuffix(f".{name}")
                    if "." not in key:
                        # Adam keeps its step count as a float32 scalar; moments live beside the parameter.
                        if value.shape == parameter.shape:
                            value = torch.empty_like(parameter).copy_(value)  # laid out as the parameter is
                        state[key] = value.to(parameter.device) if value.dim() or fused else value
            if state:
                optimizer.state[parameter] = state
        if self.scaler is not None:
            self.scaler.restore({n.removeprefix("scaler."): v for n, v in tensors.items() if n.startswith("scaler.")})
        self.meta = meta

    def _modules(self) -> list[tuple[str, nn.Module]]:
        modules: list[tuple[str, nn.Module]] = [("student", self.student), ("distiller", self.distiller)]
        return [*modules, ("average", self.average)] if self.average is not None else modules

    def _optimized(self) -> dict[str, tuple[nn.Parameter, torch.optim.Optimizer]]:
        """Every parameter that is trained, by name, with the optimiser it belongs to."""
        owners = {
            id(parameter): optimizer
            for optimizer in self.optimizers.values()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        named = {f"student/{name}": parameter for name, parameter in self.student.named_parameters()}
        named |= {f"distiller/{name}": parameter for name, parameter in self.distiller.named_parameters()}
        return {name: (one, owners[id(one)]) for name, one in named.items() if id(one) in owners}


def smallest_part(*modules: nn.Module) -> int:
    """The fewest images that a training step of these modules takes: two where one of them has BatchNorm, else one.

    Of one image BatchNorm has no statistics where its map is a single value, and none of the batch elsewhere.
    """
    return 2 if any(isinstance(part, _BatchNorm) for module in modules for part in module.modules()) else 1


def _state(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())
