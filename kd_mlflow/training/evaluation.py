"""A network's logits over a split, and the figures of merit that every epoch reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn

from kd_mlflow.data.batch import Batch
from kd_mlflow.training.device import Precision, autocast


@torch.inference_mode()
def predict_logits(
    model: nn.Module, batches: Iterable[Batch], device: torch.device, precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[N, K]`` (float32), labels ``[N]`` and indices ``[N]`` on the CPU, model in eval mode.

    The model's own mode is restored afterwards.
    """
    was_training = model.training
    model.eval()
    logits, labels, index = [], [], []
    with autocast(device, precision):
        for batch in batches:
            logits.append(model(batch.images).float())
            labels.append(batch.labels)
            index.append(batch.index)
    model.train(was_training)
    return torch.cat(logits).cpu(), torch.cat(labels).cpu(), torch.cat(index).cpu()


@torch.inference_mode()
def measure_accuracy(model: nn.Module, batches: Iterable[Batch], device: torch.device, precision: Precision) -> float:
    """The share of right predictions, in eval mode; holds no more than a batch."""
    was_training = model.training
    model.eval()
    right, seen = torch.zeros((), dtype=torch.int64, device=device), 0
    with autocast(device, precision):
        for batch in batches:
            right += (model(batch.images).argmax(dim=1) == batch.labels).sum()
            seen += len(batch.labels)
    model.train(was_training)
    return int(right) / seen


@torch.inference_mode()
def measure_alternatives(
    trained: nn.Module,
    deployed: nn.Module,
    predict: Callable[[nn.Module, Tensor], dict[str, Tensor]],
    batches: Iterable[Batch],
    device: torch.device,
    precision: Precision,
) -> dict[str, float]:
    """Accuracy of every prediction that ``predict(trained, images)`` gives by name, in eval mode.

    ``NAME/corrected`` is the share that it gets right of what ``deployed`` gets wrong.
    """
    trained.eval()
    deployed.eval()
    right: dict[str, int] = {}
    corrected: dict[str, int] = {}
    seen = wrong = 0
    with autocast(device, precision):
        for batch in batches:
            named = predict(trained, batch.images)
            if not named:
                return {}
            missed = deployed(batch.images).argmax(dim=1) != batch.labels
            seen, wrong = seen + len(batch.labels), wrong + int(missed.sum())
            for name, logits in named.items():
                hit = logits.argmax(dim=1) == batch.labels
                right[name] = right.get(name, 0) + int(hit.sum())
                corrected[name] = corrected.get(name, 0) + int((hit & missed).sum())
    figures = {f"{name}/accuracy": count / seen for name, count in right.items()}
    return figures | {f"{name}/corrected": count / wrong for name, count in corrected.items() if wrong}


def epoch_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Plain cross-entropy, accuracy and macro F1 of logits ``[N, K]``."""
    predicted, present = logits.argmax(dim=1), labels.unique().numpy()
    f1 = f1_score(labels.numpy(), predicted.numpy(), labels=present, average="macro", zero_division=0)
    return {
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "accuracy": (predicted == labels).double().mean().item(),
        "macro_f1": float(f1),
    }
