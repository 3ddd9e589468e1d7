"""Private memory of a training on a small and on a ten times larger data set."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import click
import torch

from benchmarks.contenders import live
from benchmarks.pipeline import write_photos
from benchmarks.timing import machine, tell
from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.data.loading import evaluation_batches
from kd_mlflow.data.store import prepare


@click.command()
@click.option("--small", default=1200, show_default=True, help="Images of the smaller data set.")
@click.option("--large", default=12000, show_default=True, help="Images of the larger one.")
@click.option("--size", default=224, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
@click.option("--of", type=click.Path(path_type=Path), hidden=True)
def memory(small: int, large: int, size: int, as_json: bool, markdown: bool, of: Path | None) -> None:
    """Peak private memory (RssAnon) of an epoch's batches and four steps, by the size of the data set."""
    if of is not None:
        click.echo(_peak_of(of, size))
        return
    found = {f"{number} images": {"private_mib": _measured(number, size)} for number in (small, large)}
    first, last = (figures["private_mib"] for figures in found.values())
    result = {
        "machine": machine(),
        "setting": f"ResNet34 → ResNet18, {size} px, batch 16: preparing, four steps, and a pass over every image.",
        "contenders": found,
        "ratios": {f"{large}/{small} images": last / first},
    }
    tell("Private memory", result, as_json, markdown)


def _measured(number: int, size: int) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_photos(Path(scratch) / "photos", number, size)
        command = [sys.executable, "-m", "benchmarks", "memory", "--of", str(photos), "--size", str(size)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak_of(photos: Path, size: int) -> float:
    config = resolve(DistillConfig, {"data": str(photos), "image_size": size, "batch_size": 16, "device": "cpu"})
    store = prepare(config, photos.parent / "home")
    peak = _private()
    run = live(config, store, torch.device("cpu"))
    for _ in range(4):
        run(1)
        peak = max(peak, _private())
    batches = evaluation_batches(store, "train", batch_size=64, device=torch.device("cpu"))
    for number, _ in enumerate(islice(batches, None)):
        if number % 10 == 0:
            peak = max(peak, _private())
    return peak


def _private() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024
