"""One range of values for all images of more than 8 bits of a data set, and images without any picture in them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from kd_mlflow.data.depth import Depth
from kd_mlflow.data.layout import SPLITS, some
from kd_mlflow.data.splits import TRAIN

# An image whose values all lie in this share of the range has no more than 8 of the 256 levels.
_NEARLY_BLACK = 1 / 32
# Below the least variance that a picture can have: one of 1024 x 1024 pixels differs by one level.
_FLAT = 1e-7
_FLAT_COLORS = ("", ", all black", ", all white")


class Depths:
    """What the images of more than 8 bits hold, a row of the store each; a few numbers a row.

    Attributes
    ----------
    rows:
        Their rows in the store.
    """

    def __init__(self) -> None:
        self.rows = array("q")
        self._numbers = array("q")

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: int, depth: Depth) -> None:
        self.rows.append(row)
        self._numbers.extend((depth.bits, depth.low, depth.high, depth.declared))

    def table(self) -> np.ndarray:
        """``[N, 4]`` int64: bits, low, high, declared."""
        return np.array(self._numbers, dtype=np.int64).reshape(-1, 4)


def measured_range(table: np.ndarray) -> tuple[int, int]:
    """Black and white of a data set, from its training images of more than 8 bits.

    White is the largest value that the files declare. Where they declare nothing, or hold more than that, it is
    the largest value of the images, rounded up to 8, 10, 12, 14, 16, ... bits. Black is 0, or the next power of
    two below the smallest negative value.

    Parameters
    ----------
    table:
        ``[N, 4]``: see :meth:`Depths.table`; all images where none is for training.
    """
    _, low, high, declared = table.T
    by_file = declared >= np.maximum(high, 1)
    whites = [int(declared[by_file].max(initial=0))]
    if not by_file.all():
        bits = max(8, int(high[~by_file].max(initial=0)).bit_length())
        whites.append(2 ** (bits + bits % 2) - 1)
    lowest = int(low.min())
    return 0 if lowest >= 0 else -(2 ** (-lowest - 1).bit_length()), max(whites)


def misfits(depth: Depth, value_range: tuple[int, int]) -> bool:
    """Whether a range leaves an image nearly black, or cuts values off."""
    low, high = value_range
    return depth.low < low or depth.high > high or depth.high - low < (high - low) * _NEARLY_BLACK


def range_notes(
    depths: Depths, splits: np.ndarray, labels: np.ndarray, classes: Sequence[str], value_range: tuple[int, int],
    given: bool,
) -> Iterator[str]:  # fmt: skip
    """What a person should know about the range.

    Parameters
    ----------
    splits, labels:
        Of all images of the store, ``[N]``.
    given:
        The range is a model's, not this data's.
    """
    table, rows = depths.table(), np.array(depths.rows)
    train = splits[rows] == TRAIN
    yield _scale_note(table, table[train] if train.any() else table, value_range, given, len(splits) - len(rows))
    low, high = value_range
    if low < 0:
        yield f"{np.count_nonzero(table[:, 1] < 0)} images hold negative values: black is {low}, not 0."
    cut = (table[:, 2] > high) | (table[:, 1] < low)
    if cut.any():
        yield (f"{np.count_nonzero(cut)} images hold values outside {low} to {high}, which become plain black or "
               "white.")  # fmt: skip
    dark = table[:, 2] - low < (high - low) * _NEARLY_BLACK
    names = [name for label, name in enumerate(classes)
             if (of_class := labels[rows] == label).any() and dark[of_class].mean() > 0.5]  # fmt: skip
    if names:
        yield (f"Most images of more than 8 bits of class {some(names)} are nearly black at this scale; the files of "
               "the data set do not all use the same range. Save them with one range, or with 8 bits.")  # fmt: skip


def _scale_note(table: np.ndarray, train: np.ndarray, value_range: tuple[int, int], given: bool, of_8_bits: int) -> str:
    low, high = value_range
    *few, last = sorted(set(table[:, 0].tolist()))
    bits = f"{', '.join(f'{number}-' for number in few)} and {last}-bit" if few else f"{last}-bit"
    scale = f"scaled by {high}" if low == 0 else f"scaled from {low} to {high}"
    declared = train[:, 3] >= np.maximum(train[:, 2], 1)
    if given:
        reason = "the scale of the model"
    elif declared.all():
        smallest = int(train[:, 3].min())
        reason = "as their files say" if smallest == high else f"the largest of what their files say, from {smallest}"
    else:
        reason = f"the largest value found in the training images is {train[:, 2].max()}"
        reason += ", rounded up to whole bits" if train[:, 2].max() != high else ""
    mixed = f"; {of_8_bits} images of 8 bits keep their scale of 255" if of_8_bits else ""
    return f"{bits} images are {scale} ({reason}){mixed}."


def flat_notes(
    moments: np.ndarray, side: int, splits: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> Iterator[str]:
    """What is to be said of a data set, a split or a class of which every image is one flat color.

    Parameters
    ----------
    moments:
        ``[N, 2, 3]``: sum and sum of squares of each channel, of images of ``side`` x ``side`` pixels.
    """
    colors = _flat_colors(moments, side)
    if colors.all():
        yield _flat_note(f"the data set ({len(colors)})", colors)
        return
    for kind, codes, names in (("split", splits, SPLITS), ("class", labels, classes)):
        members = [(name, codes == code) for code, name in enumerate(names)]
        empty = [(name, mask) for name, mask in members if mask.any() and colors[mask].all()]
        if empty:
            listed = some(name for name, _ in empty)
            yield _flat_note(f"{kind} {listed}", colors[np.any([mask for _, mask in empty], axis=0)])


def _flat_colors(moments: np.ndarray, side: int) -> np.ndarray:
    """``[N]`` uint8: 0 for an image that is not flat, else the place of its color in ``_FLAT_COLORS`` and 1."""
    codes = np.zeros(len(moments), dtype=np.uint8)
    for start in range(0, len(moments), 65536):
        mean, square = np.moveaxis(moments[start : start + 65536] / side**2, 1, 0)
        color = np.select([(mean == 0).all(axis=1), (mean == 255).all(axis=1)], [2, 3], 1)
        codes[start : start + 65536] = np.where((square - mean**2 < _FLAT).all(axis=1), color, 0)
    return codes


def _flat_note(what: str, codes: np.ndarray) -> str:
    color = _FLAT_COLORS[codes[0] - 1] if (codes == codes[0]).all() else ""
    return (f"Every image of {what} is one flat color{color}: no picture was found in the files. Open a few of them "
            "to see whether they hold what they should.")  # fmt: skip
