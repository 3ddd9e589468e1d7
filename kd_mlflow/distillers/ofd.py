"""A comprehensive overhaul of feature distillation (Heo et al., ICCV 2019, arXiv 1904.01866)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kd_mlflow.distillers.base import Context, Distiller, Progress, Terms, full_precision
from kd_mlflow.distillers.matching import connector, networks_of, paired_stages, resized
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.stages import eval_mode, find_stages, noise
from kd_mlflow.models.taps import Outputs, Tapped

RARE = 0.001


def margins(scale: Tensor, shift: Tensor) -> Tensor:
    """E[x | x < 0] of N(shift, scale²) for each channel ``[C]`` (equation 3); −3·scale where x < 0 is rarer than 0.001.

    Parameters
    ----------
    scale:
        |γ| of the teacher's BatchNorm.
    shift:
        Its β.
    """
    scale, shift = scale.double().abs().clamp(min=1e-12), shift.double()
    ratio = shift / scale
    rarity = torch.special.ndtr(-ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    mean = shift - scale * density / rarity.clamp(min=1e-300)
    return torch.where(rarity > RARE, mean, -3 * scale)


@full_precision
def partial_loss(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    """Sum of (s − t')² where s > t' or t' > 0, with t' = max(t, margin) (equations 1 and 2).

    ``student`` and ``teacher`` are pre-activations ``[B, C, H, W]``, ``margin`` ``[C]``; the teacher gets no gradient.
    """
    target = torch.maximum(teacher.detach(), margin[None, :, None, None].to(teacher.dtype))
    counted = (student > target) | (target > 0)
    return ((student - target).square() * counted).sum()


class OFDOptions(MethodOptions):
    """Options of OFD."""

    weight: float = setting(1.0, "Weight of the term; 1 on the cross-entropy.", ge=0)
    divisor: float = setting(1000.0, "What the sum over a sample is divided by; 10000 on ImageNet.", gt=0)


class OFD(Distiller):
    """Pre-activations are matched where they matter: above a margin taken from the teacher's BatchNorm."""

    source = Source(
        "Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV",
        2019,
        "authors' code",
        "1904.01866",
    )
    Options = OFDOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "preactivations"})
    limits = (
        "The teacher's stages must end in BatchNorm (not VGG without it, ConvNeXt); it stays in eval mode, where the "
        "authors' code has it in training mode."
    )

    def __init__(self, context: Context, options: OFDOptions) -> None:
        super().__init__(context, options)
        student, teacher = networks_of(context, "ofd")
        for model in (student, teacher):
            Tapped(model, self.needs)
        pairs = paired_stages(student, teacher)
        norms = last_norms(teacher)
        self.places = [pair.place for pair in pairs]
        self.connectors = nn.ModuleList(connector(pair.student[0], pair.teacher[0]) for pair in pairs)
        for number, pair in enumerate(pairs):
            norm = norms[pair.place]
            margin = margins(norm.weight.detach(), norm.bias.detach())
            # It follows from the teacher: not part of a checkpoint.
            self.register_buffer(f"margin_{number}", margin.float(), persistent=False)

    def loss(
        self, student: Outputs, teachers: Sequence[Outputs], labels: Tensor, progress: Progress
    ) -> tuple[Tensor, Terms]:
        """Cross-entropy, and the partial distances, halved at each shallower stage, a sample."""
        total = torch.zeros((), device=labels.device)
        for number, (place, connect) in enumerate(zip(self.places, self.connectors, strict=True)):
            target = teachers[0].preactivations[place]
            own = resized(connect(student.preactivations[place]), target.shape[2:])
            part = partial_loss(own, target, getattr(self, f"margin_{number}"))
            total = total + part / 2 ** (len(self.places) - number - 1)
        feature = total / len(labels) / self.options.divisor
        terms = {"cross_entropy": self.cross_entropy(student.logits, labels), "feature": feature}
        return terms["cross_entropy"] + self.options.weight * feature, terms


def last_norms(model: Classifier) -> list[nn.BatchNorm2d]:
    """The BatchNorm that each stage's map comes from: its width, and no convolution after it.

    Raises
    ------
    InputError
        A stage has none.
    """
    stages = find_stages(model)
    found: list[nn.BatchNorm2d | None] = [None] * len(stages)
    calls: Counter[nn.Module] = Counter()
    latest: nn.BatchNorm2d | None = None

    def at_layer(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal latest
        latest = module if isinstance(module, nn.BatchNorm2d) else None

    def at_stage(module: nn.Module, inputs: object, output: Tensor | Sequence[Tensor]) -> None:
        for number, stage in enumerate(stages):
            if stage.module is not module or stage.call != calls[module]:
                continue
            if latest is not None and latest.affine and latest.num_features == stage.map_of(output).shape[1]:
                found[number] = latest
        calls[module] += 1

    layers = [module for module in model.body.modules() if isinstance(module, (nn.BatchNorm2d, nn.Conv2d))]
    with ExitStack() as attached, eval_mode(model):
        for module in layers:
            attached.enter_context(module.register_forward_hook(at_layer))
        for module in {stage.module for stage in stages}:
            attached.enter_context(module.register_forward_hook(at_stage))
        model(noise(model, model.spec.image_size))
    norms = [norm for norm in found if norm is not None]
    if not norms or len(norms) < len(stages):
        raise InputError(
            f"The method 'ofd' takes its margins from BatchNorm at the end of the teacher's stages, and "
            f"'{model.spec.architecture}' has none there; choose another teacher or method."
        )
    return norms
