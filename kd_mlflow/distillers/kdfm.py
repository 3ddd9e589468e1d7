"""Knowledge distillation with feature maps and a shared classifier (Chen et al., ACCV 2018, arXiv 1812.00660).

A reconstruction from the abstract: the student's last feature map imitates the teacher's against a
discriminator, and both end in the teacher's classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kd_mlflow.data.batch import Batch
from kd_mlflow.distillers.base import (
    Context,
    Distiller,
    ParameterGroup,
    Progress,
    Step,
    StudentModel,
    TeacherSource,
    full_precision,
    make_step,
)
from kd_mlflow.distillers.kd import kd_loss
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier, LinearHead
from kd_mlflow.models.stages import eval_mode, noise
from kd_mlflow.models.taps import Tapped

MAPS = frozenset({"logits", "pooled", "stages"})


@full_precision
def discriminator_loss(on_teacher: Tensor, on_student: Tensor) -> Tensor:
    """½ E(D(F_t) − 1)² + ½ E D(G)², of the discriminator's outputs (Mao et al. 2017's least squares)."""
    return 0.5 * (on_teacher - 1).square().mean() + 0.5 * on_student.square().mean()


@full_precision
def generator_loss(on_student: Tensor) -> Tensor:
    """½ E(D(G) − 1)²."""
    return 0.5 * (on_student - 1).square().mean()


@full_precision
def regression_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of maps ``[B, C, H, W]``; the teacher's gets no gradient."""
    return F.mse_loss(student_map, teacher_map.detach())


class KDFMOptions(MethodOptions):
    """Options of KDFM."""

    mode: Literal["adversarial", "regression"] = setting(
        "adversarial", "Imitate against a discriminator, or by the squared difference alone."
    )
    adversarial_weight: float = setting(0.1, "Weight of the adversarial term (mode adversarial).", ge=0)
    adversarial_start: int = setting(5, "Epochs before the adversarial term counts.", ge=0)
    discriminator_rate: float = setting(2e-4, "Learning rate of the discriminator's Adam.", gt=0)
    regression_weight: float | None = setting(
        None, "Weight of the squared difference of the maps; empty: 1 in mode regression, else 0.", ge=0
    )
    kd_weight: float = setting(0.0, "Weight of softened targets.", ge=0)
    temperature: float = setting(4.0, "Temperature of those targets.", gt=0)
    joint: bool = setting(False, "Train the shared classifier further instead of keeping the teacher's.")


class SharedClassifier(nn.Module):
    """The teacher's classifier behind an adapter that brings the student's width to the teacher's.

    A 1×1 convolution commutes with the mean over space, so the same weights serve maps and pooled features.
    """

    def __init__(self, classifier: LinearHead, width: int, *, joint: bool, dropout: float) -> None:
        super().__init__()
        same = width == classifier.in_features
        self.adapter: nn.Module = nn.Identity() if same else nn.Linear(width, classifier.in_features)
        self.adapter.fresh = True
        self.classifier = LinearHead(classifier.in_features, classifier.out_features, classifier.bias is not None)
        self.classifier.load_state_dict(classifier.state_dict())
        self.classifier.requires_grad_(joint)
        self.classifier.dropout = dropout

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[B, K]`` of the student's pooled features."""
        return self.classifier(self.adapter(features))

    def adapt(self, maps: Tensor, side: tuple[int, int]) -> Tensor:
        """The student's map ``[B, C, H, W]`` in the teacher's width and size."""
        if isinstance(self.adapter, nn.Linear):
            maps = F.conv2d(maps, self.adapter.weight[:, :, None, None], self.adapter.bias)
        return maps if maps.shape[2:] == side else F.adaptive_avg_pool2d(maps, side)

    def folded(self) -> LinearHead:
        """Adapter and classifier as the one linear layer that they are."""
        classifier = self.classifier
        width = self.adapter.in_features if isinstance(self.adapter, nn.Linear) else classifier.in_features
        head = LinearHead(width, classifier.out_features)
        with torch.no_grad():
            head.bias.zero_() if classifier.bias is None else head.bias.copy_(classifier.bias)
            if isinstance(self.adapter, nn.Linear):
                head.weight.copy_(classifier.weight @ self.adapter.weight)
                head.bias.add_(classifier.weight @ self.adapter.bias)
            else:
                head.weight.copy_(classifier.weight)
        head.dropout = classifier.dropout
        return head.to(classifier.weight.device)


