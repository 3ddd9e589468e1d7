"""The files a store consists of, and how a cut or altered one is noticed.

``images.u8`` holds the pixels row after row, ``manifest.jsonl`` one line a row and then one a bad file,
``labels.npy``, ``splits.npy`` and ``offsets.npy`` (where each line of the manifest starts) one number a row,
and ``store.json`` everything else, with the digests of the other files and a seal over itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd_mlflow.data.layout import SPLITS

IMAGES = "images.u8"
MANIFEST = "manifest.jsonl"
LABELS = "labels.npy"
SPLIT_CODES = "splits.npy"
OFFSETS = "offsets.npy"
FILES = {IMAGES, MANIFEST, LABELS, SPLIT_CODES, OFFSETS}
META = "store.json"
FORMAT = 2


class DamagedStore(Exception):
    """A store that is not what was written; the message says what differs."""


@dataclass(frozen=True)
class FileMark:
    """What a finished file looked like; ``mtime_ns`` lets the digest be believed without reading it all.

    ``sha256`` is that of the file or, where ``row_size`` is not 0, of the checksums of its rows of so many bytes.
    """

    size: int
    sha256: str
    mtime_ns: int
    row_size: int = 0


@dataclass(frozen=True)
class Meta:
    """What ``store.json`` holds.

    ``value_range`` is what black and white are in the images of more than 8 bits; absent where there are none.
    """

    key: str
    digest: str
    classes: list[str]
    image_size: int
    side: int
    count: int
    files: int
    mean: list[float]
    std: list[float]
    warnings: list[str]
    bad: list[list[str]]
    marks: dict[str, FileMark]
    value_range: list[int] | None = None
    format: int = FORMAT


def write_meta(folder: Path, meta: Meta) -> None:
    """Write ``store.json``; it comes last."""
    content = asdict(meta)
    if meta.value_range is None:
        del content["value_range"]  # such a store is what earlier versions wrote, and read
    content["seal"] = _seal(content)
    with (folder / META).open("w", encoding="ascii") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def read_meta(folder: Path) -> Meta:
    """Read ``store.json`` and check every file of the store against it.

    A file whose size and time are as recorded is taken as unchanged; any other is read and hashed.

    Raises
    ------
    DamagedStore
        A file is missing, cut or altered, or the store is of another format.
    """
    try:
        content = json.loads((folder / META).read_text(encoding="ascii"))
        seal = content.pop("seal")
        if content.get("format") != FORMAT or seal != _seal(content):
            raise DamagedStore(f"{META} was altered")
        content["marks"] = {name: FileMark(**mark) for name, mark in content["marks"].items()}
        meta = Meta(**content)
        fits = _fits(meta)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedStore(f"{META} cannot be read: {error}") from None
    if not fits:
        raise DamagedStore(f"{META} does not describe a store")
    for name, mark in meta.marks.items():
        _check(folder / name, mark)
    _check_rows(folder, meta)
    return meta


def checksum(row: bytes | memoryview) -> bytes:
    """CRC-32 of a row of pixels: twice as quick as SHA-256, and there to notice damage, not forgery."""
    return zlib.crc32(row).to_bytes(4)


def mark_file(path: Path, sha256: str | None = None, row_size: int = 0) -> FileMark:
    """The mark of a finished file, hashed here unless the writer did so on the way."""
    status = path.stat()
    return FileMark(status.st_size, sha256 or _sha256(path, row_size), status.st_mtime_ns, row_size)


def _fits(meta: Meta) -> bool:
    """Whether the figures can be those of a store: who maps its files into memory relies on them."""
    whole = (meta.image_size, meta.side, meta.count, meta.files, *(mark.size for mark in meta.marks.values()))
    texts = (meta.key, meta.digest, *meta.classes, *meta.warnings, *(text for one in meta.bad for text in one))
    return (
        set(meta.marks) == FILES
        and all(type(number) is int and number >= 0 for number in whole)
        and all(type(mark.mtime_ns) is int and type(mark.sha256) is str for mark in meta.marks.values())
        and all(type(mark.row_size) is int for mark in meta.marks.values())
        and {mark.row_size for name, mark in meta.marks.items() if name != IMAGES} == {0}
        and meta.marks[IMAGES].row_size == 3 * meta.side**2
        and meta.marks[IMAGES].size == meta.count * 3 * meta.side**2
        and all(type(text) is str for text in texts)
        and all(len(one) == 2 for one in meta.bad)
        and (meta.value_range is None or _is_range(meta.value_range))
        and all(len(three) == 3 and all(math.isfinite(one) for one in three) for three in (meta.mean, meta.std))
    )


def _is_range(value: object) -> bool:
    return isinstance(value, list) and [type(limit) for limit in value] == [int, int] and value[0] < value[1]


def _check_rows(folder: Path, meta: Meta) -> None:
    """Whether the arrays have a number a row, and name no class or split that there is not."""
    limits = {LABELS: len(meta.classes), SPLIT_CODES: len(SPLITS), OFFSETS: meta.marks[MANIFEST].size + 1}
    for name, limit in limits.items():
        try:
            numbers = np.load(folder / name, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise DamagedStore(f"{name} cannot be read: {error}") from None
        rows = meta.count + (name == OFFSETS)
        if (
            numbers.shape != (rows,)
            or numbers.dtype.kind != "i"
            or (rows and not 0 <= numbers.min() <= numbers.max() < limit)
        ):
            raise DamagedStore(f"{name} does not fit {META}")


def _check(path: Path, mark: FileMark) -> None:
    try:
        status = path.stat()
        if status.st_size != mark.size:
            raise DamagedStore(f"{path.name} has {status.st_size} bytes instead of {mark.size}")
        if status.st_mtime_ns == mark.mtime_ns:
            return
        if _sha256(path, mark.row_size) != mark.sha256:
            raise DamagedStore(f"{path.name} was altered")
    except OSError as error:
        raise DamagedStore(f"{path.name} cannot be read: {error.strerror or error}") from None
    try:
        os.utime(path, ns=(status.st_atime_ns, mark.mtime_ns))
    except OSError:
        return  # a store that may only be read is hashed again the next time


def _sha256(path: Path, row_size: int) -> str:
    with path.open("rb") as file:
        if not row_size:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while row := file.read(row_size):
            digest.update(checksum(row))
        return digest.hexdigest()


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()
