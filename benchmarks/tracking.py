"""What recording every epoch costs a training: off, into sqlite, over HTTP."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import psutil
import torch

from benchmarks.contenders import network
from benchmarks.timing import Contender, machine, ratio_of_turns, spread, take_turns, tell
from kd_mlflow.config import DistillConfig, recipe, resolve
from kd_mlflow.data.loading import evaluation_batches, steps_per_epoch, training_batches
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.registry import create
from kd_mlflow.entrypoints.recording import Recorder
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.checkpoint import CheckpointFolder, EpochRow
from kd_mlflow.training.loop import Task, fit
from kd_mlflow.training.observer import Observer, Silent
from kd_mlflow.training.teachers import LiveTeacher

CPU = torch.device("cpu")
COSTS = ("waits_s", "threads_cpu_s", "server_cpu_s")


@click.command()
@click.option("--epochs", default=3, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def tracking(epochs: int, rounds: int, image_size: int, as_json: bool, markdown: bool) -> None:
    """Seconds of the same training with tracking off, into sqlite and over HTTP, heartbeats and system metrics on."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ["KD_MLFLOW_HOME"] = str(place / "home")
        config = resolve(DistillConfig, {"epochs": epochs, "image_size": image_size, "device": "cpu"})
        store = prepare(config, place / "home")
        with _server(place) as (url, server):
            tracked = {
                "sqlite": _Tracked(config, store, place, f"sqlite:///{place}/mlflow.db"),
                "http": _Tracked(config, store, place, url, server),
            }
            seconds = take_turns({"off": _untracked(config, store, place), **tracked}, 1, rounds)
    off = statistics.median(seconds["off"])
    figures: dict[str, dict[str, float]] = spread(seconds)
    for name, figure in figures.items():
        figure |= tracked[name].costs() if name in tracked else dict.fromkeys(COSTS, 0.0)
    result = {
        "machine": machine(),
        "setting": f"ResNet34 → ResNet18 on digits, {image_size} px, {epochs} epochs, median of {rounds} turns.",
        "contenders": figures,
        "ratios": {f"seconds {name}/off": ratio_of_turns(seconds, "off", name) for name in tracked}
        | {f"work of {name}, share of off": tracked[name].work() / off for name in tracked},
    }
    tell("Tracking", result, as_json, markdown)


def _untracked(config: DistillConfig, store: Store, place: Path) -> Contender:
    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            _fit(config, store, place, Silent())
        return time.perf_counter() - started

    return run


class _Tracked:
    """Trains with a run, and adds up what the run costs, which the noise of whole trainings would hide."""

    def __init__(
        self, config: DistillConfig, store: Store, place: Path, uri: str, server: psutil.Process | None = None
    ) -> None:
        self.what = config, store, place
        self.client = connect(uri)
        self.server = server
        # A turn each: seconds that the training waited, processor seconds of other threads, and of the server.
        self.turns: list[tuple[float, float, float]] = []

    def __call__(self, steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            self._train()
        return time.perf_counter() - started

    def costs(self) -> dict[str, float]:
        """Medians over the turns."""
        return dict(zip(COSTS, map(statistics.median, zip(*self.turns, strict=True)), strict=True))

    def work(self) -> float:
        """Seconds by which a training grows that could use every core."""
        waits, threads, server = self.costs().values()
        return waits + (threads + server) / (os.cpu_count() or 1)

    def _train(self) -> None:
        config, store, place = self.what
        served, waits = self._served(), _Stopwatch()
        with ExitStack() as ends:
            with waits:
                writer = ends.enter_context(
                    RunWriter.open(self.client, role="student", experiment="benchmark", run_name="benchmark", tags={})
                )
                writer.params(config.recorded())
                writer.start_system_metrics()
            _fit(config, store, place, _Clocked(Recorder(writer), waits))
            threads = _processor_seconds("spool", "SystemMetricsMonitor")
            with waits:
                writer.finish("FINISHED")
        self.turns.append((waits.seconds, threads, self._served() - served))

    def _served(self) -> float:
        if self.server is None:
            return 0.0
        times = [one.cpu_times() for one in (self.server, *self.server.children(recursive=True))]
        return sum(one.user + one.system for one in times)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.started


class _Clocked(Silent):
    """An observer, and how long the training waits for it."""

    def __init__(self, observer: Observer, waits: _Stopwatch) -> None:
        self.observer, self.waits = observer, waits

    def on_epoch(self, row: EpochRow) -> None:
        with self.waits:
            self.observer.on_epoch(row)


def _processor_seconds(*names: str) -> float:
    """What threads of these names have used so far."""
    clocks = [time.pthread_getcpuclockid(one.ident) for one in threading.enumerate() if one.name in names and one.ident]
    return sum(map(time.clock_gettime, clocks))


def _fit(config: DistillConfig, store: Store, place: Path, observer: Observer) -> None:
    plan = recipe(config, "student", "float32").model_copy(update={"method": "kd"})
    distiller = create("kd", Context(len(store.classes)), {})
    task = Task(
        plan, network(config, store, "resnet18", CPU), distiller,
        [LiveTeacher(network(config, store, "resnet34", CPU), distiller.needs, CPU)],
        lambda epoch: training_batches(store, config, batch_size=64, seed=0, epoch=epoch, device=CPU),
        lambda: evaluation_batches(store, "val", batch_size=64, device=CPU), steps_per_epoch(store, 64), CPU,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=place) as folder:
        fit(task, CheckpointFolder(Path(folder)), observer)


@contextmanager
def _server(place: Path) -> Iterator[tuple[str, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{place}/server.db", "--artifacts-destination", str(place / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (place / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health")
        yield url, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=2).close()  # nosec B310  # the benchmark's own server
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit("The tracking server did not start.")
