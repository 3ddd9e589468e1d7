"""Networks that are only asked, never trained."""

from __future__ import annotations

from kd_mlflow.models.classifier import Classifier


def freeze(model: Classifier) -> Classifier:
    """Put a teacher into eval mode for good and take its parameters out of autograd.

    Changes ``model`` and returns it. A later ``train()``, its own or that of a module that holds it,
    leaves it in eval mode, so that its BatchNorm statistics never move.
    """
    model.frozen = True
    model.requires_grad_(False)
    model.eval()
    return model
