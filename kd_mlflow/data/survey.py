"""Read every file of a source once: which of them are pictures, and what is in them."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from PIL import Image

from kd_mlflow.data import depth, manifest
from kd_mlflow.data.kinds import ending_label, is_picture, named_image, second_forms, tally
from kd_mlflow.data.layout import SPLITS, Arrangement, Item, some
from kd_mlflow.data.sources import Source, content_digest
from kd_mlflow.data.splits import UNSAID, needs_cut
from kd_mlflow.errors import InputError

Given = TypeVar("Given")
Made = TypeVar("Made")

# Files that a thread takes at once: between two of them the interpreter has work of its own.
_AT_ONCE = 8


@dataclass(frozen=True)
class Survey:
    """A source whose files have all been read once.

    Attributes
    ----------
    indices:
        ``[files]``, int64: which items of the source's arrangement claim to be pictures; the others are left out.
    digests:
        ``[files, 32]``, uint8, of these; zeros where a file could not be read.
    key:
        Names the store: a hash over content, classes, splits and size, and over the range of values where that matters.
    warnings:
        What a person should know of the arrangement and of what was left out.
    """

    indices: np.ndarray
    digests: np.ndarray
    key: str
    warnings: tuple[str, ...]


def survey(source: Source, image_size: int, split_seed: int, value_range: tuple[int, int] | None = None) -> Survey:
    """Hash every picture, so that the same content finds the same store wherever it lies.

    Parameters
    ----------
    value_range:
        What black and white are in images of more than 8 bits a channel; None takes it from the data.

    Raises
    ------
    InputError
        A class that holds no pictures, only other files.
    """
    arrangement = source.arrangement()
    files = arrangement.items
    second = second_forms(item.path for item in files)
    digests, indices, deep = np.zeros((len(files), 32), dtype=np.uint8), array("q"), False
    beside: Counter[str] = Counter()
    for index, (digest, is_deep) in enumerate(_digests(source, second)):
        if digest is None:
            beside[ending_label(files[index].path)] += 1
            continue
        deep |= is_deep
        digests[len(indices)] = np.frombuffer(digest, dtype=np.uint8)
        indices.append(index)
    items, digests = [files[index] for index in indices], digests[: len(indices)]
    _check_filled(arrangement, items, beside)
    cut = needs_cut(declared(items))
    key = hashlib.sha256(repr((manifest.FORMAT, image_size, (split_seed, source.held_out) if cut else None)).encode())
    if deep:
        key.update(repr((depth.VERSION, value_range)).encode())
    for item, digest in zip(items, digests, strict=True):
        key.update(json.dumps([item.path, item.label, item.split, digest.tobytes().hex()]).encode("ascii"))
    chosen = np.frombuffer(indices, dtype=np.int64) if indices else np.zeros(0, dtype=np.int64)
    return Survey(chosen, digests, key.hexdigest()[:32], (*arrangement.warnings, *_beside(arrangement, beside)))


def _check_filled(arrangement: Arrangement, items: list[Item], beside: Counter[str]) -> None:
    empty = sorted(set(arrangement.classes) - {item.label for item in items})
    if empty:
        raise InputError(f"{arrangement.what}: class {some(empty)} has no images, only other files ({tally(beside)}); "
                         "add some or remove the folder.")  # fmt: skip


def _beside(arrangement: Arrangement, beside: Counter[str]) -> list[str]:
    """Say once which files in class folders are no pictures."""
    count = beside.total()
    if not count:
        return []
    files = "1 file in a class folder is no picture and is" if count == 1 else (
        f"{count} files in class folders are no pictures and are")  # fmt: skip
    return [f"{arrangement.what}: {files} left out: {tally(beside)}."]


def _digests(source: Source, second: set[str]) -> Iterator[tuple[bytes | None, bool]]:
    count = len(source.arrangement().items)
    with no_size_warnings():
        yield from in_order(lambda index: _digest(source, index, second), range(count))


@contextmanager
def no_size_warnings() -> Iterator[None]:
    """Pillow warns of any image above half the size it refuses; the limit here is our own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _digest(source: Source, index: int, second: set[str]) -> tuple[bytes | None, bool]:
    """The digest of a file, and whether the range of values bears on its pixels.

    The digest is None for a file that claims neither by its name nor by its content to be a picture. ``second``
    holds the paths of pictures that lie beside them once more, in a format that can be read.
    """
    item = source.arrangement().items[index]
    if not named_image(item.path):
        if item.path in second:
            return None, False
        # A file called after something else is read whole only if it begins like a picture: videos are large.
        head = source.head(index)
        if head is not None and not is_picture(item.path, head):
            return None, False
    if item.entry.problem:
        return bytes(32), False
    try:
        content = source.read(index)
    except OSError:
        return bytes(32), False
    return content_digest(content), isinstance(content, bytes) and depth.concerns(content)


def declared(items: list[Item]) -> np.ndarray:
    """The split that each item's folder says, ``[N]`` int8: places in SPLITS, or UNSAID."""
    return np.array([UNSAID if item.split is None else SPLITS.index(item.split) for item in items], dtype=np.int8)


def in_order(work: Callable[[Given], Made], todo: Iterable[Given]) -> Iterator[Made]:
    """The results in order, made by all cores, only a few of them ahead of what is taken."""
    # Threads suffice: reading, hashing, decoding and scaling all run outside the interpreter's lock.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ahead: deque[Future[list[Made]]] = deque()
    left = iter(todo)
    with ThreadPoolExecutor(cores, thread_name_prefix="prepare") as pool:
        try:
            while some := list(islice(left, _AT_ONCE)):
                ahead.append(pool.submit(lambda given: [work(one) for one in given], some))
                if len(ahead) > 2 * cores:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
