"""How a batch is shared by processes and cut into parts: what cannot be is said before anything trains."""

from __future__ import annotations

import torch
from torch import nn

from kd_mlflow.config import Recipe
from kd_mlflow.data.batch import part_count
from kd_mlflow.distillers.registry import method_class, method_options
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.group import Group
from kd_mlflow.training.state import smallest_part


def is_relational(recipe: Recipe) -> bool:
    """Whether the recipe's method sees the images of a batch together, so that it is never cut into parts."""
    return method_class(recipe.method).is_relational(method_options(recipe.method, recipe.method_options))


def check_parts(recipe: Recipe) -> None:
    """Refuse parts for a method whose loss is not the mean over the parts of a batch.

    Raises
    ------
    InputError
        ``--accumulate`` asks for them.
    """
    if recipe.accumulate > 1 and is_relational(recipe):
        raise InputError(
            f"The method '{recipe.method}' sees the images of a batch together, so that --accumulate "
            f"{recipe.accumulate} would change its loss; leave it out, and take a smaller --batch-size where memory "
            "is short."
        )


def check_images(recipe: Recipe, images: int, *trained: nn.Module) -> None:
    """Refuse a batch that is too small for the modules that are trained, or cannot be shared by the processes.

    Parameters
    ----------
    images:
        Of the training split.

    Raises
    ------
    InputError
        BatchNorm would see one image, a relation would have one end, or the shares would differ.
    """
    batch = min(recipe.batch_size, images)
    smallest = smallest_part(*trained)
    Group(0, recipe.devices).check(batch, smallest)
    why = "its BatchNorm needs two or more" if smallest > 1 else ""
    if is_relational(recipe):
        why = why or f"the method '{recipe.method}' sees them together"
    if batch > 1 or not why:
        return
    if images == 1:
        raise InputError(
            f"The training split has one image, and {recipe.architecture} cannot be trained on that: {why}; add images."
        )
    raise InputError(
        f"--batch-size 1 gives {recipe.architecture} one image a step, and {why}; give --batch-size 2 or more."
    )


def shares_sentence(recipe: Recipe) -> str:
    """What several processes make of the batch; empty for one."""
    if recipe.devices == 1:
        return ""
    return (
        f"{recipe.devices} processes, each with {recipe.batch_size // recipe.devices} images of a batch of "
        f"{recipe.batch_size}; the learning rate {recipe.learning_rate:g} is that of the whole batch."
    )


def parts_sentence(recipe: Recipe, images: int, *trained: nn.Module) -> str:
    """That a batch is cut into fewer parts than were asked for; empty where it is not.

    ``images`` are those of the training split.
    """
    share = _share(recipe, images)
    count = part_count(share, recipe.accumulate, smallest_part(*trained))
    if count == recipe.accumulate:
        return ""
    why = "since BatchNorm needs two images or more in each" if count < share else "of one image each"
    return f"--accumulate {recipe.accumulate} cuts {share} images into {count} part{'s' if count > 1 else ''}, {why}."


def in_more_parts(session: Session, writer: RunWriter, recipe: Recipe, *trained: nn.Module) -> Recipe:
    """The recipe with batches in about twice as many parts, with which the training goes on from its checkpoint.

    Raises
    ------
    GuardError
        Not even the smallest parts fit, or the method's batch must not be cut.
    """
    share, smallest = _share(recipe, len(session.store.splits["train"])), smallest_part(*trained)
    count = part_count(share, recipe.accumulate, smallest)
    if is_relational(recipe):
        raise GuardError(
            f"The device's memory does not hold a step of {share} images, and the batch is not cut into parts because "
            f"the method '{recipe.method}' sees its images together; try a smaller --batch-size, --image-size or "
            "network, or --devices."
        )
    more = part_count(share, 2 * count, smallest)
    if more == count:
        raise GuardError(
            f"The device's memory does not hold a step of {-(-share // count)} images; try a smaller --image-size or "
            "network."
        )
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
    session.terminal.warn(
        f"The device's memory does not hold a step; going on with each batch of {share} in {more} parts "
        f"of up to {-(-share // more)} images (--accumulate {more})."
    )
    writer.tags({"kd.accumulate": str(more)})
    return recipe.model_copy(update={"accumulate": more})


def _share(recipe: Recipe, images: int) -> int:
    """How many images of a batch each process has."""
    return min(recipe.batch_size, images) // recipe.devices
