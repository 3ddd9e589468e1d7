"""Whatever bytes are given as an image: pixels, or a reason. The two readers, for training and in a served model.

For a fuzzer: ``atheris.Setup(sys.argv, one_input); atheris.Fuzz()``.
"""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image

from kd_mlflow.data.build import side_of
from kd_mlflow.data.images import FORMATS, BadImage, read_image
from kd_mlflow.tracking.loader import pixels_of
from tests.fuzz.sentences import one_sentence
from tests.pictures import encoded, turned, with_late_exif

SIZE = 8


def one_input(data: bytes) -> bool:
    """Read the bytes both ways, which must agree; whether they are an image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained, served = _trained(data), _served(data)
    assert (trained is None) == (served is None), "an image for one of the two readers only"
    assert trained is None or np.array_equal(trained, served), "other pixels in training than in serving"
    return trained is not None


def _trained(data: bytes) -> np.ndarray | None:
    side = side_of(SIZE)
    margin = (side - SIZE) // 2
    try:
        return read_image(data, side)[:, margin : margin + SIZE, margin : margin + SIZE]
    except BadImage as bad:
        one_sentence(bad)
        return None


def _served(data: bytes) -> np.ndarray | None:
    try:
        return np.asarray(pixels_of([data], SIZE))[0]
    except ValueError as error:
        one_sentence(error)
        return None


def seeds() -> list[bytes]:
    """A small picture in every format that is read, and in the odd modes of PNG and TIFF."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    wide = Image.fromarray((np.arange(120, dtype=np.uint16) * 500).reshape(12, 10))
    corpus = [encoded(picture, kind) for kind in FORMATS]
    corpus += [encoded(picture.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    corpus += [encoded(wide, kind) for kind in ("PNG", "TIFF")]
    corpus += [encoded(picture, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate")]
    corpus.append(with_late_exif(encoded(picture, "JPEG"), turned()))
    return [*corpus, encoded(picture, "JPEG", exif=turned()), encoded(picture, "JPEG", progressive=True)]
