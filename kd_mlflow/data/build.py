"""Decode every image of a source once and write the files of a store."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from array import array
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from kd_mlflow.data import depth, manifest
from kd_mlflow.data.images import BadImage, Decoded, decode, from_array
from kd_mlflow.data.layout import SPLITS, BadFile, Item
from kd_mlflow.data.manifest import Meta
from kd_mlflow.data.ranges import Depths, flat_notes, measured_range, range_notes
from kd_mlflow.data.sources import Source, content_digest
from kd_mlflow.data.splits import TRAIN, Rows, assign, check
from kd_mlflow.data.survey import Survey, declared, in_order, no_size_warnings
from kd_mlflow.errors import InputError

Progress = Callable[[int, int], None]

# Bytes after which what was written is sent on to the disk, so that it has little left to do at the end.
_FLUSHED_AT_ONCE = 2**26
# As many squares of a byte as a float32 adds up without rounding.
_EXACT = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One decoded image with its checksum, and the sum and the sum of squares of each channel ``[2, 3]``."""

    image: Decoded
    checksum: bytes
    moments: np.ndarray


def side_of(image_size: int) -> int:
    """Side of the stored square: an eighth more than the network sees, rounded up, for crops to move in."""
    return -(-image_size * 8 // 7)


def build(
    source: Source, surveyed: Survey, folder: Path, *, image_size: int, split_seed: int, max_bad: float,
    on_progress: Progress | None = None, value_range: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Write the store of a surveyed source into an empty folder.

    Parameters
    ----------
    value_range:
        What black and white are in images of more than 8 bits a channel; None takes it from the training images.

    Raises
    ------
    InputError
        The disk is too small, too many files are bad, or the splits cannot be used.
    """
    arrangement = source.arrangement()
    items, side = [arrangement.items[index] for index in surveyed.indices], side_of(image_size)
    check_disk(folder, len(items), side)
    writer = _Writer(folder, len(items), 3 * side * side, on_progress)
    try:
        with no_size_warnings():
            rows = in_order(lambda place: _row(source, surveyed, place, side), range(len(items)))
            writer.take(items, rows)
        writer.close()
        check_bad(writer.bad, len(items), max_bad)
        places = np.frombuffer(writer.places, dtype=np.int64) if writer.places else np.zeros(0, dtype=np.int64)
        number = {name: label for label, name in enumerate(arrangement.classes)}
        kept = Rows(
            labels=np.array([number[items[place].label] for place in places], dtype=np.int64),
            declared=declared(items)[places], digests=surveyed.digests[places],
            path_of=lambda row: items[places[row]].path,
        )  # fmt: skip
        splits, notes = assign(kept, source.held_out, split_seed)
        notes += check(kept, splits, arrangement.classes)
        used = _rescaled(source, surveyed, writer, splits, side, value_range) if writer.depths else None
        if used is not None:
            given = value_range is not None
            notes += range_notes(writer.depths, splits, kept.labels, arrangement.classes, used, given)
        notes += flat_notes(writer.all_moments(), side, splits, kept.labels, arrangement.classes)
        np.save(folder / manifest.LABELS, kept.labels)
        np.save(folder / manifest.SPLIT_CODES, splits)
        digest = _write_manifest(folder, items, places, splits, writer, surveyed.digests, used)
        mean, std = writer.statistics(splits, side)
        write = (manifest.MANIFEST, manifest.LABELS, manifest.SPLIT_CODES, manifest.OFFSETS)
        marks = {name: manifest.mark_file(folder / name) for name in write}
        marks[manifest.IMAGES] = manifest.mark_file(folder / manifest.IMAGES, writer.sha256(), writer.row_size)
        bad = [[one.path, one.reason] for one in writer.bad]
        manifest.write_meta(folder, Meta(
            surveyed.key, digest, list(arrangement.classes), image_size, side, len(places), len(items), mean, std,
            notes, bad, marks, None if used is None else list(used),
        ))  # fmt: skip
    except OSError as error:
        raise InputError(
            f"The store in {str(folder.parent)!r} cannot be written ({error.strerror or error}); make room or set "
            "KD_MLFLOW_HOME to another disk."
        ) from None
    finally:
        writer.discard()


def check_disk(folder: Path, count: int, side: int) -> None:
    """Refuse to begin what the disk cannot take.

    Raises
    ------
    InputError
        With the space needed and the space there is.
    """
    needed = count * (3 * side * side + 512)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"The store of {count} images needs {needed / 1e9:.2f} GB, but only {free / 1e9:.2f} GB are free in "
            f"{str(folder.parent)!r}; make room, set KD_MLFLOW_HOME to another disk, or choose a smaller --image-size."
        )


def check_bad(bad: Iterable[BadFile], total: int, max_bad: float) -> None:
    """Refuse a data set of which too much is unusable.

    Raises
    ------
    InputError
        With the first few files and their reasons.
    """
    bad = list(bad)
    if bad and len(bad) > max_bad * total:
        first = "; ".join(f"{one.path!r}: {one.reason}" for one in bad[:5])
        raise InputError(f"{len(bad)} of {total} files cannot be used, more than --max-bad {max_bad:g} allows: {first}"
                         f"{'; …' if len(bad) > 5 else ''}; mend or remove them, or raise --max-bad.")  # fmt: skip


class _Writer:
    """The pixels and their sums, written row after row as they arrive; nothing of them stays in memory."""

    def __init__(self, folder: Path, total: int, row_size: int, on_progress: Progress | None) -> None:
        self.folder = folder
        self.total = total
        self.row_size = row_size
        self.flush_every = max(1, _FLUSHED_AT_ONCE // row_size)
        self.on_progress = on_progress
        self.hash = hashlib.sha256()
        self.places = array("q")
        self.sizes = array("i")
        self.depths = Depths()
        self.rewritten = False
        self.bad: list[BadFile] = []
        self.pixels: IO[bytes] = (folder / manifest.IMAGES).open("wb")
        # Written plainly, not through a memory map: a full disk is then an error and not a crash.
        self.moments: IO[bytes] = (folder / "moments").open("wb")
        self.flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self.flushing: Future[None] = self.flusher.submit(os.fsync, self.pixels.fileno())

    def take(self, items: list[Item], results: Iterable[Row | BadImage]) -> None:
        for place, result in enumerate(results):
            if isinstance(result, BadImage):
                self.bad.append(BadFile(items[place].path, result.reason))
            else:
                self.pixels.write(result.image.pixels.data)
                self.hash.update(result.checksum)
                self.moments.write(result.moments.tobytes())
                if result.image.depth is not None:
                    self.depths.add(len(self.places), result.image.depth)
                self.places.append(place)
                self.sizes.extend((result.image.width, result.image.height))
                if len(self.places) % self.flush_every == 0:
                    self._flush_behind()
            if self.on_progress is not None:
                self.on_progress(place + 1, self.total)

    def _flush_behind(self) -> None:
        """Let a thread wait for the disk while the next images are decoded."""
        if self.flushing.done():
            self.flushing.result()
            self.flushing = self.flusher.submit(os.fsync, self.pixels.fileno())

    def close(self) -> None:
        # The system tells of a failed write once only: to whoever waited for it.
        self.flushing.result()
        self.pixels.flush()
        os.fsync(self.pixels.fileno())
        self.pixels.close()
        self.moments.close()

    def rewrite(self, rows: Iterable[int], results: Iterable[Row | BadImage]) -> None:
        """Put other pixels in the place of some rows of a closed store."""
        self.rewritten = True
        with (self.folder / manifest.IMAGES).open("r+b") as pixels, (self.folder / "moments").open("r+b") as moments:
            for count, (row, result) in enumerate(zip(rows, results, strict=True)):
                if isinstance(result, BadImage):
                    raise OSError(f"a file could be decoded once only: {result.reason}")
                pixels.seek(row * self.row_size)
                pixels.write(result.image.pixels.data)
                moments.seek(row * result.moments.nbytes)
                moments.write(result.moments.tobytes())
                if self.on_progress is not None:
                    self.on_progress(count + 1, len(self.depths))
            pixels.flush()
            os.fsync(pixels.fileno())

    def sha256(self) -> str | None:
        """The digest of the pixels; None where it has to be taken from the file."""
        return None if self.rewritten else self.hash.hexdigest()

    def all_moments(self) -> np.ndarray:
        """Sum and sum of squares of each channel, ``[N, 2, 3]``."""
        return np.memmap(self.folder / "moments", dtype=np.float64, mode="r", shape=(len(self.places), 2, 3))

    def statistics(self, splits: np.ndarray, side: int) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel over all pixels of the training split, scale 0 to 1."""
        sums = self.all_moments()
        total = np.zeros((2, 3))
        for start in range(0, len(splits), 65536):
            total += sums[start : start + 65536][splits[start : start + 65536] == TRAIN].sum(axis=0)
        mean, square = total / (np.count_nonzero(splits == TRAIN) * side * side)
        # One grey level is the least that can differ; 0 would make the normalisation divide by it.
        std = np.sqrt(np.maximum(square - mean**2, 1.0))
        return (mean / 255).tolist(), (std / 255).tolist()

    def discard(self) -> None:
        self.flusher.shutdown()
        for file in (self.pixels, self.moments):
            with suppress(OSError):  # a full disk does not take what is left either
                file.close()
        (self.folder / "moments").unlink(missing_ok=True)


def _write_manifest(
    folder: Path, items: list[Item], places: np.ndarray, splits: np.ndarray, writer: _Writer, digests: np.ndarray,
    value_range: tuple[int, int] | None,
) -> str:  # fmt: skip
    """One line a row and a bad file; returns the digest of the data set."""
    offsets = np.zeros(len(places) + 1, dtype=np.int64)
    content = hashlib.sha256()
    with (folder / manifest.MANIFEST).open("wb") as file:
        for row, place in enumerate(places):
            item, split, sha256 = items[place], SPLITS[splits[row]], digests[place].tobytes().hex()
            content.update(json.dumps([item.path, item.label, split, sha256]).encode("ascii"))
            line = {"path": item.path, "class": item.label, "split": split, "width": writer.sizes[2 * row],
                    "height": writer.sizes[2 * row + 1], "sha256": sha256}  # fmt: skip
            file.write(json.dumps(line).encode("ascii") + b"\n")
            offsets[row + 1] = file.tell()
        for one in writer.bad:
            file.write(json.dumps({"path": one.path, "bad": one.reason}).encode("ascii") + b"\n")
    np.save(folder / manifest.OFFSETS, offsets)
    if value_range not in (None, depth.FULL_RANGE):
        # A network that was taught with other pixels of the same files is not to be taken for one of this data.
        content.update(repr(value_range).encode())
    return content.hexdigest()[:32]


def _rescaled(
    source: Source, surveyed: Survey, writer: _Writer, splits: np.ndarray, side: int, given: tuple[int, int] | None
) -> tuple[int, int]:
    """The range of values of the images of more than 8 bits, which are decoded once more if it is not the usual one."""
    table, rows = writer.depths.table(), writer.depths.rows
    train = splits[np.array(rows)] == TRAIN
    used = given or measured_range(table[train] if train.any() else table)
    if used != depth.FULL_RANGE:
        places = (writer.places[row] for row in rows)
        with no_size_warnings():
            writer.rewrite(rows, in_order(lambda place: _row(source, surveyed, place, side, used), places))
    return used


def _row(
    source: Source, surveyed: Survey, place: int, side: int, value_range: tuple[int, int] = depth.FULL_RANGE
) -> Row | BadImage:
    index, digest = int(surveyed.indices[place]), surveyed.digests[place]
    problem = source.arrangement().items[index].entry.problem
    if problem:
        return BadImage(problem)
    try:
        content = source.read(index)
    except OSError as error:
        if digest.any():
            raise _changed(source, index) from None
        return BadImage(f"cannot be read: {error.strerror or error}")
    if content_digest(content) != digest.tobytes():
        raise _changed(source, index)
    try:
        image = decode(content, side, value_range) if isinstance(content, bytes) else from_array(content, side)
    except BadImage as bad:
        return bad
    return Row(image, manifest.checksum(image.pixels.data), _moments(image.pixels))


def _changed(source: Source, place: int) -> InputError:
    """The store is named by what was surveyed: it must not lack what only went away for a moment."""
    path = source.arrangement().items[place].path
    return InputError(f"{path!r} of {source.name!r} was changed or removed while it was being prepared; start again.")


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Sum and sum of squares of each channel ``[2, 3]`` of ``[3, S, S]``, exact."""
    flat = pixels.reshape(3, -1)
    whole = flat.shape[1] - flat.shape[1] % _EXACT
    total = np.zeros((2, 3))
    for part in (flat[:, :whole].reshape(3, -1, _EXACT), flat[:, None, whole:]):
        if part.size == 0:
            continue
        values = part.astype(np.float32)
        total += [np.einsum("cbn->cb", values).sum(axis=1, dtype=np.float64),
                  np.einsum("cbn,cbn->cb", values, values).sum(axis=1, dtype=np.float64)]  # fmt: skip
    return total
