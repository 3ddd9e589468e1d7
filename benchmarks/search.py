"""What a search costs beside its trainings, and what it saves against as many separate commands."""

from __future__ import annotations

import os
import re
import signal
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
@click.option("--sample", default=6, show_default=True, help="Separate commands that are timed.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def search(
    trials: int, epochs: int, data: str, image_size: int, student: str, teacher_arch: str, against: str, sample: int,
    as_json: bool, markdown: bool,
) -> None:  # fmt: skip
    """The overhead of a search over the same trainings bare; or its gain over separate `distill` commands.

    bare: the search without cache and pruning, against the same loop and checkpoints without Optuna and MLflow. After
    each trial the search is held while a bare training runs, so that both meet the same moods of the machine; the
    time it is held does not count. separate: the search with its cache, with and without pruning, against commands
    that share nothing but the teacher, half of them timed before the search and half after it.
    """
    common = ["--data", data, "--image-size", str(image_size), "--epochs", str(epochs)]
    common += ["--teacher-arch", teacher_arch]
    pair = [*common, "--student", student]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "KD_MLFLOW_HOME": str(place / "home")}
        os.environ["KD_MLFLOW_STORAGE"] = f"sqlite:///{place}/optuna.db"
        _command(place, "teacher", *common)
        if against == "bare":
            found, ratios = _over_bare(place, pair, trials)
        else:
            found, ratios = _over_separate(place, pair, trials, sample)
    result = {
        "machine": machine(),
        "setting": f"{trials} trials, {teacher_arch} → {student} on {data}, {image_size} px, {epochs} epochs.",
        "contenders": {name: {"seconds": seconds} for name, seconds in found.items()},
        "ratios": ratios,
    }
    tell("A search", result, as_json, markdown)


def _over_bare(place: Path, common: list[str], trials: int) -> tuple[dict, dict]:
    plain = [*STUDY, "--trials", str(trials), "--pruner", "none", "--teacher-cache", "off"]
    bare = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare", *common], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    bare.stdout.readline()  # it is ready
    started, held, seconds = time.perf_counter(), 0.0, []
    command = [sys.executable, "-m", "kd_mlflow", "search", *common, *plain]
    searching = subprocess.Popen(command, cwd=place, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    for line in searching.stderr:
        sys.stderr.write(line)
        if re.match(rf"\d+/{trials} trial", line):
            searching.send_signal(signal.SIGSTOP)
            stopped = time.perf_counter()
            bare.stdin.write("\n")
            bare.stdin.flush()
            seconds.append(float(bare.stdout.readline()))
            held += time.perf_counter() - stopped
            searching.send_signal(signal.SIGCONT)
    if searching.wait() or len(seconds) != trials:
        raise click.ClickException("The search failed.")
    whole = time.perf_counter() - started - held
    bare.communicate()
    return (
        {"search": whole, "bare trainings": sum(seconds), "beyond them": whole - sum(seconds)},
        {"overhead": whole / sum(seconds) - 1},
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
