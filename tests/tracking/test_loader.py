from __future__ import annotations

import ast
import io
from base64 import b64encode
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from kd_mlflow.data.images import read_image as read_for_training
from kd_mlflow.tracking import flavor
from kd_mlflow.tracking.loader import pixels_of, read_image
from tests.pictures import encoded, turned, with_late_exif

SIZE = 32
SIDE = 37  # ceil(8/7 * 32)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def gray(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width), dtype=np.uint8)


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
        (
            np.zeros((1, 5, SIZE, SIZE), np.uint8),
            r"must be \[H, W\], .*\[B, C, H, W\] with C = 1, 3 or 4, not \[1, 5",
        ),
        (np.zeros(5, np.uint8), r"must be \[H, W\], .*, not \[5\]"),
        (np.zeros((7, SIZE, SIZE), np.uint8), r"not \[7, 32, 32\]: gray images in one array are \[B, 1, H, W\]"),
        (np.zeros((4, SIZE, SIZE), np.uint8), r"not \[4, 32, 32\]: .* those with opacity \[B, 4, H, W\]"),
        (np.zeros((0, 0), np.uint8), r"not \[0, 0\]"),
        (
            np.full((9, 9), 4095, np.uint16),
            "not 4095 to 4095; give an image of more than 8 bits as the bytes of its file",
        ),
        (np.full((9, 9), -1), "from 0 to 255, not -1 to -1"),
        (np.zeros((9, 9), bool), "not bool"),
        (np.zeros((9, 9)), r"not float64; of pixels x from 0 to 1 give \(255 \* x\).round"),
        ([np.zeros((9, 9, 3)), np.zeros((7, 9, 3))], "Image 0 cannot be used: Pixels must be integers .* not float64"),
        (pd.DataFrame({"image": [np.zeros((9, 9), np.float32)]}), "Image 0 .* not float32"),
        (
            [np.zeros((2, 9, 9, 3), np.uint8), np.zeros((9, 9, 3), np.uint8)],
            r"Image 0 .* a single image .*\[2, 9, 9, 3\]",
        ),
        ([[[1, 2], [3]], [[1, 2], [3, 4]]], "Image 0 cannot be used: its rows differ in length"),
        ([{"b64": "x"}], "Image 0 cannot be used: it is a dict; give the bytes of an image file"),
        (5, "The input is a int; an image is the bytes of an image file"),
        (None, "The input is a NoneType"),
        (Path("absent.png"), "Image 0 cannot be used: there is no file absent.png"),
        (Path("/dev/zero"), "Image 0 cannot be used: there is no file /dev/zero"),
        (Path("/"), "Image 0 cannot be used: there is no file /"),
        (b64encode(b"no image").decode(), "Image 0 cannot be used: the text is not base64 of an image file"),
        (Image.new("F", (9, 9)), "Image 0 cannot be used: floating-point pixels"),
    ],
)
def test_input_that_cannot_be_used_is_named(given: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pixels_of(given, SIZE)


@pytest.mark.parametrize("shape", [(SIZE, SIZE), (50, 80)])
def test_gray_and_transparent_arrays_are_read_as_files_of_them_are(shape: tuple[int, int]) -> None:
    pixels = gray(*shape)
    rgba = np.dstack([pixels, pixels.T.reshape(shape), pixels, pixels[::-1]])
    for array, mode in ((pixels, "L"), (rgba, "RGBA")):
        file = Image.fromarray(array, mode)
        last = array.reshape(*shape, -1)
        forms = [last, last[None], np.stack([last, last]).transpose(0, 3, 1, 2), *([array] if mode == "L" else [])]
        for given in forms:
            images = pixels_of(given, SIZE)
            assert len(images) == (2 if given is forms[2] else 1)
            if shape == (SIZE, SIZE):
                white = Image.new("RGBA", file.size, "white")
                expected = np.asarray(Image.alpha_composite(white, file.convert("RGBA")).convert("RGB"))
                assert np.array_equal(images[0], expected.transpose(2, 0, 1))
            else:
                assert np.array_equal(images[0], read_image(encoded(file), SIZE))


def test_images_of_several_sizes_and_kinds_are_taken_together(tmp_path: Path) -> None:
    images = [picture(80, 50), picture(31, 200), picture(64, 64)]
    expected = np.stack([read_image(encoded(image), SIZE) for image in images])
    (tmp_path / "a.png").write_bytes(encoded(images[2]))
    arrays = [np.asarray(image) for image in images]
    objects = np.empty(3, dtype=object)
    objects[:] = arrays
    for given in (
        arrays,
        tuple(arrays),
        objects,
        pd.DataFrame({"image": arrays}),
        pd.Series(arrays),
        {"image": arrays},
        [array.tolist() for array in arrays],
        [torch.tensor(array) for array in arrays],
        images,
        [encoded(images[0]), arrays[1], tmp_path / "a.png"],
        pd.DataFrame({"image": [images[0], b64encode(encoded(images[1])).decode(), arrays[2].tolist()]}),
    ):
        assert np.array_equal(pixels_of(given, SIZE), expected)


def test_a_list_of_three_gray_arrays_is_three_images() -> None:
    arrays = [gray(40, 40), gray(50, 80), gray(60, 60)]
    assert len(pixels_of(arrays, SIZE)) == len(pixels_of([arrays[0]] * 3, SIZE)) == 3


def test_a_path_is_read_where_it_is_an_object_and_never_as_text(tmp_path: Path) -> None:
    data = encoded(picture(80, 50))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    short = tmp_path / "abcd"  # its name alone is base64
    short.write_bytes(data)
    for given in (path, [path, path], pd.DataFrame({"image": [path]}), {"image": path}):
        assert np.array_equal(pixels_of(given, SIZE)[0], read_image(data, SIZE))
    for text in (str(path), path.as_uri(), f"file:{path}", str(short), "abcd", f"data:{path}", f"data:,{path}"):
        for given in (text, [text], pd.DataFrame({"image": [text]}), {"image": text}, np.array([text])):
            with pytest.raises(ValueError, match=r"Image 0 cannot be used: the text is not base64.*a pathlib\.Path\.$"):
                pixels_of(given, SIZE)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("exif", [None, turned()], ids=["upright", "turned"])
def test_a_pillow_image_from_a_file_gives_the_pixels_of_the_file(kind: str, exif: Image.Exif | None) -> None:
    data = encoded(picture(300, 200), kind, **({} if exif is None else {"exif": exif}))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(pixels_of(image, SIZE)[0], read_image(data, SIZE))
        image.load()
        assert image.size == (300, 200)
        if kind == "PNG":
            assert np.array_equal(pixels_of([image], SIZE)[0], read_image(data, SIZE))


def test_a_models_range_of_values_holds_for_files_and_pillow_images_of_16_bits() -> None:
    ramp = (np.arange(50 * 80, dtype=np.uint16) % 4096).reshape(50, 80)
    data = encoded(Image.fromarray(ramp))
    expected = centre(read_for_training(data, SIDE, (0, 4095)))
    assert expected.max() > 200
    with Image.open(io.BytesIO(data)) as image:
        for given in (data, b64encode(data).decode(), Image.fromarray(ramp), image):
            assert np.array_equal(pixels_of(given, SIZE, (0, 4095))[0], expected)


def test_the_code_that_travels_defines_no_name_twice() -> None:
    statements = ast.parse(flavor._loader()[1]).body
    defined = [statement.name for statement in statements if isinstance(statement, (ast.FunctionDef, ast.ClassDef))]
    targets = [target for statement in statements if isinstance(statement, ast.Assign) for target in statement.targets]
    defined += [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    assert {"read_image", "samples", "FORMATS", "FULL_RANGE"} <= set(defined)
    assert sorted(defined) == sorted(set(defined))
