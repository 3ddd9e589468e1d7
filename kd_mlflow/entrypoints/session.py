"""What every command that touches data and the record needs, opened once."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd_mlflow.config import PlaceOptions
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.places import home
from kd_mlflow.tracking.client import connect, one_line
from kd_mlflow.tracking.reaper import reap
from kd_mlflow.tracking.spool import send_left
from kd_mlflow.training.device import Precision, resolve_device, resolve_precision

log = logging.getLogger(__name__)


@dataclass
class Session:
    """An open command: options, data, device and store of runs.

    Attributes
    ----------
    experiment:
        Where runs are made; once the command's own run is open, that run's experiment.
    checkpoint_root:
        The folder that holds a folder of checkpoints a run.
    """

    config: Any
    home: Path
    client: Any
    store: Store
    device: torch.device
    precision: Precision
    terminal: Terminal
    experiment: str
    checkpoint_root: Path

    @classmethod
    def open(cls, config: PlaceOptions, terminal: Terminal) -> Session:
        """Check what can be checked at once, connect, and prepare the data."""
        device = resolve_device(config.device)
        precision = resolve_precision(getattr(config, "precision", "auto"), device)
        if precision == "float16" and device.type == "cpu":
            terminal.warn("--precision float16 is slow on a CPU, which computes in float32 or bfloat16 natively.")
        place = home()
        client = connect(config.tracking_uri)
        _mend(client, place, terminal)
        with terminal.preparing(f"Preparing {config.data}") as progress:
            store = prepare(config, place, progress)
        counts = ", ".join(f"{len(index)} {split}" for split, index in store.splits.items())
        terminal.say(f"Data {store.name}: {len(store.classes)} classes, {counts}, {store.image_size} px")
        for warning in store.warnings:
            terminal.warn(warning)
        if store.bad:
            first = store.bad[0]
            terminal.warn(f"{len(store.bad)} files cannot be used, the first: {first.path} ({first.reason})")
        experiment = config.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "kd-mlflow"
        return cls(config, place, client, store, device, precision, terminal, experiment, place / "checkpoints")

    @property
    def name(self) -> str:
        """The stem of the names in the registry."""
        return getattr(self.config, "name", "") or re.sub(r"[/:@]+", "-", self.store.name)

    def checkpoints(self, run_id: str) -> Path:
        """The folder of a run's checkpoints."""
        return self.checkpoint_root / run_id


def _mend(client: Any, place: Path, terminal: Terminal) -> None:
    """What earlier commands left undone when they were killed; nothing of it may stand in the way of this one."""
    try:
        # In this order: the end of a run may be among what was not sent.
        for sent in send_left(client, place / "spool"):
            if not sent.error:
                terminal.say(f"Sent what a command had left here of run {sent.run_id} ({sent.records} records)")
        for left in reap(client):
            terminal.say(f"Run {left.run_id} ({left.role}) was left by a process that is gone; it is KILLED now")
    except Exception as error:
        log.warning("What earlier commands left could not be looked at: %s", one_line(error))
