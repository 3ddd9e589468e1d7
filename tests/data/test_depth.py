"""Images of more than 8 bits a channel: the values are those of the file, and one range makes 8 bits of them."""

from __future__ import annotations

from base64 import b64decode

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.data.depth import Depth, concerns
from kd_mlflow.data.images import BadImage, decode, read_image
from kd_mlflow.tracking.loader import read_image as read_served
from tests.pictures import encoded, png16, portable, tiff, turned

SIDE = 16
DRAW = np.random.default_rng(5)
GRAY = DRAW.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
COLOR = DRAW.integers(0, 4096, (SIDE, SIDE, 3)).astype(np.uint16)
OPAQUE = np.full((SIDE, SIDE), 4095, np.uint16)
RGBA = np.dstack([COLOR, OPAQUE])
# 0, 65, 130, ... 4095 in 8 x 8 pixels of 12 bits, as OpenJPEG writes it.
JPEG2000_12 = b64decode(
    "/0//UQApAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAABCwEB/1IADAAAAAEAAAQEAAH/XAAEQGD/ZAAlAAFDcmVhdGVkIGJ5IE9wZW5K"
    "UEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAABmAAH/k9/hVBIsQqeXlbFDDtYoP97oKcVIuDRWEuF5DpiRhU9D0Zh+EpvOO8N5vXFJxoU3gmJWFbc5znXq"
    "SkAMwCgAB0Rl1SPMU4YLXGfa6ymrhOuAcNhsNhsNhsP/2Q=="
)
# The same in red, upside down in green, and backwards in blue, in 16 bits.
JPEG2000_COLOR = b64decode(
    "/0//UQAvAAAAAAAIAAAACAAAAAAAAAAAAAAACAAAAAgAAAAAAAAAAAADDwEBDwEBDwEB/1IADAAAAAEAAAQEAAH/XAAEQID/ZAAlAAFDcmVhdG"
    "VkIGJ5IE9wZW5KUEVHIHZlcnNpb24gMi41LjT/kAAKAAAAAAFlAAH/k9/4k3gSK2cWj4+hghgWT+JgMI988xqUnOc5znOfnB1AAAAAAAThD2I5"
    "sPzYf+xyD3Sdb62l1qm5183zfN83zfcLMGUthH0VB41KT1IsOVWUFigAsoIgAS4MGlHmw/Nh+bAtdXCdb62l1bG3zfN83zfN83/f+JNwPnc+qx"
    "GfH9n0hQAYR5kPE/RmHrUpObAgiqnKqAAASkDgAVc2fWzI7Vp+wTXVwn/+lb62Nvm+b58Cu3m/oQcJgyj0O3FKTnfJUMqsoLFABZQRAAOiMuqN"
    "q0/YjmwLXVwnW+tpdWxt83zfN83zfN/f+JNwYhrP5jsfkx/XUADCPMU4j6HlTEpOc5znOc5tyCgAAAAAACAzh9bVp+xFqxFbS6tpdW0upddWXl"
    "5eXl5XvDpM4R9DypiUnfJUMqo1KVABZQRAAXUCojmw/Nh+bAtdXCdb62l1bG3zfN83zfN83zf/2Q=="
)


def eight_bits(values: np.ndarray, low: int = 0, high: int = 4095) -> np.ndarray:
    """``[3, H, W]``: the rule, in exact fractions of a level."""
    scaled = np.floor((values.astype(float).clip(low, high) - low) / (high - low) * 255 + 0.5).astype(np.uint8)
    return np.stack([scaled] * 3) if scaled.ndim == 2 else scaled.transpose(2, 0, 1)