class KDFM(Distiller):
    """The student's last map imitates the teacher's against a discriminator; one shared classifier (reconstruction)."""

    source = Source(
        "Chen, Chang, Lu, Lee: Knowledge Distillation with Feature Maps for Image Classification, ACCV",
        2018,
        "reconstruction",
        "1812.00660",
    )
    Options = KDFMOptions
    learns_unlabeled = True
    needs = frozenset({"logits", "stages"})
    built_on = frozenset({"pooled"})
    limits = (
        "Both networks must classify the mean of their last map with one linear layer (ResNet, MobileNetV2, "
        "ShuffleNet; not VGG, ConvNeXt or MobileNetV3). The adapter is a 1x1 convolution without BatchNorm, so that it "
        "folds into the exported classifier."
    )

    def __init__(self, context: Context, options: KDFMOptions) -> None:
        super().__init__(context, options)
        if context.student is None or not context.teachers:
            raise InputError("The method 'kdfm' shares the teacher's classifier, and the networks are not known.")
        for model in (context.student, context.teachers[0]):
            _require_mean_and_linear(model)
        self.adversarial = options.mode == "adversarial"
        self.weights = options
        self.teachers = context.teachers[:1]
        width = self.teachers[0].head.in_features
        self.discriminator = _discriminator(width) if self.adversarial else None

    def training_student(self, student: Classifier) -> Classifier:
        """The student's trunk with the teacher's classifier."""
        own, joint = student.head, self.weights.joint
        shared = SharedClassifier(self.teachers[0].head, own.in_features, joint=joint, dropout=own.dropout)
        _replace_head(student, own, shared)
        return student

    def deployed_student(self, student: Classifier) -> Classifier:
        """The plain student, its classifier folded from adapter and the shared one."""
        shared = _shared(student)
        _replace_head(student, shared, shared.folded())
        return student

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """Labels and imitation for the student, and the discriminator's own loss apart from it."""
        teacher, own = teachers[0](batch), student(batch.images)
        target = teacher.stages[-1].detach()
        maps = _shared(student.model).adapt(own.stages[-1], tuple(target.shape[2:]))
        entropy = self.cross_entropy(own.logits, batch.labels)
        losses, terms = {"main": entropy}, {"cross_entropy": entropy}
        regression = self.weights.regression_weight
        if regression is None:
            regression = 0.0 if self.adversarial else 1.0
        terms["regression"] = regression_loss(maps, target)
        if regression:
            losses["main"] = losses["main"] + regression * terms["regression"]
        if self.weights.kd_weight:
            terms["kd"] = kd_loss(own.logits, teacher.logits, self.weights.temperature)
            losses["main"] = losses["main"] + self.weights.kd_weight * terms["kd"]
        if self.adversarial:
            terms |= self.adversarial_terms(maps, target)
            losses["discriminator"] = terms["discriminator"]
            if progress.epoch > self.weights.adversarial_start:
                losses["main"] = losses["main"] + self.weights.adversarial_weight * terms["adversarial"]
        return make_step(losses, own.logits, terms)

    def adversarial_terms(self, maps: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The discriminator's loss, which does not reach the maps, and the student's, which does not reach it."""
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return {
            "discriminator": discriminator_loss(self.discriminator(target), self.discriminator(maps.detach())),
            "adversarial": generator_loss(functional_call(self.discriminator, fixed, (maps,))),
        }

    def optimizer_groups(self) -> list[ParameterGroup]:
        """The discriminator's Adam."""
        if self.discriminator is None:
            return []
        rate, betas = self.weights.discriminator_rate, (0.5, 0.999)
        own = list(self.discriminator.parameters())
        return [ParameterGroup("discriminator", own, "adam", rate, scheduled=False, weight_decay=0.0, betas=betas)]


def _discriminator(width: int) -> nn.Sequential:
    """A patch discriminator: C → 256 → 128 → 1."""
    return nn.Sequential(
        nn.Conv2d(width, 256, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(256, 128, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 3, padding=1),
    )


def _require_mean_and_linear(model: Classifier) -> None:
    name = model.spec.architecture
    refusal = InputError(
        f"The method 'kdfm' cannot take '{name}': it needs networks that classify the mean of their last map with one "
        "linear layer, such as a ResNet."
    )
    if not isinstance(model.head, LinearHead):
        raise refusal
    with eval_mode(model):
        seen = Tapped(model, MAPS)(noise(model, model.spec.image_size))
    mean = seen.stages[-1].mean(dim=(2, 3))
    if mean.shape != seen.pooled.shape or not torch.allclose(mean, seen.pooled, rtol=1e-3, atol=1e-4):
        raise refusal


def _shared(student: Classifier) -> SharedClassifier:
    return next(module for module in student.body.modules() if isinstance(module, SharedClassifier))


def _replace_head(student: Classifier, old: nn.Module, new: nn.Module) -> None:
    path = next(name for name, module in student.body.named_modules() if module is old)
    parent, _, own = path.rpartition(".")
    setattr(student.body.get_submodule(parent), own, new)
