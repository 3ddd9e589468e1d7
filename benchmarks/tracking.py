"""What recording every epoch costs a training: off, into sqlite, over HTTP."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
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
from kd_mlflow.training.checkpoint import CheckpointFolder
from kd_mlflow.training.loop import Task, fit
from kd_mlflow.training.observer import Observer, Silent
from kd_mlflow.training.teachers import LiveTeacher

CPU = torch.device("cpu")


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
        with _server(place) as url:
            contenders = {
                "off": _training(config, store, place, None),
                "sqlite": _training(config, store, place, f"sqlite:///{place}/mlflow.db"),
                "http": _training(config, store, place, url),
            }
            seconds = take_turns(contenders, 1, rounds)
    result = {
        "machine": machine(),
        "setting": f"ResNet34 → ResNet18 on digits, {image_size} px, {epochs} epochs, median of {rounds} turns.",
        "contenders": spread(seconds),
        "ratios": {f"seconds {name}/off": ratio_of_turns(seconds, "off", name) for name in ("sqlite", "http")},
    }
    tell("Tracking", result, as_json, markdown)


def _training(config: DistillConfig, store: Store, place: Path, uri: str | None) -> Contender:
    client = connect(uri) if uri else None

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            if client is None:
                _fit(config, store, place, Silent())
                continue
            with RunWriter.open(
                client, role="student", experiment="benchmark", run_name="benchmark", tags={}
            ) as writer:
                writer.params(config.recorded())
                writer.start_system_metrics()
                _fit(config, store, place, Recorder(writer))
                writer.stop_system_metrics()
        return time.perf_counter() - started

    return run


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
def _server(place: Path) -> Iterator[str]:
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
        yield url
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
