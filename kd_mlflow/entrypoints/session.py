"""What every command that touches data and the record needs, opened once."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kd_mlflow.config import PlaceOptions
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.places import CHECKPOINTS, SPOOL, TEACHER_OUTPUTS, home, home_folder
from kd_mlflow.tracking.client import connect, one_line, require_not_deleted
from kd_mlflow.tracking.existing import check_adoptable
from kd_mlflow.tracking.experiments import experiment_name
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
    preparations:
        What is known of weights files that were used: see :mod:`kd_mlflow.entrypoints.foreign_weights`.
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
    preparations: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        config: PlaceOptions,
        terminal: Terminal,
        value_range: tuple[int, int] | None = None,
        *,
        new_run: bool = False,
    ) -> Session:
        """Check what can be checked at once, connect, and prepare the data.

        Parameters
        ----------
        value_range:
            What black and white are, for the model that is to be used, in images of more than 8 bits a channel;
            None takes it from the data.
        new_run:
            Whether the command makes a run in the experiment that was asked for, which must then not be deleted.

        Raises
        ------
        InputError
            Device, store, experiment or data cannot be used.
        """
        device = resolve_device(config.device)
        precision = resolve_precision(getattr(config, "precision", "auto"), device)
        if precision == "float16" and device.type == "cpu":
            terminal.warn("--precision float16 is slow on a CPU, which computes in float32 or bfloat16 natively.")
        place = home()
        home_folder(SPOOL)
        if getattr(config, "teacher_cache", "off") != "off":
            home_folder(TEACHER_OUTPUTS)
        client = connect(config.tracking_uri)
        check_adoptable(client)
        experiment = experiment_name(client, config.experiment)
        if new_run and not os.environ.get("MLFLOW_RUN_ID"):  # which brings its own experiment
            require_not_deleted(client, experiment)
        _mend(client, place, terminal)
        with terminal.preparing(f"Preparing {config.data}") as progress:
            store = prepare(config, place, progress)
            if value_range is not None and store.value_range not in (None, value_range):
                store = prepare(config, place, progress, value_range)
        counts = ", ".join(f"{len(index)} {split}" for split, index in store.splits.items())
        terminal.say(f"Data {store.name}: {len(store.classes)} classes, {counts}, {store.image_size} px")
        for warning in store.warnings:
            terminal.warn(warning)
        if store.bad:
            first = store.bad[0]
            terminal.warn(f"{len(store.bad)} files cannot be used, the first: {first.path} ({first.reason})")
        return cls(config, place, client, store, device, precision, terminal, experiment, place / CHECKPOINTS)

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
