from __future__ import annotations

from base64 import b64encode

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_mlflow.data.images import read_image as read_for_training
from kd_mlflow.tracking.loader import pixels_of, read_image
from tests.pictures import encoded, turned, with_late_exif

SIZE = 32
SIDE = 37  # ceil(8/7 * 32)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def centre(pixels: np.ndarray) -> np.ndarray:
    margin = (pixels.shape[1] - SIZE) // 2
    return pixels[:, margin : margin + SIZE, margin : margin + SIZE]


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(80, 50)),
        encoded(picture(31, 200)),
        encoded(picture(80, 51), "JPEG"),
        encoded(picture(900, 700), "JPEG"),
        encoded(picture(900, 700)),
        encoded(picture(80, 50), "WEBP"),
        encoded(picture(80, 50).convert("L")),
        encoded(picture(80, 50).convert("P")),
        encoded(picture(80, 50).convert("LA")),
        encoded(picture(80, 50).convert("RGBA")),
        encoded(picture(80, 50).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20)),
        encoded(picture(80, 50), "JPEG", exif=turned()),
        with_late_exif(encoded(picture(80, 50), "JPEG"), turned()),
    ],
    ids=[
        "png",
        "narrow",
        "jpeg",
        "large jpeg",
        "large png",
        "webp",
        "grey",
        "palette",
        "grey alpha",
        "rgba",
        "cmyk",
        "16 bit",
        "exif",
        "late exif",
    ],
)
def test_image_is_read_as_for_evaluation(data: bytes) -> None:
    expected = centre(read_for_training(data, SIDE))
    assert np.array_equal(read_image(data, SIZE), expected)


def test_bytes_and_base64_are_the_same_image() -> None:
    data = encoded(picture(80, 50))
    text = b64encode(data).decode()
    forms = [
        data,
        bytearray(data),
        memoryview(data),
        text,
        f"data:image/png;base64,{text}",
        text[:40] + "\n" + text[40:],
    ]
    expected = read_image(data, SIZE)
    for given in (forms, pd.DataFrame({"image": forms}), {"image": forms}, np.array(forms[:1] * 2, dtype=object)):
        found = pixels_of(given, SIZE)
        assert found.shape[1:] == (3, SIZE, SIZE)
        assert all(np.array_equal(image, expected) for image in found)
    assert np.array_equal(pixels_of(data, SIZE)[0], expected)


def test_array_of_the_models_own_size_is_taken_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, SIZE, SIZE), dtype=np.uint8)
    last = pixels.transpose(0, 2, 3, 1)
    for given in (pixels, last, pixels.astype(np.int64), pixels.tolist()):
        assert np.array_equal(pixels_of(given, SIZE), pixels)
    for given in (pixels[0], last[0]):
        assert np.array_equal(pixels_of(given, SIZE), pixels[:1])


def test_array_of_another_size_is_scaled_and_cropped_like_a_file() -> None:
    rows = np.asarray(picture(80, 50))
    expected = read_image(encoded(picture(80, 50)), SIZE)
    for given in (rows, rows[None], rows.transpose(2, 0, 1), rows.transpose(2, 0, 1)[None]):
        assert np.array_equal(pixels_of(given, SIZE)[0], expected)


def test_no_images_are_no_rows() -> None:
    assert pixels_of(pd.DataFrame({"image": []}), SIZE).shape == (0, 3, SIZE, SIZE)
    assert pixels_of(np.empty((0, 50, 80, 3), np.uint8), SIZE).shape == (0, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (pd.DataFrame({"picture": ["x"]}), "needs a column 'image'; it has picture"),
        ([encoded(picture(80, 50)), b"no image"], "Image 1 cannot be used"),
        ([encoded(picture(80, 50))[:200]], "Image 0 cannot be used"),
        ([b""], "Image 0 cannot be used"),
        (["not base64!"], "Image 0 cannot be used: the text is not base64"),
        ([encoded(picture(80, 50)), None], "Image 1 cannot be used: it is a NoneType"),
        (np.zeros((1, 3, SIZE, SIZE), np.float32), "must be integers from 0 to 255, not float32"),
        (np.full((1, 3, SIZE, SIZE), 256), "must be integers from 0 to 255"),
        (np.zeros((1, 4, SIZE, SIZE), np.uint8), r"must be \[B, 3, H, W\] or \[B, H, W, 3\]"),
        (np.zeros((5, 5), np.uint8), r"must be \[B, 3, H, W\]"),
    ],
)
def test_input_that_cannot_be_used_is_named(given: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pixels_of(given, SIZE)
