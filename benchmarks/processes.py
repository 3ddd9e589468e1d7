"""What several processes gain: as many with one core each against one with one core; and what the machine allows."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from benchmarks.timing import Contender, machine, rates, ratio_of_turns, take_turns, tell

RATE = re.compile(r"control: epoch \d+/.* (\d+) images/s")


@click.command()
@click.option("--devices", default=2, show_default=True)
@click.option("--data", default="digits", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--student", default="resnet18", show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def processes(
    devices: int, data: str, image_size: int, batch_size: int, student: str, epochs: int, rounds: int,
    as_json: bool, markdown: bool,
) -> None:  # fmt: skip
    """Images a second of `kd-mlflow student --devices N` over gloo, the median of the epochs after the first.

    apart: as many trainings at once that know nothing of each other, each with a share of the batch: what cores that
    share caches and memory give at most.
    """
    cores = sorted(os.sched_getaffinity(0))[:devices]
    if len(cores) < devices:
        raise click.UsageError(f"This machine has {len(cores)} cores; give --devices {len(cores)}.")
    options = ["--data", data, "--image-size", str(image_size), "--student", student, "--epochs", str(epochs)]
    with TemporaryDirectory() as folder:
        place = Path(folder)
        one, several, apart = (
            f"{name}: {count}" for name, count in (("processes", 1), ("processes", devices), ("apart", devices))
        )
        contenders = {
            one: _together(place, [*options, "--batch-size", str(batch_size)], cores[:1]),
            several: _together(place, [*options, "--batch-size", str(batch_size)], cores),
            apart: _apart(place, [*options, "--batch-size", str(batch_size // devices)], cores),
        }
        seconds = take_turns(contenders, 1, rounds)
    result = {
        "machine": machine(),
        "setting": f"{student} with labels, {data}, {image_size} px, batches of {batch_size} in all.",
        "contenders": rates(seconds, 1, "images_per_s"),
        "ratios": {f"{name}/one": ratio_of_turns(seconds, name, one) for name in (several, apart)}
        | {f"{several}/apart": ratio_of_turns(seconds, several, apart)},
    }
    tell("Processes on one machine", result, as_json, markdown)


def _together(place: Path, options: list[str], cores: list[int]) -> Contender:
    def run(steps: int) -> float:
        return steps / _rate(_start(place, [*options, "--devices", str(len(cores))], cores))

    return run


def _apart(place: Path, options: list[str], cores: list[int]) -> Contender:
    def run(steps: int) -> float:
        started = [_start(place / str(core), options, [core]) for core in cores]
        return steps / sum(_rate(process) for process in started)

    return run


def _start(place: Path, options: list[str], cores: list[int]) -> subprocess.Popen[str]:
    place.mkdir(exist_ok=True)
    places = {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "KD_MLFLOW_HOME": str(place / "home")}
    return subprocess.Popen(
        [sys.executable, "-m", "kd_mlflow", "student", *options], cwd=place, text=True,
        env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


def _rate(process: subprocess.Popen[str]) -> float:
    """The median of the rates that it said, once it has ended."""
    said = process.communicate()[1]
    sys.stderr.write(said)
    if process.returncode:
        raise click.ClickException(f"A training failed with exit code {process.returncode}.")
    found = [float(rate) for rate in RATE.findall(said)]
    return statistics.median(found[1:] or found)
