"""Putting a trained network into the registry, checked on real images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch

from kd_mlflow.config import Recipe
from kd_mlflow.data.loading import evaluation_batches
from kd_mlflow.entrypoints.network import Network
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.tracking.registry import Registered, register
from kd_mlflow.tracking.runs import read_run

CHECK_IMAGES = 8


def register_network(
    session: Session, network: Network, recipe: Recipe, metrics: Mapping[str, float], evidence: str
) -> Registered:
    """Register as NAME-teacher or NAME-student; alias champion only if it beats the champion.

    Parameters
    ----------
    metrics:
        Of the validation split, without a prefix.
    evidence:
        How sure the reading of the method is.
    """
    images = next(evaluation_batches(session.store, "val", batch_size=CHECK_IMAGES, device=torch.device("cpu"))).images
    model = network.model.cpu().eval()
    with torch.inference_mode():
        logits = model(images)
    kind = "teacher" if recipe.role == "teacher" else "student"
    tags = (
        data_tags(session)
        | model_tags(recipe)
        | {
            "kd.role": recipe.role,
            "kd.method": recipe.method,
            "kd.evidence": evidence,
            "kd.run_id": network.run_id,
            "kd.parameters": str(sum(parameter.numel() for parameter in model.parameters())),
            "kd.fingerprint": read_run(session.client, network.run_id).tags["kd.fingerprint"],
            **{f"kd.val_{name}": f"{value:.10g}" for name, value in metrics.items()},
        }
    )
    registered = register(
        session.client,
        run_id=network.run_id,
        name=f"{session.name}-{kind}",
        folder=network.folder,
        tags=tags,
        check_images=np.asarray(images),
        check_logits=logits.numpy(),
    )
    session.terminal.say(f"Registered {registered.name} version {registered.version} as {registered.alias}")
    model.to(session.device)
    return registered


def data_tags(session: Session) -> dict[str, str]:
    """What a model must share with the data to be its teacher without more ado."""
    classes = "\0".join(session.store.classes)
    return {
        "kd.dataset_digest": session.store.digest,
        "kd.image_size": str(session.store.image_size),
        "kd.classes_digest": hashlib.sha256(classes.encode()).hexdigest()[:32],
    }


def model_tags(recipe: Recipe) -> dict[str, str]:
    """What makes two networks of one architecture."""
    return {
        "kd.architecture": recipe.architecture,
        "kd.stem": recipe.stem,
        "kd.squeeze_excitation": str(recipe.squeeze_excitation).lower(),
    }
