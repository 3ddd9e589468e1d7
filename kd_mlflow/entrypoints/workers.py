"""The workers of a search on this machine: processes that are started, watched, replaced and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from kd_mlflow.config import SearchConfig
from kd_mlflow.entrypoints.checkpoints import CHECKPOINTS_VARIABLE, checkpoint_place
from kd_mlflow.entrypoints.parent import STOP_WITH
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import KdMlflowError
from kd_mlflow.places import absolute
from kd_mlflow.search.storage import absolute_sqlite
from kd_mlflow.search.study import SearchStudy
from kd_mlflow.search.worker import Ending

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 30.0


class Workers(Protocol):
    """Several workers, wherever they are."""

    def poll(self) -> list[int | None]:
        """The exit code of each; None while it runs."""

    def interrupt(self) -> None:
        """Let each stop after its epoch."""

    def terminate(self) -> None:
        """Let each give its trial back at once and end."""

    def close(self) -> None:
        """Leave none behind."""


class LocalWorkers:
    """Processes of this machine; one that is killed is replaced, so many times in all as there are workers."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
        self.commands = [list(command) for command in commands]
        self.environment = dict(environment)
        self.processes = [self._start(command) for command in self.commands]
        self.replacements = len(self.commands)
        self.stopping = False

    def poll(self) -> list[int | None]:
        """The exit code of each; None while it, or the one in its place, runs."""
        for place, process in enumerate(self.processes):
            killed = (process.poll() or 0) < 0
            if killed and self.replacements and not self.stopping:
                self.replacements -= 1
                self.processes[place] = self._start(self.commands[place])
        return [process.poll() for process in self.processes]

    def interrupt(self) -> None:
        """SIGINT to each."""
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        """SIGTERM to each."""
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Leave none behind: who does not end when asked is killed, and its trial done again by another."""
        self.terminate()
        until = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _signal(self, number: int) -> None:
        self.stopping = True
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the workers through us alone, and once.
        return subprocess.Popen(command, env={**os.environ, **self.environment}, start_new_session=True)


def start_workers(session: Session, study: SearchStudy, config: SearchConfig) -> Workers:
    """Start what --workers and --engine ask for; GPUs are dealt out in turn, processor cores shared."""
    common = ["--study", study.name, "--data", absolute(config.data)]
    gpus = torch.cuda.device_count() if config.device in ("auto", "cuda") else 0
    command = [sys.executable, "-m", "kd_mlflow", "search-worker", *common]
    # Through the environment and not the command line, which every user of the machine can read.
    environment = {
        "KD_MLFLOW_STORAGE": study.url,
        "MLFLOW_TRACKING_URI": absolute_sqlite(session.client.tracking_uri),
        CHECKPOINTS_VARIABLE: checkpoint_place(config.checkpoints),
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // max(1, config.workers * config.devices))),
    }
    if config.engine == "ray":
        from kd_mlflow.entrypoints.ray_engine import RayWorkers

        each = config.devices if gpus and config.devices > 1 else min(1.0, gpus / config.workers)
        return RayWorkers(
            [*command, "--device", config.device], environment, config.workers, gpus_each=each, cpus_each=1
        )
    # A worker whose trainings take several GPUs has them side by side.
    groups = gpus // config.devices
    devices = [
        f"cuda:{place % groups * config.devices}" if groups else config.device for place in range(config.workers)
    ]
    commands = [[*command, "--device", device] for device in devices]
    return LocalWorkers(commands, environment | {STOP_WITH: str(os.getpid())})


def watch(workers: Workers, study: SearchStudy, terminal: Terminal) -> Ending:
    """Wait until the study has its trials; Ctrl-C stops after the epoch, a second one at once.

    Raises
    ------
    KdMlflowError
        Every worker ended, and the study is not done.
    """
    interrupted = False
    try:
        while True:
            try:
                codes = workers.poll()
                if study.ledger().done(study.total) and all(code is not None for code in codes):
                    return "done"
                if codes and all(code is not None for code in codes):
                    return _without_workers(study, codes, interrupted)
                if not codes and (interrupted or study.ending()):
                    return "interrupted" if interrupted else study.ending()
                time.sleep(POLL_SECONDS)
            except KeyboardInterrupt as signalled:
                if interrupted or str(signalled):  # SIGTERM comes with its name
                    raise
                interrupted = True
                terminal.say("Stopping after this epoch; Ctrl-C once more stops at once.")
                workers.interrupt()
    finally:
        workers.close()


def _without_workers(study: SearchStudy, codes: Sequence[int | None], interrupted: bool) -> Ending:
    if interrupted:
        return "interrupted"
    if ending := study.ending():
        return ending
    raise KdMlflowError(
        f"All workers ended (exit codes {', '.join(map(str, codes))}) before the study '{study.name}' had its trials; "
        "their last words stand above."
    )
