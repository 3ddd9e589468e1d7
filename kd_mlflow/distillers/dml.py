"""Deep mutual learning (Zhang, Xiang, Hospedales and Lu, CVPR 2018, arXiv 1706.00384)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

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
from kd_mlflow.distillers.kd import soft_divergence
from kd_mlflow.distillers.options import MethodOptions, Source, setting
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.zoo import build


@full_precision
def mutual_loss(logits: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Mean over the other networks j of KL(p_j ‖ p), in nats (equations 2 to 6); they get no gradient.

    ``logits`` and each of ``others`` are ``[B, K]``.
    """
    parts = [soft_divergence(logits, F.log_softmax(other.detach(), dim=1), 1.0).mean() for other in others]
    return sum(parts[1:], parts[0]) / len(parts)


class DMLOptions(MethodOptions):
    """Options of DML."""

    peers: int = setting(1, "Further networks that learn beside the student.", ge=1, le=8)
    peer: str = setting("", "Their architecture; empty: the student's.")
    weight: float = setting(1.0, "Weight of the mutual term; 1 on the cross-entropy.", ge=0)


class DML(Distiller):
    """The student and peers learn together, each from the labels and from the others; there is no teacher."""

    source = Source("Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR", 2018, "authors' code", "1706.00384")
    Options = DMLOptions
    learns_unlabeled = True
    teacher_count = (0, 0)
    limits = (
        "All networks are updated at once, as in the authors' code; the paper updates them in turn. Peers start from "
        "scratch, whatever the student's weights; their figures are those of the last epoch."
    )

    def __init__(self, context: Context, options: DMLOptions) -> None:
        super().__init__(context, options)
        if context.student is None:
            raise InputError("The method 'dml' builds its peers like the student, which is not known.")
        spec = context.student.spec
        spec = spec.model_copy(update={"architecture": options.peer or spec.architecture})
        # The student's own weights come from the run's seed; a peer must not start as its twin.
        self.peers = nn.ModuleList(build(spec, seed=context.seed + number) for number in range(1, options.peers + 1))
        self.weight = options.weight

    def step(self, batch: Batch, student: StudentModel, teachers: Sequence[TeacherSource], progress: Progress) -> Step:
        """One pass of every network; the losses touch only the parameters of their own."""
        logits = [student(batch.images).logits, *[peer(batch.images) for peer in self.peers]]
        entropies = [self.cross_entropy(own, batch.labels) for own in logits]
        mutual = [mutual_loss(own, [other for other in logits if other is not own]) for own in logits]
        losses = [entropy + self.weight * term for entropy, term in zip(entropies, mutual, strict=True)]
        terms = {"cross_entropy": entropies[0], "mutual": mutual[0], "peer_cross_entropy": entropies[1]}
        return make_step({"main": losses[0], "peers": sum(losses[2:], losses[1])}, logits[0], terms)

    def optimizer_groups(self) -> list[ParameterGroup]:
        """The peers, optimised like the student."""
        return [ParameterGroup("peers", list(self.peers.parameters()))]

    def alternatives(self, student: Classifier, images: Tensor) -> dict[str, Tensor]:
        """What each peer says."""
        self.eval()
        return {f"peer_{number}": peer(images) for number, peer in enumerate(self.peers, 1)}
