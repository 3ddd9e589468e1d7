"""Which image serves which purpose, and what is wrong with a division into splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kd_mlflow.data.draws import keyed
from kd_mlflow.data.layout import SPLITS, some
from kd_mlflow.errors import InputError

UNSAID = -1
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class Rows:
    """The usable images, in the order of the manifest.

    Attributes
    ----------
    labels:
        ``[N]``, int64: places in ``classes``.
    declared:
        ``[N]``, int8: places in SPLITS, or UNSAID.
    digests:
        ``[N, 32]``, uint8: SHA-256 of each file.
    path_of:
        The path of a row, for messages.
    """

    labels: np.ndarray
    declared: np.ndarray
    digests: np.ndarray
    path_of: Callable[[int], str]


def needs_cut(declared: np.ndarray) -> bool:
    """Whether a split has to be cut, so that the seed of the cut matters."""
    return not (np.any(declared == VAL) and np.any(declared == TEST))


def assign(rows: Rows, held_out: float, seed: int) -> tuple[np.ndarray, list[str]]:
    """Complete the splits: what the folders do not say is cut from what is not set aside.

    The cut is stratified and seeded. It goes by content: renaming a file changes nothing, and copies of
    one picture stay together.

    Returns
    -------
    tuple
        ``[N]`` int8, places in SPLITS, and what a person should know.
    """
    splits = rows.declared.copy()
    pool = np.flatnonzero((splits == UNSAID) | (splits == TRAIN))
    missing = [split for split in (VAL, TEST) if not np.any(rows.declared == split)]
    warnings = []
    if missing and not np.any(rows.declared == UNSAID):
        names = " and ".join(SPLITS[split] for split in missing)
        each = "it" if len(missing) == 1 else "each"
        warnings.append(f"There is no {names} split: {held_out:.0%} of train is cut for {each} (seed {seed}).")
    splits[pool] = TRAIN
    order = keyed(_words(rows.digests)[:, 0], seed)
    for label in np.unique(rows.labels[pool]) if missing else ():
        members = pool[rows.labels[pool] == label]
        pictures, which = np.unique(order[members], return_inverse=True)
        each = _held_out(len(pictures), held_out, len(missing))
        for place, split in enumerate(missing):
            chosen = (which >= place * each) & (which < (place + 1) * each)
            splits[members[chosen]] = split
    return splits, warnings


def _held_out(pictures: int, share: float, parts: int) -> int:
    """How many pictures of a class each cut split gets: at least one if train keeps one as well."""
    return max(round(share * pictures), 1 if pictures > parts else 0)


def check(rows: Rows, splits: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """What a person should know about the splits.

    Raises
    ------
    InputError
        A class without images, or without training images, or a split without any.
    """
    counts = np.zeros((len(classes), len(SPLITS)), dtype=np.int64)
    np.add.at(counts, (rows.labels, splits.astype(np.int64)), 1)
    nothing = [classes[i] for i in np.flatnonzero(counts.sum(1) == 0)]
    if nothing:
        raise InputError(f"Class {some(nothing)} has no image that can be read; add some or remove the folder.")
    untaught = [classes[i] for i in np.flatnonzero(counts[:, TRAIN] == 0)]
    if untaught:
        raise InputError(f"Class {some(untaught)} has no training images; add some to train or remove the class.")
    warnings = []
    for split in (VAL, TEST):
        if counts[:, split].sum() == 0:
            raise InputError(f"No images are left for the {SPLITS[split]} split; add images, at least three a class.")
        absent = [classes[i] for i in np.flatnonzero(counts[:, split] == 0)]
        if absent:
            warnings.append(f"Class {some(absent)} has no images in the {SPLITS[split]} split.")
    return warnings + _repeated(rows, splits, classes)


def _repeated(rows: Rows, splits: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """Pictures that stand in two splits, or under two classes."""
    words = _words(rows.digests)
    order = np.lexsort((np.arange(len(words)), words[:, 1], words[:, 0]))
    same = np.all(words[order[1:]] == words[order[:-1]], axis=1)
    before, after = order[:-1][same], order[1:][same]
    warnings = []
    leaks = np.flatnonzero(splits[before] != splits[after])
    if len(leaks):
        pairs = [f"{rows.path_of(before[i])!r} ({SPLITS[splits[before[i]]]}) = {rows.path_of(after[i])!r} "
                 f"({SPLITS[splits[after[i]]]})" for i in leaks[:3]]  # fmt: skip
        warnings.append(f"The same picture is in two splits, {len(leaks)} times: {'; '.join(pairs)}.")
    torn = np.flatnonzero(rows.labels[before] != rows.labels[after])
    if len(torn):
        pairs = [f"{rows.path_of(before[i])!r} = {rows.path_of(after[i])!r}" for i in torn[:3]]
        warnings.append(f"The same picture is in two classes, {len(torn)} times: {'; '.join(pairs)}.")
    return warnings


def _words(digests: np.ndarray) -> np.ndarray:
    """The first 16 bytes of each digest as two numbers: enough to tell any two pictures apart."""
    return np.ascontiguousarray(digests[:, :16]).view("<u8").astype(np.uint64)