FILES = {
    "png": (png16(GRAY), GRAY),
    "png rgb": (png16(COLOR), COLOR),
    "png gray and opacity": (png16(np.dstack([GRAY, OPAQUE])), GRAY),
    "png rgba": (png16(RGBA), COLOR),
    "png rgba of 16 bits of opacity": (png16(np.dstack([COLOR, OPAQUE * 0 + 65535])), COLOR),
    "pgm": (portable(GRAY, 65535), GRAY),
    "pgm 4095": (portable(GRAY, 4095), GRAY),
    "pgm plain": (portable(GRAY, 4095, plain=True), GRAY),
    "pgm plain 65535": (portable(GRAY, 65535, plain=True), GRAY),
    "ppm": (portable(COLOR, 65535), COLOR),
    "ppm 4095": (portable(COLOR, 4095), COLOR),
    "ppm plain": (portable(COLOR, 65535, plain=True), COLOR),
    "jpeg 2000": (encoded(Image.fromarray(GRAY), "JPEG2000"), GRAY),
    "lzw": (encoded(Image.fromarray(GRAY), "TIFF", compression="tiff_lzw"), GRAY),
}
for _order, _name in (("<", "little-endian"), (">", "big-endian")):
    FILES |= {
        f"tiff {_name}": (tiff(GRAY, _order), GRAY),
        f"tiff {_name} inverted": (tiff(GRAY, _order, 0), 4095 - GRAY),
        f"tiff {_name} int16": (tiff(GRAY.astype(np.int16), _order), GRAY),
        f"tiff {_name} int32": (tiff(GRAY.astype(np.int32), _order), GRAY),
        f"tiff {_name} uint32": (tiff(GRAY.astype(np.uint32), _order), GRAY),
        f"tiff {_name} uint32 inverted": (tiff(GRAY.astype(np.uint32), _order, 0), 4095 - GRAY),
        f"tiff {_name} rgb": (tiff(COLOR, _order, 2), COLOR),
        f"tiff {_name} rgb in planes": (tiff(COLOR, _order, 2, planes=True), COLOR),
        f"tiff {_name} rgba": (tiff(RGBA, _order, 2, tags={338: [2]}), COLOR),
        f"tiff {_name} rgba in planes": (tiff(RGBA, _order, 2, planes=True, tags={338: [2]}), COLOR),
        f"tiff {_name} rgba multiplied": (tiff(RGBA, _order, 2, tags={338: [1]}), COLOR),
        f"tiff {_name} rgbx": (tiff(RGBA, _order, 2, tags={338: [0]}), COLOR),
    }


@pytest.mark.parametrize("name", FILES)
def test_values_of_a_file_become_8_bits_by_the_range_in_training_and_in_a_served_model(name: str) -> None:
    data, values = FILES[name]
    assert concerns(data)
    assert np.array_equal(read_image(data, SIDE, (0, 4095)), eight_bits(values))
    if not {"inverted", "rgba", "opacity"} & set(name.split()):  # of these, the range decides about more than the scale
        assert np.array_equal(read_image(data, SIDE), eight_bits(values, high=65535))
    assert np.array_equal(read_served(data, 14, (0, 4095)), read_image(data, SIDE, (0, 4095))[:, 1:15, 1:15])


def test_jpeg_2000_of_12_bits_says_so() -> None:
    result = decode(JPEG2000_12, 8, (0, 4095))
    assert (result.depth.bits, result.depth.low, result.depth.high, result.depth.declared) == (12, 0, 4095, 4095)
    assert np.array_equal(result.pixels, eight_bits(65 * np.arange(64).reshape(8, 8)))


def test_color_jpeg_2000_is_read_with_its_upper_8_bits() -> None:
    assert concerns(JPEG2000_COLOR)
    result = decode(JPEG2000_COLOR, 8, (0, 4095))
    ramp = 65 * np.arange(64).reshape(8, 8)
    values = np.dstack([ramp, ramp[::-1], 4095 - ramp])
    assert np.abs(result.pixels.astype(int) - eight_bits(values)).max() <= 17
    # Pillow rounds to 16 of its 256 levels, which 4095 is not to be taken for more than.
    assert result.depth == Depth(16, 0, 3968, 0)
    assert np.array_equal(read_image(JPEG2000_COLOR, 8), (values.transpose(2, 0, 1) + 128) >> 8)
    assert np.array_equal(read_served(JPEG2000_COLOR, 7, (0, 4095)), result.pixels[:, :7, :7])


@pytest.mark.parametrize(
    ("data", "declared"),
    [
        (png16(GRAY), 0),
        (png16(GRAY, significant=12), 4095),
        (png16(COLOR, significant=10), 1023),
        (png16(np.dstack([GRAY, OPAQUE]), significant=12), 4095),
        (png16(GRAY, significant=16), 0),
        (portable(GRAY, 65535), 0),
        (portable(GRAY, 4095), 4095),
        (portable(COLOR, 5000), 5000),
        (tiff(GRAY), 0),
        (tiff(GRAY, tags={281: [4095]}), 4095),
        (tiff(GRAY, tags={341: [16383]}), 16383),
        (tiff(COLOR, ">", 2, tags={281: [4095] * 3}), 4095),
        (tiff(GRAY, tags={281: [65535]}), 0),
    ],
)
def test_a_file_declares_white_where_it_says_more_than_how_wide_its_numbers_are(data: bytes, declared: int) -> None:
    assert decode(data, SIDE).depth.declared == declared


