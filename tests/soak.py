"""A soak: small runs and searches without end, while whatever they need is killed.

`python -m tests.soak --minutes 20` starts a Postgres (for MLflow and Optuna), a tracking server over HTTP, a process
that trains one small student after the other, a loop of whole commands and one of searches with two workers; every
10 to 40 seconds it kills one of them, the tracking server or Postgres, and starts again what does not do so itself.
At the end it holds every finished run against an undisturbed one of the same options.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import psutil

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunRecord, find_runs, history
from tests.conftest import QUICK, ROOT, make_photos
from tests.search.postgres import Postgres

SEEDS = 4
EPOCHS = 12
CURVES = ("train/loss", "val/loss", "val/accuracy")
TRAINING = ["--image-size", "32", "--batch-size", "8", "--epochs", str(EPOCHS), *QUICK[2:4]]
SEARCH = [
    "--final-seeds",
    "0",
    "--heartbeat",
    "2",
    "--pruner",
    "none",
    "--sampler",
    "grid",
    "--workers",
    "2",
    "--no-reuse",
]
# With the first trial, which has the report's values, nine in all.
SPACE = ["--search", "temperature=1,4", "--search", "alpha=0.3,0.9", "--search", "learning_rate=0.001,0.01"]
TRIALS = "9"


@dataclass
class Scene:
    """Where all of it happens, and what was done to it."""

    folder: Path
    photos: Path
    postgres: Postgres
    storage: str
    port: int
    over: threading.Event = field(default_factory=threading.Event)
    faults: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    server: subprocess.Popen[bytes] | None = None
    commands: dict[str, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, uri: str, home: str) -> dict[str, str]:
        """A command's own machine."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "KD_"))}
        return kept | {
            "MLFLOW_TRACKING_URI": uri,
            "KD_MLFLOW_HOME": str(self.folder / home),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "NO_COLOR": "1",
        }

    def start(self, name: str, *arguments: str, uri: str = "", home: str = "home") -> subprocess.Popen[str]:
        """A process of the soak; what it says goes to a file of its own."""
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], cwd=self.folder, env=self.environment(uri or self.uri, home), text=True,
                stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self.commands[name] = process
        return process

    def serve(self) -> None:
        """The tracking server, as a process group of its own."""
        with (self.folder / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                    "--workers", "1", "--backend-store-uri", self.postgres.url,
                    "--artifacts-destination", str(self.folder / "artifacts"),
                ],
                cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip

    def answers(self) -> None:
        """Wait for the tracking server."""
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("The tracking server does not start.")


def student(scene: Scene, seed: int) -> list[str]:
    return ["-m", "kd_mlflow", "student", "--data", str(scene.photos), *TRAINING, "--seed", str(seed)]


def search(scene: Scene, name: str, storage: str) -> list[str]:
    pair = ["--data", str(scene.photos), *QUICK, "--epochs", str(EPOCHS), "--study", name, "--storage", storage]
    return ["-m", "kd_mlflow", "search", *pair, *SEARCH, *SPACE, "--trials", TRIALS]


def commands(scene: Scene) -> None:
    """Whole commands, each taken up again until it has ended as it should."""
    number = 0
    while not scene.over.is_set():
        process = scene.start("command", *student(scene, number % SEEDS), "--resume", "newest")
        process.communicate()
        if process.returncode == 0:
            number += 1
            scene.done["commands"] += 1
        else:
            time.sleep(1)


def searches(scene: Scene) -> None:
    """Whole searches, each taken up again until it is complete."""
    number = 0
    while not scene.over.is_set():
        process = scene.start("search", *search(scene, f"soak{number}", scene.storage))
        process.communicate()
        if process.returncode == 0:
            number += 1
            scene.done["searches"] += 1
        else:
            time.sleep(1)


def chaos(scene: Scene, draw: random.Random) -> None:
    """Every 10 to 40 seconds something is killed."""
    while not scene.over.wait(draw.uniform(10, 40)):
        fault = draw.choice(["tracking server", "Postgres", "command", "search", "worker"])
        if fault == "tracking server":
            os.killpg(scene.server.pid, signal.SIGKILL)
            scene.server.wait()
            time.sleep(draw.uniform(0, 8))
            scene.serve()
        elif fault == "Postgres":
            scene.postgres.restart(draw.uniform(0, 5))
        else:
            victim = _victim(scene, fault)
            if victim is None:
                continue
            victim.kill()
        scene.faults[fault] += 1
        click.echo(f"{time.strftime('%H:%M:%S')} killed: {fault}", err=True)


def _victim(scene: Scene, kind: str) -> psutil.Process | None:
    process = scene.commands.get("search" if kind == "worker" else kind)
    try:
        found = psutil.Process(process.pid) if process and process.poll() is None else None
        if kind != "worker" or found is None:
            return found
        workers = [one for one in found.children(recursive=True) if "search-worker" in " ".join(one.cmdline())]
        return random.choice(workers) if workers else None
    except psutil.Error:
        return None


