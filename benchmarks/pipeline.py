"""The way of an image: from a file to the store, from the store to an augmented batch."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.v2.functional import resize

from benchmarks.timing import Contender, machine, rates, ratio_of_turns, take_turns, tell
from kd_mlflow.config import DistillConfig
from kd_mlflow.data.build import side_of
from kd_mlflow.data.loading import training_batches
from kd_mlflow.data.store import prepare

CLASSES = 10


@click.command()
@click.option("--files", default=4000, show_default=True, help="JPEGs to prepare.")
@click.option("--size", default=224, show_default=True, help="Side of a JPEG, and of what the network sees.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def pipeline(files: int, size: int, rounds: int, as_json: bool, markdown: bool) -> None:
    """Images a second of preparing a store against bare decoding, and of augmented batches out of it."""
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_photos(Path(scratch) / "photos", files, size)
        config = DistillConfig(data=str(photos), image_size=size, batch_size=64)
        store = prepare(config, Path(scratch) / "home")
        contenders: dict[str, Contender] = {
            "decode_and_resize": _decoding(photos, size),
            "decode_resize_and_write": _writing(photos, size, Path(scratch) / "pixels"),
            "prepare": _preparing(config, Path(scratch)),
        }
        seconds = take_turns(contenders, 1, rounds)
        figures = rates(seconds, files, "images_per_s")
        batches = {name: _batches(config, store, name) for name in ("none", "crop", "strong")}
        figures |= rates(take_turns(batches, 20, rounds), config.batch_size, "images_per_s")
    result = {
        "machine": machine(),
        "setting": f"{files} JPEGs of {size} px, all cores; batches of {config.batch_size} by augmentation; "
        f"median of {rounds} turns.",
        "contenders": figures,
        "ratios": {
            f"seconds of {slower} / {faster}": ratio_of_turns(seconds, faster, slower)
            for slower, faster in (
                ("prepare", "decode_and_resize"),
                ("prepare", "decode_resize_and_write"),
                ("decode_resize_and_write", "decode_and_resize"),
            )
        },
    }
    tell("Preparing images and making batches", result, as_json, markdown)


def write_photos(root: Path, files: int, size: int) -> Path:
    """JPEGs with some structure in class folders, no two the same."""
    draw = np.random.default_rng(0)

    def one(number: int) -> None:
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        small = seeds[number]
        picture = Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)

    seeds = draw.integers(0, 256, (files, 28, 28, 3), dtype=np.uint8)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(one, range(files)))
    return root


def _decoding(photos: Path, size: int) -> Contender:
    """Read, decode and scale each file on all cores, and keep nothing."""
    paths, side = sorted(photos.rglob("*.jpg")), side_of(size)

    def work(pool: ThreadPoolExecutor) -> None:
        for _ in pool.map(lambda path: _scaled(path, side), paths):
            pass

    return _on_all_cores(work)


def _writing(photos: Path, size: int, target: Path) -> Contender:
    """The same, with the pixels in a file and on the disk at the end."""
    paths, side = sorted(photos.rglob("*.jpg")), side_of(size)

    def work(pool: ThreadPoolExecutor) -> None:
        with target.open("wb") as file:
            for pixels in pool.map(lambda path: _scaled(path, side).contiguous().numpy(), paths):
                file.write(pixels.data)
            file.flush()
            os.fsync(file.fileno())

    return _on_all_cores(work)


def _scaled(path: Path, side: int) -> torch.Tensor:
    data = torch.from_numpy(np.fromfile(path, np.uint8))
    return resize(decode_jpeg(data), [side], antialias=True)


def _on_all_cores(work: Callable[[ThreadPoolExecutor], None]) -> Contender:
    def run(steps: int) -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        started = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in range(steps):
                work(pool)
        taken = time.perf_counter() - started
        torch.set_num_threads(threads)
        return taken

    return run


def _preparing(config: DistillConfig, scratch: Path) -> Contender:
    fresh = (scratch / f"home{number}" for number in count())

    def run(steps: int) -> float:
        homes = [next(fresh) for _ in range(steps)]
        started = time.perf_counter()
        for home in homes:
            prepare(config, home)
        return time.perf_counter() - started

    return run


def _batches(config: DistillConfig, store: object, augmentation: str) -> Contender:
    chosen = config.model_copy(update={"augmentation": augmentation})

    def endless():
        for epoch in count(1):
            yield from training_batches(
                store, chosen, batch_size=config.batch_size, seed=0, epoch=epoch, device=torch.device("cpu")
            )

    stream = endless()

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            next(stream)
        return time.perf_counter() - started

    return run