def test_tiff_of_12_bits_is_read_in_either_order_and_inverted() -> None:
    numbers = GRAY.reshape(-1, 2).astype(int)
    packed = np.stack([numbers[:, 0] >> 4, (numbers[:, 0] & 15) << 4 | numbers[:, 1] >> 8, numbers[:, 1] & 255], axis=1)
    eight = packed.astype(np.uint8).reshape(SIDE, SIDE * 3 // 2)
    for order in "<>":
        for photometric in (0, 1):
            data = tiff(eight, order, photometric, tags={256: [SIDE], 258: [12]})
            values = GRAY if photometric else 4095 - GRAY
            assert np.array_equal(read_image(data, SIDE, (0, 4095)), eight_bits(values))
            assert decode(data, SIDE).depth.declared == 4095


def test_values_below_0_and_above_31_bits_are_kept() -> None:
    below = GRAY.astype(np.int16) - 2048
    for order in "<>":
        assert np.array_equal(read_image(tiff(below, order), SIDE, (-2048, 2047)), eight_bits(below, -2048, 2047))
        large = GRAY.astype(np.uint32) * 1048576
        limit = 4095 * 1048576
        assert np.array_equal(read_image(tiff(large, order), SIDE, (0, limit)), eight_bits(large, 0, limit))


def test_signed_values_of_a_compressed_big_endian_tiff_are_not_turned_round() -> None:
    for kind in (np.int16, np.int32):
        values = GRAY.astype(kind) - 2048
        rows = values.astype(np.dtype(kind).newbyteorder(">"))
        # PackBits: a count less one, then so many bytes.
        packed = b"".join(bytes([rows[0].nbytes - 1]) + row.tobytes() for row in rows)
        data = packed_tiff(tiff(values, ">", tags={259: [32773]}), packed)
        assert np.array_equal(read_image(data, SIDE, (-2048, 2047)), eight_bits(values, -2048, 2047))


def packed_tiff(plain: bytes, packed: bytes) -> bytes:
    """A big-endian TIFF of one strip with another strip, at the end of the file."""
    offset, length = (273).to_bytes(2) + b"\0\4" + (1).to_bytes(4), (279).to_bytes(2) + b"\0\4" + (1).to_bytes(4)
    data = bytearray(plain)
    for key, value in ((offset, len(plain)), (length, len(packed))):
        place = data.index(key) + 8
        data[place : place + 4] = value.to_bytes(4)
    return bytes(data) + packed


def test_transparent_pixels_of_16_bits_become_white() -> None:
    alpha = np.zeros((SIDE, SIDE), np.uint16)
    alpha[:8] = 4095
    for data in (png16(np.dstack([COLOR, alpha])), tiff(np.dstack([COLOR, alpha]), ">", 2, tags={338: [2]})):
        pixels = read_image(data, SIDE, (0, 4095))
        assert np.array_equal(pixels[:, :8], eight_bits(COLOR)[:, :8])
        assert (pixels[:, 8:] == 255).all()
    gray = GRAY.copy()
    gray[3], gray[4] = 7, 8
    pixels = read_image(png16(gray, clear=[7]), SIDE, (0, 4095))
    assert (pixels[:, 3] == 255).all()
    assert np.array_equal(pixels[:, 4:], eight_bits(gray)[:, 4:])
    color = COLOR.copy()
    color[2] = (7, 8, 9)
    pixels = read_image(png16(color, clear=[7, 8, 9]), SIDE, (0, 4095))
    assert (pixels[:, 2] == 255).all()
    assert np.array_equal(pixels[:, 3:], eight_bits(color)[:, 3:])


def test_color_that_was_multiplied_with_its_opacity_is_divided_by_it() -> None:
    half = np.dstack([COLOR // 2, OPAQUE // 2])
    pixels = read_image(tiff(half, "<", 2, tags={338: [1]}), SIDE, (0, 4095)).astype(int)
    assert np.abs(pixels - (eight_bits(COLOR).astype(int) + 255) / 2).max() < 2


def test_ink_of_16_bits_has_the_colors_of_8_bits() -> None:
    ink = DRAW.integers(0, 256, (SIDE, SIDE, 4)).astype(np.uint8)
    expected = read_image(tiff(ink, "<", 5), SIDE)
    for order in "<>":
        assert np.array_equal(read_image(tiff(ink.astype(np.uint16) * 257, order, 5), SIDE), expected)
        assert np.array_equal(read_image(tiff(ink.astype(np.uint16), order, 5), SIDE, (0, 255)), expected)


def test_an_image_of_16_bits_is_turned_upright() -> None:
    for values in (GRAY[:, :10], COLOR[:, :10]):
        data = encoded(Image.fromarray(GRAY[:, :10]), "PNG", exif=turned()) if values.ndim == 2 else with_exif(values)
        result = decode(data, 10, (0, 4095))
        assert (result.width, result.height) == (16, 10)
        upright = np.rot90(values, -1)[:, 3:13]
        assert np.array_equal(result.pixels, eight_bits(upright))


def with_exif(values: np.ndarray) -> bytes:
    """A TIFF of 16-bit color with the tag that tells a viewer to turn it."""
    return tiff(values, "<", 2, tags={274: [6]})


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_colors_is_read_as_pillow_reads_it(bits: int) -> None:
    colors = DRAW.integers(0, 256, (2**bits, 3)).astype(np.uint8)
    index = DRAW.integers(0, 2**bits, (SIDE, SIDE)).astype(np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colors.tobytes())
    for data in (encoded(image, "PNG", bits=bits), encoded(image, "GIF"), encoded(image, "TIFF")):
        assert np.array_equal(read_image(data, SIDE), colors[index].transpose(2, 0, 1))
        assert not concerns(data)


def test_a_tiff_palette_written_with_8_bits_is_not_black() -> None:
    colors = DRAW.integers(0, 256, (3, 256)).astype(np.uint16)
    index = DRAW.integers(0, 256, (SIDE, SIDE)).astype(np.uint8)
    expected = colors.astype(np.uint8)[:, index]
    for scale in (1, 257):
        data = tiff(index, "<", 3, tags={320: (colors * scale).ravel().tolist()})
        assert np.array_equal(read_image(data, SIDE), expected)
        assert np.array_equal(read_served(data, 14), expected[:, 1:15, 1:15])


def test_files_of_8_bits_and_less_are_none_of_its_business() -> None:
    eight = (GRAY >> 4).astype(np.uint8)
    for photometric in (0, 1):
        data = tiff(eight, "<", photometric)
        assert not concerns(data)
        assert decode(data, SIDE, (0, 100)).depth is None
        assert np.array_equal(read_image(data, SIDE, (0, 100))[0], eight if photometric else 255 - eight)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000"):
        image = Image.fromarray(eight)
        assert not concerns(encoded(image, kind))
        assert not concerns(encoded(image.convert("RGB"), kind))
        if kind not in ("JPEG", "WEBP", "JPEG2000"):
            assert not concerns(encoded(image.convert("1"), kind))
    assert not concerns(b"")
    assert not concerns(b"II*\0nothing")
    assert not concerns(portable(GRAY, 255))


def test_one_bit_is_black_and_white() -> None:
    bits = Image.fromarray((GRAY > 2048).astype(np.uint8) * 255).convert("1")
    for data in (encoded(bits, "PNG"), encoded(bits, "TIFF"), encoded(bits, "TIFF", compression="group4"),
                 encoded(bits, "PPM"), encoded(bits, "BMP")):  # fmt: skip
        assert np.array_equal(read_image(data, SIDE)[0], (GRAY > 2048) * 255)


@pytest.mark.fault("an image of floating-point numbers", "refused in a sentence that says what to save")
def test_floating_point_is_refused() -> None:
    for data in (encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF"), b"Pf\n2 2\n-1.0\n" + bytes(16)):
        with pytest.raises(BadImage, match="no known range; save it with 8 or 16 bits"):
            read_image(data, SIDE)


@pytest.mark.fault("an image of 16 bits that was cut off", "named with its reason, not trained on")
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_of_16_bits_is_bad(name: str) -> None:
    data = FILES[name][0]
    with pytest.raises(BadImage):
        read_image(data[: len(data) // 2], SIDE)
