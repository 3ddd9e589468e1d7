"""One range of values for a data set, measured or declared, and warnings of images without a picture in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.config import DataOptions
from kd_mlflow.data import build, manifest
from kd_mlflow.data.images import read_image
from kd_mlflow.data.ranges import _flat_colors
from kd_mlflow.data.store import prepare
from tests.pictures import encoded, png16, portable, tiff

SIDE = 19  # of the store of 16 px
Writer = Callable[[np.ndarray], bytes]


def values(number: int, high: int, low: int = 0, shape: tuple[int, ...] = (20, 24)) -> np.ndarray:
    """A picture that no other number has, with the smallest and the largest value in it."""
    pixels = np.random.default_rng(number).integers(low, high + 1, shape)
    pixels.reshape(-1)[:2] = low, high
    return pixels


def write(root: Path, files: dict[str, list[bytes]]) -> Path:
    """``{"train/cat": [content, ...]}``."""
    for folder, contents in files.items():
        (root / folder).mkdir(parents=True)
        for number, content in enumerate(contents):
            (root / folder / f"{number}.img").write_bytes(content)
    return root


def data_set(root: Path, save: Writer, train: int, held: int | None = None, **more: object) -> Path:
    """Two classes in three splits: three training images each with values up to ``train``, two others to ``held``."""
    counter = iter(range(1000))
    files = {}
    for split, high in (("train", train), ("val", held or train), ("test", held or train)):
        for label in ("cat", "dog"):
            count = 3 if split == "train" else 2
            files[f"{split}/{label}"] = [save(values(next(counter), high, **more)) for _ in range(count)]
    return write(root, files)


def uint16(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16)


WRITERS: dict[str, Writer] = {
    "png": lambda pixels: png16(uint16(pixels)),
    "tiff": lambda pixels: tiff(uint16(pixels)),
    "big-endian tiff": lambda pixels: tiff(uint16(pixels), ">"),
    "int32 tiff": lambda pixels: tiff(pixels.astype(np.int32)),
    "pgm": lambda pixels: portable(uint16(pixels), 65535),
    "jpeg 2000": lambda pixels: encoded(Image.fromarray(uint16(pixels)), "JPEG2000"),
    "color png": lambda pixels: png16(np.dstack([uint16(pixels)] * 3)),
    "color tiff": lambda pixels: tiff(np.dstack([uint16(pixels)] * 3), ">", 2),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(("largest", "white"), [(255, 255), (3071, 4095)])
def test_white_is_the_largest_training_value_rounded_up_to_whole_bits(
    name: str, largest: int, white: int, tmp_path: Path, prepared
) -> None:
    root = data_set(tmp_path / "data", WRITERS[name], largest)
    store = prepared(root)
    assert store.value_range == (0, white)
    (note,) = store.warnings
    assert f"-bit images are scaled by {white} (the largest value found in the training images is {largest}" in note
    for index in range(len(store.labels)):
        pixels = store.images[index]
        assert np.array_equal(pixels, read_image(root / store.path_of(index), SIDE, (0, white)))
    assert store.images.max() > 0.6 * 255
    train = store.images[store.splits["train"]] / 255
    assert store.mean == pytest.approx(train.mean((0, 2, 3)), abs=1e-12)
    assert store.std == pytest.approx(train.std((0, 2, 3)), abs=1e-12)


@pytest.mark.parametrize(
    ("largest", "white"),
    [(0, 255), (256, 1023), (1023, 1023), (1024, 4095), (4096, 16383), (16384, 65535), (65536, 2**18 - 1)],
)
def test_bit_depths_that_a_largest_value_is_rounded_up_to(largest: int, white: int, tmp_path: Path, prepared) -> None:
    root = data_set(tmp_path / "data", lambda pixels: tiff(pixels.astype(np.int32)), largest)
    assert prepared(root).value_range == (0, white)


@pytest.mark.parametrize(
    ("save", "white", "reason"),
    [
        (lambda pixels: portable(uint16(pixels), 4095), 4095, "12-bit images are scaled by 4095 (as their files say)."),
        (lambda pixels: portable(uint16(pixels), 5000), 5000, "13-bit images are scaled by 5000 (as their files say)."),
        (lambda pixels: png16(uint16(pixels), significant=12), 4095, "scaled by 4095 (as their files say)."),
        (lambda pixels: tiff(uint16(pixels), tags={281: [16383]}), 16383, "scaled by 16383 (as their files say)."),
        (lambda pixels: tiff(uint16(pixels), tags={341: [4095]}), 4095, "scaled by 4095 (as their files say)."),
        # The standard has sBIT stand beside values of full range.
        (lambda pixels: png16(uint16(pixels * 70), significant=12), 65535, "training images is 63000, rounded up"),
        (lambda pixels: tiff(uint16(pixels), tags={281: [255]}), 1023, "training images is 900, rounded up"),
    ],
)
def test_what_the_files_declare_comes_before_what_they_hold(
    save: Writer, white: int, reason: str, tmp_path: Path, prepared
) -> None:
    store = prepared(data_set(tmp_path / "data", save, 900))
    assert store.value_range == (0, white)
    assert reason in store.warnings[0]


def test_files_that_declare_different_whites_share_the_largest(tmp_path: Path, prepared) -> None:
    number = iter((1023, 4095) * 100)
    store = prepared(data_set(tmp_path / "data", lambda pixels: portable(uint16(pixels), next(number)), 900))
    assert store.value_range == (0, 4095)
    (note,) = store.warnings
    assert note == "10- and 12-bit images are scaled by 4095 (the largest of what their files say, from 1023)."


def test_values_below_zero_move_black(tmp_path: Path, prepared) -> None:
    root = data_set(tmp_path / "data", lambda pixels: tiff(pixels.astype(np.int16)), 3000, low=-1000)
    store = prepared(root)
    assert store.value_range == (-1024, 4095)
    assert "scaled from -1024 to 4095" in store.warnings[0]
    assert "14 images hold negative values: black is -1024, not 0." in store.warnings
    assert np.array_equal(store.images[0], read_image(root / store.path_of(0), SIDE, (-1024, 4095)))


def test_only_training_images_are_measured_and_others_beyond_them_are_told_of(tmp_path: Path, prepared) -> None:
    store = prepared(data_set(tmp_path / "data", WRITERS["png"], 900, held=30000))
    assert store.value_range == (0, 1023)
    assert "8 images hold values outside 0 to 1023, which become plain black or white." in store.warnings


def test_files_of_8_bits_keep_their_scale_among_others(tmp_path: Path, prepared) -> None:
    saves = iter([WRITERS["png"], lambda pixels: encoded(Image.fromarray((pixels >> 4).astype(np.uint8)))] * 100)
    root = data_set(tmp_path / "data", lambda pixels: next(saves)(pixels), 4000)
    store = prepared(root)
    assert store.value_range == (0, 4095)
    assert store.warnings[0].startswith("16-bit images are scaled by 4095 (")
    assert "; 7 images of 8 bits keep their scale of 255." in store.warnings[0]
    for index in range(len(store.labels)):
        assert np.array_equal(store.images[index], read_image(root / store.path_of(index), SIDE, (0, 4095)))


def test_a_class_that_the_common_range_leaves_dark_is_named(tmp_path: Path, prepared) -> None:
    files = {
        f"{split}/{label}": [png16(uint16(values(100 * number + k + high, high))) for k in range(2)]
        for number, split in enumerate(("train", "val", "test"))
        for label, high in (("cat", 255), ("dog", 60000))
    }
    store = prepared(write(tmp_path / "data", files))
    assert store.value_range == (0, 65535)
    assert any("class 'cat' are nearly black at this scale" in note for note in store.warnings)
    assert not any("'dog'" in note for note in store.warnings)


def test_images_of_full_range_are_decoded_once(tmp_path: Path, home: Path) -> None:
    root = data_set(tmp_path / "data", WRITERS["png"], 65535)
    calls: list[tuple[int, int]] = []
    store = prepare(DataOptions(data=str(root), image_size=16), home, lambda *call: calls.append(call))
    assert calls == [(done, 14) for done in range(1, 15)]
    assert store.value_range == (0, 65535)


def test_a_rescaled_store_is_whole_and_used_again(tmp_path: Path, home: Path) -> None:
    options = DataOptions(data=str(data_set(tmp_path / "data", WRITERS["tiff"], 3000)), image_size=16)
    calls: list[tuple[int, int]] = []
    first = prepare(options, home, lambda *call: calls.append(call))
    assert len(calls) == 28
    images = first.path / manifest.IMAGES
    images.touch()  # so that its digest is looked at
    again = prepare(options, home, lambda *call: calls.append(call))
    assert len(calls) == 28
    assert (again.path, again.value_range, again.warnings) == (first.path, first.value_range, first.warnings)


def test_a_range_that_is_given_is_used_and_kept_apart(tmp_path: Path, home: Path) -> None:
    root = data_set(tmp_path / "data", WRITERS["png"], 900)
    options = DataOptions(data=str(root), image_size=16)
    own, given = prepare(options, home), prepare(options, home, value_range=(0, 65535))
    assert (own.value_range, given.value_range) == ((0, 1023), (0, 65535))
    assert own.digest != given.digest
    assert np.array_equal(given.images[0], read_image(root / given.path_of(0), SIDE))
    assert "16-bit images are scaled by 65535 (the scale of the model)." in given.warnings
    again = prepare(options, home)
    assert (again.path, again.digest) == (own.path, own.digest)


def test_data_of_8_bits_keeps_key_digest_and_description_whatever_the_range(tmp_path: Path, home: Path, fill) -> None:
    root = fill(tmp_path / "pets", {f"{split}/{label}": 3 for split in ("train", "val", "test") for label in "ab"})
    options = DataOptions(data=str(root), image_size=16)
    store = prepare(options, home)
    # As they were before there were ranges.
    assert (store.path.name, store.digest) == ("7a274c7670e05b0de77f97877f54d13d", "01f05377d4f4070faa8ddf69884a251a")
    assert "value_range" not in json.loads((store.path / manifest.META).read_text())
    assert store.value_range is None
    assert prepare(options, home, value_range=(0, 4095)).path == store.path


@pytest.mark.fault("a store.json whose range is none", "it is taken as damaged and built again")
@pytest.mark.parametrize("wrong", [[0], [4095, 0], [0, 0], [0.0, 1.0], "01", [0, None], {"0": 1}])
def test_a_range_that_is_none_is_a_damaged_store(wrong: object, tmp_path: Path, home: Path) -> None:
    options = DataOptions(data=str(data_set(tmp_path / "data", WRITERS["png"], 900)), image_size=16)
    store = prepare(options, home)
    content = json.loads((store.path / manifest.META).read_text())
    content["value_range"] = wrong
    del content["seal"]
    (store.path / manifest.META).write_text(json.dumps(content | {"seal": manifest._seal(content)}))
    with pytest.raises(manifest.DamagedStore):
        manifest.read_meta(store.path)
    assert prepare(options, home).value_range == (0, 1023)


def flat(color: object, number: int) -> bytes:
    """A picture of one color; its size makes files of one color differ."""
    return encoded(Image.new("RGB", (20 + number, 24), color))


def test_a_class_a_split_and_a_data_set_of_flat_colors_are_warned_of(tmp_path: Path, prepared) -> None:
    def notes(name: str, color_of: Callable[[str, str, int], object]) -> list[str]:
        draw = np.random.default_rng(0)
        files: dict[str, list[bytes]] = {}
        number = 0
        for split in ("train", "val", "test"):
            for label in ("cat", "dog"):
                contents = files[f"{split}/{label}"] = []
                for _ in range(2):
                    number += 1
                    color = color_of(split, label, number)
                    noise = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
                    contents.append(encoded(noise) if color is None else flat(color, number))
        return [note for note in prepared(write(tmp_path / name, files)).warnings if "flat" in note]

    assert notes("none", lambda split, label, number: None) == []
    assert notes("some", lambda split, label, number: "red" if number % 2 else None) == []
    (note,) = notes("class", lambda split, label, number: "black" if label == "cat" else None)
    assert note.startswith("Every image of class 'cat' is one flat color, all black:")
    (note,) = notes("split", lambda split, label, number: "white" if split == "val" else None)
    assert note.startswith("Every image of split 'val' is one flat color, all white:")
    (note,) = notes("colors", lambda split, label, number: (number, 7, 9) if label == "dog" else None)
    assert note.startswith("Every image of class 'dog' is one flat color: no picture")
    (note,) = notes("all", lambda split, label, number: (0, 0, 0))
    assert note.startswith("Every image of the data set (12) is one flat color, all black:")


def test_one_level_in_one_pixel_is_no_flat_color() -> None:
    pixels = np.full((3, 300, 300), 254, np.uint8)
    pixels[0, 0, 0] = 255
    moments = np.stack([build._moments(pixels), build._moments(np.full((3, 300, 300), 254, np.uint8))])
    assert _flat_colors(moments, 300).tolist() == [0, 1]