def references(scene: Scene) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The curves of every run that can occur, from a store that nobody disturbs."""
    uri = f"sqlite:///{scene.folder}/quiet.db"
    for seed in range(SEEDS):
        _undisturbed(scene, uri, student(scene, seed))
    _undisturbed(scene, uri, search(scene, "quiet", f"sqlite:///{scene.folder}/quiet-optuna.db"))
    client = connect(uri)
    runs = [run for run in find_runs(client, tags={}, status="FINISHED") if key(run)]
    return {key(run): curves(client, run) for run in runs}


def _undisturbed(scene: Scene, uri: str, arguments: list[str]) -> None:
    process = scene.start("quiet", *arguments, uri=uri, home="quiet-home")
    process.communicate()
    if process.returncode:
        raise SystemExit((scene.folder / "quiet.log").read_text())


def key(run: RunRecord) -> str:
    """What makes two runs equal."""
    if run.role == "control":
        return f"control seed {run.params['cfg.seed']}"
    if run.role == "trial" and "cfg.temperature" in run.params:
        values = (float(run.params[f"cfg.{name}"]) for name in ("temperature", "alpha", "learning_rate"))
        return "trial with temperature {:g}, alpha {:g}, learning rate {:g}".format(*values)
    return ""


def curves(client, run: RunRecord) -> dict[str, list[tuple[int, float]]]:
    return history(client, run.run_id, [name for name in CURVES if name in run.metrics])


def judge(scene: Scene, quiet: dict) -> list[str]:
    """What is not as it should be."""
    client, wrong = connect(scene.uri), []
    for run in find_runs(client, tags={}):
        if run.status == "RUNNING":
            wrong.append(f"run {run.run_id} ({run.role}) is RUNNING")
        if run.status != "FINISHED" or not key(run):
            continue
        scene.done[f"finished {run.role} runs compared"] += 1
        if apart := different(curves(client, run), quiet[key(run)]):
            wrong.append(f"run {run.run_id} ({key(run)}): {apart}")
    left = [path.name for path in (scene.folder / "home" / "spool").glob("*.journal")]
    return wrong + [f"left in the spool: {name}" for name in left]


def different(found: dict, expected: dict) -> str:
    """The first point in which two runs differ; empty if they are equal."""
    for name in sorted(found.keys() | expected.keys()):
        here, there = found.get(name, []), expected.get(name, [])
        if here != there:
            odd = next(((a, b) for a, b in zip(here, there, strict=False) if a != b), (len(here), len(there)))
            return f"{name} is {odd[0]}, undisturbed {odd[1]}"
    return ""


def steady_growth(samples: list[dict[str, float]]) -> list[str]:
    """What the process that trains all the time has more of at its end than after its first runs."""
    if len(samples) < 8:
        return [f"the steady process ended only {len(samples)} runs"]
    early, late = samples[2:5], samples[-3:]
    wrong = []
    for name, allowed in (("handles", 1.0), ("threads", 1.0), ("rss_mib", 1.1)):
        before, after = (sorted(one[name] for one in part)[1] for part in (early, late))
        click.echo(f"steady process, {name}: {before:g} after its first runs, {after:g} at the end", err=True)
        if after > before * allowed + (2 if name != "rss_mib" else 0):
            wrong.append(f"{name} grew from {before:g} to {after:g}")
    return wrong


@click.command()
@click.option("--minutes", default=20.0, show_default=True)
@click.option("--seed", default=0, show_default=True)
def soak(minutes: float, seed: int) -> None:
    """Kill, for so many minutes, whatever small runs and searches need; exit code 1 if anything is lost."""
    folder, postgres = Path(tempfile.mkdtemp(prefix="kd-soak-")), Postgres()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scene = Scene(folder, make_photos(folder / "photos", per_class=12), postgres, postgres.database("optuna"), port)
    try:
        quiet = references(scene)
        scene.serve()
        scene.answers()
        steady = scene.start("steady", "-m", "tests.steady", str(scene.photos), str(SEEDS), str(EPOCHS))
        loops = [threading.Thread(target=loop, args=(scene,)) for loop in (commands, searches)]
        for loop in loops:
            loop.start()
        threading.Thread(target=chaos, args=(scene, random.Random(seed)), daemon=True).start()
        scene.over.wait(60 * minutes)
        scene.over.set()
        time.sleep(10)  # what was killed last is up again
        for loop in loops:
            loop.join()
        steady.send_signal(signal.SIGTERM)
        said = steady.communicate()[0]
        samples = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
        scene.done["steady runs"] = len(samples)
        for command in ("sync", "reap"):
            scene.start("command", "-m", "kd_mlflow", command).communicate()
        wrong = judge(scene, quiet) + steady_growth(samples)
    finally:
        os.killpg(scene.server.pid, signal.SIGTERM)
        scene.server.wait()
        postgres.close()
    click.echo(json.dumps({"minutes": minutes, "faults": scene.faults, "done": scene.done, "wrong": wrong}, indent=2))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    soak()
