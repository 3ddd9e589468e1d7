"""What several processes gain: as many with one core each against one with one core."""

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
    """Images a second of `kd-mlflow student --devices N` over gloo, the median of the epochs after the first."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < devices:
        raise click.UsageError(f"This machine has {len(cores)} cores; give --devices {len(cores)}.")
    options = ["--data", data, "--image-size", str(image_size), "--batch-size", str(batch_size)]
    options += ["--student", student, "--epochs", str(epochs)]
    with TemporaryDirectory() as folder:
        each = {f"processes: {count}": _training(Path(folder), options, cores[:count]) for count in (1, devices)}
        seconds = take_turns(each, 1, rounds)
    one, several = seconds
    result = {
        "machine": machine(),
        "setting": f"{student} with labels, {data}, {image_size} px, batches of {batch_size} in all.",
        "contenders": rates(seconds, 1, "images_per_s"),
        "ratios": {f"{several}/one": ratio_of_turns(seconds, several, one)},
    }
    tell("Processes on one machine", result, as_json, markdown)


def _training(place: Path, options: list[str], cores: list[int]) -> Contender:
    places = {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "KD_MLFLOW_HOME": str(place / "home")}
    command = [sys.executable, "-m", "kd_mlflow", "student", *options, "--devices", str(len(cores))]

    def run(steps: int) -> float:
        done = subprocess.run(
            command, cwd=place, env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, text=True, check=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores),
        )  # fmt: skip
        sys.stderr.write(done.stderr)
        found = [float(rate) for rate in RATE.findall(done.stderr)]
        return steps / statistics.median(found[1:] or found)

    return run
