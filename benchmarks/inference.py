"""Evaluation with this project's input against the network alone on tensors in memory."""

from __future__ import annotations

import tempfile
from itertools import cycle, islice
from pathlib import Path

import click
import torch

from benchmarks.contenders import batch_in_memory, network
from benchmarks.timing import Contender, machine, rates, ratio_of_turns, take_turns, tell, timed
from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.data.loading import evaluation_batches
from kd_mlflow.data.store import prepare
from kd_mlflow.training.device import resolve_device, resolve_precision
from kd_mlflow.training.evaluation import predict_logits


@click.command()
@click.option("--data", default="digits", show_default=True)
@click.option("--image-size", default=64, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def inference(
    data: str, image_size: int, batch_size: int, rounds: int, device: str, as_json: bool, markdown: bool
) -> None:
    """Images a second of evaluating ResNet18 from a store against the bare network."""
    given = {"data": data, "image_size": image_size, "batch_size": batch_size, "device": device}
    config = resolve(DistillConfig, given, preset="paper")
    place = resolve_device(config.device)
    precision = resolve_precision("auto", place)
    model, steps = network(config, store := _store(config), config.student, place).eval(), 8
    images, _ = batch_in_memory(config, store, place)

    @torch.inference_mode()
    def bare(count: int) -> float:
        return timed(place, lambda: [model(images) for _ in range(count)])

    def ours(count: int) -> float:
        stream = cycle(evaluation_batches(store, "train", batch_size=batch_size, device=place))
        return timed(place, lambda: predict_logits(model, islice(stream, count), place, precision))

    contenders: dict[str, Contender] = {"bare": bare, "evaluate": ours}
    seconds = take_turns(contenders, steps, rounds)
    result = {
        "machine": machine(place),
        "setting": f"ResNet18, {image_size} px, batch {batch_size}, median of {rounds} turns of {steps} batches.",
        "contenders": rates(seconds, batch_size, "images_per_s"),
        "ratios": {"evaluate/bare": ratio_of_turns(seconds, "evaluate", "bare")},
    }
    tell("Evaluation", result, as_json, markdown)


def _store(config: DistillConfig):
    return prepare(config, Path(tempfile.mkdtemp(prefix="kd-benchmark-")))
