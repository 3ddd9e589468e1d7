"""What a search costs beside its trainings, and what it saves against as many separate commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.timing import machine, tell

STUDY = ["--final-seeds", "0", "--sampler", "tpe"]


@click.command()
@click.option("--trials", default=20, show_default=True)
@click.option("--epochs", default=7, show_default=True, help="Such that a trial trains for about 30 seconds.")
@click.option("--data", default="digits", show_default=True)
@click.option("--image-size", default=32, show_default=True)
@click.option("--student", default="resnet18", show_default=True)
@click.option("--teacher-arch", default="resnet18", show_default=True)
@click.option("--against", type=click.Choice(["bare", "separate"]), default="bare", show_default=True)
@click.option("--sample", default=6, show_default=True, help="Trainings of the other side that are timed.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def search(
    trials: int, epochs: int, data: str, image_size: int, student: str, teacher_arch: str, against: str, sample: int,
    as_json: bool, markdown: bool,
) -> None:  # fmt: skip
    """The overhead of a search over the same trainings bare; or its gain over separate `distill` commands.

    bare: the search without cache and pruning, against the same loop and checkpoints without Optuna, MLflow and
    the start of a process. separate: the search with its cache, with and without pruning, against commands that
    share nothing but the teacher. Half of the other side is timed before the search and half after it, and its
    mean stands for every trial: all trainings are of the same size.
    """
    common = ["--data", data, "--image-size", str(image_size), "--epochs", str(epochs)]
    common += ["--teacher-arch", teacher_arch]
    pair = [*common, "--student", student]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "KD_MLFLOW_HOME": str(place / "home")}
        os.environ["KD_MLFLOW_STORAGE"] = f"sqlite:///{place}/optuna.db"
        _command(place, "teacher", *common)
        found, ratios = (_over_bare if against == "bare" else _over_separate)(place, pair, trials, sample)
    result = {
        "machine": machine(),
        "setting": f"{trials} trials, {teacher_arch} → {student} on {data}, {image_size} px, {epochs} epochs.",
        "contenders": {name: {"seconds": seconds} for name, seconds in found.items()},
        "ratios": ratios,
    }
    tell("A search", result, as_json, markdown)


def _over_bare(place: Path, common: list[str], trials: int, sample: int) -> tuple[dict, dict]:
    half = max(1, sample // 2)
    plain = [*STUDY, "--trials", str(trials), "--pruner", "none", "--teacher-cache", "off"]
    before = _bare(common, half)
    whole = _command(place, "search", *common, *plain)
    each = [*before, *_bare(common, half)]
    bare = trials * sum(each) / len(each)
    return (
        {"search": whole, "bare trainings": bare, "a bare training": bare / trials, "beyond them": whole - bare},
        {"overhead": whole / bare - 1},
    )


def _over_separate(place: Path, common: list[str], trials: int, sample: int) -> tuple[dict, dict]:
    half = max(1, sample // 2)

    def one() -> float:
        return _command(place, "distill", *common, "--no-control", "--no-register-model", "--no-reuse")

    each = [one() for _ in range(half)]
    options = [*STUDY, "--trials", str(trials)]
    kept = _command(place, "search", *common, *options, "--pruner", "none")
    pruned = _command(place, "search", *common, *options, "--seed", "1")
    each += [one() for _ in range(half)]
    separate = trials * sum(each) / len(each)
    return (
        {"separate": separate, "search": pruned, "search, no pruning": kept},
        {"separate/search": separate / pruned, "separate/search without pruning": separate / kept},
    )


def _command(place: Path, name: str, *arguments: str) -> float:
    """The seconds of a whole command, from the start of its process to its end."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "kd_mlflow", name, *arguments], check=True, cwd=place, env=os.environ, stdout=sys.stderr
    )
    return time.perf_counter() - started


def _bare(common: list[str], times: int) -> list[float]:
    """Seconds of bare trainings, in a process of their own like the search's."""
    command = [sys.executable, "-m", "benchmarks.bare", str(times), *common]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ)
    return json.loads(done.stdout)
