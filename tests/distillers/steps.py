"""Two steps of any method, whole, in parts or in one of several processes, with all that comes out of them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from kd_mlflow.config import DistillConfig, Recipe, recipe, resolve
from kd_mlflow.distillers.base import Progress
from kd_mlflow.distillers.registry import create
from kd_mlflow.models.taps import Tapped
from kd_mlflow.training.group import Group
from kd_mlflow.training.loop import Task, _step
from kd_mlflow.training.state import TrainingState
from kd_mlflow.training.teachers import LiveTeacher
from tests.distillers.networks import batch, context, network

CPU = torch.device("cpu")


def recipe_of(name: str, options: dict, parts: int) -> Recipe:
    """Plain SGD by a method, each batch in so many parts."""
    given = {"data": "photos", "optimizer": "sgd", "momentum": 0, "learning_rate": 1e-3, "accumulate": parts}
    config = resolve(DistillConfig, given | {"schedule": "constant"})
    return recipe(config, "student", "float32").model_copy(update={"method": name, "method_options": options})


def two_steps(
    name: str, options: dict, parts: int, group: Group | None = None, precision: str = "float64"
) -> dict[str, torch.Tensor]:
    """Losses, terms, gradients and all state after the last step of an epoch and the first of the next one.

    In float64, with BatchNorm in eval mode, so that the whole batch, its parts and its shares can be equal.
    """
    plan = recipe_of(name, options, parts)
    if precision == "float16":
        plan = plan.model_copy(update={"precision": precision})
    dtype = torch.float64 if precision == "float64" else torch.float32
    teacher, student = network("tests.distillers.small:deep", 1), network("tests.distillers.small:shallow", 2)
    known = context(student, teacher, samples=16)
    known = replace(known, class_weights=torch.tensor([0.5, 1.0, 4.0]), label_smoothing=0.1)
    distiller = create(name, known, options).to(dtype)
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    teachers = [LiveTeacher(teacher.to(dtype), needs, CPU)] if distiller.teacher_count[1] else []
    torch.manual_seed(0)
    trained = distiller.training_student(student).to(dtype)
    task = Task(plan, trained, distiller, teachers, iter, iter, 2, CPU)
    state = TrainingState.fresh(plan, trained, distiller, CPU)
    for module in (*trained.modules(), *distiller.modules()):
        module.training = not isinstance(module, nn.BatchNorm2d)
    group = group or Group()
    forward = group.forward(Tapped(trained, distiller.needs), distiller)
    found = {}
    for number, (epoch, step) in enumerate(((6, 11), (7, 12))):
        progress = Progress(epoch, 10, step, 2)
        share = batch(step, 8).split(group.size)[group.rank]
        images = distiller.transform_batch(share, progress)
        done = _step(task, state, forward, images, progress)
        found |= {f"{number} loss {key}": value.detach() for key, value in done.losses.items()}
        found |= {f"{number} term {key}": value for key, value in done.terms.items()}
        found[f"{number} logits"] = done.logits
        for owner, module in (("student", trained), ("method", distiller)):
            gradients = {key: value.grad for key, value in module.named_parameters() if value.grad is not None}
            found |= {f"{number} gradient {owner} {key}": value.clone() for key, value in gradients.items()}
    return found | {f"state {key}": value for key, value in state.tensors().items()}
