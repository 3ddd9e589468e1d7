"""The table of docs/methods.md, out of the registry: `python -m benchmarks.methods --write docs/methods.md`.

Cost and memory of a training step are relative to ``kd`` on the same networks and data. All methods take
turns in one process for the time; for the memory each has a process of its own.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import click
import psutil
import torch

from benchmarks.contenders import live
from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.data.store import prepare
from kd_mlflow.distillers.describe import describe
from kd_mlflow.distillers.names import METHODS
from kd_mlflow.training.device import resolve_device

BEGIN, END = "<!-- table: made by python -m benchmarks.methods -->", "<!-- end of table -->"
NAMES = sorted(name for name in METHODS if name != "labels")


@click.command()
@click.option("--image-size", default=32, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Steps a turn.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each method.")
@click.option("--write", type=click.Path(path_type=Path), default=None, help="Put the table into this page.")
@click.option("--memory-of", default=None, hidden=True)
def main(image_size: int, batch_size: int, steps: int, rounds: int, write: Path | None, memory_of: str | None) -> None:
    """Measure every method's training step, ResNet34 to ResNet18, and make the table."""
    config = resolve(DistillConfig, {"image_size": image_size, "batch_size": batch_size})
    if memory_of:
        click.echo(json.dumps(_memory(config, memory_of)))
        return
    seconds = _seconds(config, steps, rounds)
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: _memory_in_a_process(name, image_size, batch_size), NAMES)
        memory = dict(zip(NAMES, found, strict=True))
    made = "\n".join([*_table(seconds, memory), "", _machine(config)])
    if write is None:
        click.echo(made)
        return
    before, _, rest = write.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}", encoding="utf-8")


def _seconds(config: DistillConfig, steps: int, rounds: int) -> dict[str, float]:
    """The median seconds of a step; methods take turns, after one turn that does not count."""
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory() as scratch:
        store = prepare(config, Path(scratch))
        contenders = {name: live(config, store, device, name) for name in NAMES}
        taken: dict[str, list[float]] = {name: [] for name in NAMES}
        for number in range(rounds + 1):
            for name, run in contenders.items():
                seconds = run(steps) / steps
                if number:
                    taken[name].append(seconds)
    return {name: statistics.median(values) for name, values in taken.items()}


def _memory(config: DistillConfig, method: str) -> float:
    """MiB that networks, optimiser and three steps add to this process at their peak."""
    device = resolve_device(config.device)
    with tempfile.TemporaryDirectory() as scratch:
        store = prepare(config, Path(scratch))
        if device.type == "cuda":
            live(config, store, device, method)(3)
            return torch.cuda.max_memory_allocated(device) / 2**20
        before = psutil.Process().memory_info().rss
        live(config, store, device, method)(3)
    return _peak_mib() - before / 2**20


def _peak_mib() -> float:
    """Of this program alone: what getrusage tells begins with the resident set of whoever started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def _memory_in_a_process(method: str, image_size: int, batch_size: int) -> float:
    options = ["--memory-of", method, "--image-size", str(image_size), "--batch-size", str(batch_size)]
    command = [sys.executable, "-m", "benchmarks.methods", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _table(seconds: dict[str, float], memory: dict[str, float]) -> Iterable[str]:
    yield "| method | source | evidence | needs | defaults | step | memory | cannot |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in NAMES:
        told = describe(name)
        authors = told["paper"].partition(":")[0]
        source = f"{authors}, {told['year']}" + (f", arXiv {told['link']}" if told["link"] else "")
        needs = ", ".join([*told["needs"], *(["no teacher"] if not told["teachers"]["most"] else [])])
        if told["views"] > 1:
            needs += f", {told['views']} views"
        defaults = ", ".join(f"{option['name']} {_plain(option['default'])}" for option in told["options"])
        step, used = seconds[name] / seconds["kd"], memory[name] / memory["kd"]
        yield (
            f"| `{name}` | {source} | {told['evidence']} | {needs} | {defaults} | {step:.2f} | {used:.2f} | "
            f"{told['limits']} |"
        )


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "–" if value in ("", []) else str(value)


def _machine(config: DistillConfig) -> str:
    device = resolve_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU cores"
    return (
        f"Step and memory relative to `kd`, ResNet34 → ResNet18, {config.image_size} px, batch {config.batch_size}, "
        f"{name} ({platform.machine()}), torch {torch.__version__}, {date.today():%Y-%m-%d}."
    )


if __name__ == "__main__":
    main()
