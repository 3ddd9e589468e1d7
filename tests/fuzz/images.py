"""Whatever bytes are given as an image: pixels, or a reason. The two readers, for training and in a served model.

For a fuzzer: ``atheris.Setup(sys.argv, one_input); atheris.Fuzz()``.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from kd_mlflow.data.images import FORMATS, BadImage, read_image
from kd_mlflow.tracking.loader import pixels_of
from tests.fuzz.sentences import one_sentence

SIDE = 8


def one_input(data: bytes) -> None:
    """Read the bytes both ways."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert read_image(data, SIDE).shape == (3, SIDE, SIDE)
        except BadImage as bad:
            one_sentence(bad)
        try:
            assert pixels_of([data], SIDE).shape == (1, 3, SIDE, SIDE)
        except ValueError as error:
            one_sentence(error)


def seeds() -> list[bytes]:
    """A small picture in every format that is read, and in the odd modes of PNG and TIFF."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    wide = Image.fromarray((np.arange(120, dtype=np.uint16) * 500).reshape(12, 10))
    corpus = [_encoded(picture, kind) for kind in FORMATS]
    corpus += [_encoded(picture.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")]
    corpus += [_encoded(wide, kind) for kind in ("PNG", "TIFF")]
    corpus += [_encoded(picture, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate")]
    exif = Image.Exif()
    exif[0x0112] = 6
    return [*corpus, _encoded(picture, "JPEG", exif=exif), _encoded(picture, "JPEG", progressive=True)]


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
