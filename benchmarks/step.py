"""A distillation step of this project beside the bare loop, the usual notebook and other libraries."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import click

from benchmarks.contenders import bare, cached, live, notebook, of_timm, of_torchdistill
from benchmarks.timing import Contender, machine, rates, ratio_of_turns, take_turns, tell
from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.training.device import resolve_device

RATIOS = (
    ("live", "bare_kd"), ("cached", "bare_student"), ("cached", "bare_kd"), ("live", "notebook"),
    ("cached", "notebook"), ("live", "torchdistill"), ("live", "timm"), ("bare_kd", "bare_student"),
)  # fmt: skip


@click.command()
@click.option("--data", default="digits", show_default=True, help="Data, as for kd-mlflow distill.")
@click.option("--photos", type=click.Path(path_type=Path), help="Class folders that the notebook reads; else digits.")
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--steps", default=6, show_default=True, help="Steps a turn.")
@click.option("--rounds", default=7, show_default=True, help="Turns of each contender.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def step(
    data: str, photos: Path | None, image_size: int, batch_size: int, steps: int, rounds: int, device: str,
    as_json: bool, markdown: bool,
) -> None:  # fmt: skip
    """Images a second of a step, ResNet34 to ResNet18: bare, notebook, this project, other libraries."""
    given = {"data": data, "image_size": image_size, "batch_size": batch_size, "device": device}
    config = resolve(DistillConfig, given, preset="paper")
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(config, prepare(config, Path(scratch)), photos, steps, rounds)
    tell(f"A distillation step at {image_size} px", result, as_json, markdown)


def measure(config: DistillConfig, store: Store, photos: Path | None, steps: int, rounds: int) -> dict:
    """Images a second of every contender, and their ratios."""
    device = resolve_device(config.device)
    compiled = device.type == "cuda"
    contenders: dict[str, Contender] = {
        "bare_student": bare(config, store, device, taught=False, compiled=compiled),
        "bare_kd": bare(config, store, device, taught=True, compiled=compiled),
        "notebook": notebook(config, store, device, photos),
        "live": live(config, store, device),
        "cached": cached(config, store, device),
    }
    for name, make in (("torchdistill", of_torchdistill), ("timm", of_timm)):
        if importlib.util.find_spec(name):
            contenders[name] = make(config, store, device)
    seconds = take_turns(contenders, steps, rounds)
    return {
        "machine": machine(device),
        "setting": f"ResNet34 → ResNet18, {config.image_size} px, batch {config.batch_size}, "
        f"median of {rounds} turns of {steps} steps.",
        "contenders": rates(seconds, config.batch_size, "images_per_s"),
        "ratios": {
            f"{one}/{other}": ratio_of_turns(seconds, one, other)
            for one, other in RATIOS
            if one in seconds and other in seconds
        },
    }
