"""A process that trains its share of what another one leads; started with RANK in its environment."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kd_mlflow import config as configs
from kd_mlflow.config import Recipe
from kd_mlflow.data.store import prepare
from kd_mlflow.entrypoints.network import training_task
from kd_mlflow.entrypoints.processes import MEMORY, answers, is_loss, meet, next_job
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.zoo import build
from kd_mlflow.places import home
from kd_mlflow.training.checkpoint import EpochRow, Meta
from kd_mlflow.training.group import Ended, Group
from kd_mlflow.training.loop import Task, train
from kd_mlflow.training.observer import Silent

log = logging.getLogger(__name__)


def serve() -> int:
    """Train what the leader tells until it ends; the exit code."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        meet(rank, size)
        while (told := next_job()) is not None:
            _train(*told, Group(rank, size))
    except torch.OutOfMemoryError:
        return MEMORY
    except KeyboardInterrupt:  # the leader says so for all
        return 130
    except RuntimeError as error:
        if not is_loss(error):
            raise
        log.info("The other processes are gone: %s", error)
        return 1
    dist.destroy_process_group()
    return 0


class _Handed:
    """The leader's checkpoint, in a process that writes none."""

    def __init__(self, found: tuple[dict[str, Tensor], Meta] | None) -> None:
        self.found = found

    def load(self) -> tuple[dict[str, Tensor], Meta] | None:
        return self.found

    def save(self, tensors: dict[str, Tensor], best: dict[str, Tensor] | None, meta: Meta) -> Path:
        raise NotImplementedError

    def best(self, meta: Meta) -> dict[str, Tensor]:
        raise NotImplementedError


def _train(job: dict[str, Any], tensors: dict[str, Tensor], group: Group) -> None:
    try:
        task, found = _task(job, tensors, group)
    except Exception as error:  # whatever it is, the leader must hear of it
        answers(f"Process {group.rank} on {socket.gethostname()}: {type(error).__name__}: {error}")
        return
    if any(answers("")):
        return
    try:
        train(task, _Handed(found), Silent())
    except (Ended, GuardError) as end:
        if isinstance(end, GuardError) and not group.agreed:  # this process alone knows of it
            raise
        log.info("The training ended: %s", end)


def _task(job: dict[str, Any], tensors: dict[str, Tensor], group: Group) -> tuple[Task, Any]:
    given = job["config"] | {"device": _device(job["device"])}
    config = getattr(configs, job["command"])(**given)
    device = torch.device(given["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    recipe = Recipe(**job["recipe"])
    store = prepare(config, home())
    if store.digest != job["digest"]:
        raise InputError(f"--data {config.data} is not the data that the leader trains on.")
    session = Session(config, home(), None, store, device, recipe.precision, Terminal(quiet=True), "", home())
    networks = {name: _network(name, spec, tensors) for name, spec in job["networks"].items()}
    teachers = [model for name, model in networks.items() if name != "student"]
    task = training_task(session, recipe, networks["student"], teachers, group)
    if job["meta"] is None:
        return task, None
    meta = Meta(**job["meta"])
    meta.history = [EpochRow(**row) for row in job["meta"]["history"]]
    return task, (_under(tensors, "checkpoint"), meta)


def _network(name: str, spec: dict[str, Any], tensors: dict[str, Tensor]) -> Classifier:
    model = build(ModelSpec(**spec), seed=0)
    model.load_state_dict(_under(tensors, name))
    return model


def _under(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}:"): value for key, value in tensors.items() if key.startswith(f"{name}:")}


def _device(leaders: str) -> str:
    """The leader's kind of device; on a GPU the one of this process's place on its machine."""
    kind, _, index = leaders.partition(":")
    return f"cuda:{int(index or 0) + int(os.environ['LOCAL_RANK'])}" if kind == "cuda" else kind
