"""Images of more than 8 bits a channel: their true values, and how a range turns them into 8 bits.

A served model carries this file beside its loader, so it stands alone: it needs numpy and Pillow only.
Pillow opens 16-bit color as 8 bits (it drops the lower byte), scales PGM and JPEG 2000 to 16 bits, and
takes a 16-bit gray TIFF whose 0 is white for one whose 0 is black; here the values are those of the file.
"""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps, ImagePalette, TiffImagePlugin

# Raised when a file gives other pixels than before: stores that hold such files are then built again.
VERSION = 1
# What black and white are where nothing else is known.
FULL_RANGE = (0, 65535)

_PNG, _CODESTREAM = b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51"
_OTHERS = (b"II", b"MM", b"P2", b"P3", b"P5", b"P6", _CODESTREAM, b"\0\0\0\x0cjP  ")
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT, _COLOR_MAP = 258, 262, 284, 339, 320
_MAX_SAMPLE_VALUES = (281, 341)
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED = 0, 2, 1
_NATIVE, _FOREIGN = ("L", "B") if sys.byteorder == "little" else ("B", "L")

# Layouts that Pillow's decoders can read but its table of TIFF layouts does not list.
_MORE_TIFF = {
    (b"MM", 0, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
    (b"MM", 1, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"II", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 0, (1,), 1, (12,), ()): ("I;16", "I;12"),
    (b"MM", 1, (1,), 1, (32,), ()): ("I", "I;32B"),
    (b"II", 0, (1,), 1, (32,), ()): ("I", "I;32N"),
    (b"MM", 0, (1,), 1, (32,), ()): ("I", "I;32B"),
}
for _layout, _modes in _MORE_TIFF.items():
    TiffImagePlugin.OPEN_INFO.setdefault(_layout, _modes)


@dataclass(frozen=True, slots=True)
class Depth:
    """What an image of more than 8 bits holds, and what its file declares.

    Attributes
    ----------
    bits:
        Bits a channel.
    low, high:
        The smallest and the largest value of its colors.
    declared:
        The value that is white by the file; 0 where the file does not say more than how wide its numbers are.
    """

    bits: int
    low: int
    high: int
    declared: int


@dataclass(frozen=True, slots=True)
class Samples:
    """The values of an image of more than 8 bits, upright.

    Attributes
    ----------
    values:
        ``[H, W]`` or ``[H, W, C]``, integers.
    mode:
        The Pillow mode of the picture that they make with 8 bits.
    inverted:
        0 is white.
    premultiplied:
        The colors were multiplied with the opacity.
    clear:
        The value or color of transparent pixels.
    """

    values: np.ndarray
    mode: str
    depth: Depth
    inverted: bool = False
    premultiplied: bool = False
    clear: int | tuple[int, ...] | None = None


def concerns(data: bytes) -> bool:
    """Whether this module decides about the pixels of a file; only its header is read."""
    if data.startswith(_PNG):
        return data[24:25] == b"\x10"
    if not data.startswith(_OTHERS):
        return False
    try:
        with Image.open(io.BytesIO(data), formats=("TIFF", "PPM", "JPEG2000")) as image:
            return _is_deep(image, data) or _narrow_palette(image) is not None
    except Exception:  # what cannot be opened has no pixels to decide about
        return False


def samples(image: Image.Image, data: bytes) -> Samples | None:
    """The values of an image that was opened but not loaded; None if it has no more than 8 bits.

    Parameters
    ----------
    image:
        May be loaded by this.
    data:
        The bytes of its file.

    Raises
    ------
    Exception
        Whatever Pillow's readers raise on a damaged file.
    """
    if not _is_deep(image, data):
        return None
    read = {"PNG": _png, "TIFF": _tiff, "PPM": _portable}.get(image.format or "", _jpeg2000)
    return read(image, data)


def loose_samples(image: Image.Image) -> Samples | None:
    """The values of a picture that no file belongs to any more; None if it has no more than 8 bits."""
    return _gray(np.asarray(loaded(image)), 16) if image.mode.startswith("I") else None


def picture(found: Samples, value_range: tuple[int, int]) -> Image.Image:
    """The values as 8 bits: ``low`` of the range and below are 0, ``high`` and above are 255, rounded between."""
    values, alpha = found.values, None
    if found.mode == "RGBA":
        values, alpha = values[..., :3], values[..., 3]
        # Programs that store 12 bits in 16 write an opacity of 12 bits too, others one of 16.
        opaque = value_range[1] if alpha.max(initial=0) <= value_range[1] else FULL_RANGE[1]
        if found.premultiplied:
            straight = values * (opaque / np.maximum(alpha, 1))[..., None]
            values = straight.round().clip(0, FULL_RANGE[1]).astype(np.uint16)
        alpha = _scaled(alpha, (0, opaque))
    scaled = _scaled(values, value_range)
    if found.inverted:
        scaled = 255 - scaled
    if found.clear is not None:
        same = found.values == np.asarray(found.clear)
        alpha = np.where(same.all(axis=2) if same.ndim == 3 else same, 0, 255).astype(np.uint8)
    if alpha is None:
        return Image.fromarray(scaled, found.mode) if found.mode == "CMYK" else Image.fromarray(scaled)
    return Image.fromarray(np.dstack([scaled, alpha]))


def loaded(image: Image.Image) -> Image.Image:
    """The image decoded and turned as its EXIF data ask."""
    palette = _narrow_palette(image)
    if palette is not None:
        image.palette = ImagePalette.raw("RGB;L", palette)
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image


def _scaled(values: np.ndarray, value_range: tuple[int, int]) -> np.ndarray:
    if values.dtype == np.uint16:
        return _scaled(np.arange(65536), value_range)[values]
    low, high = value_range
    span = high - low
    return (((values.astype(np.int64).clip(low, high) - low) * 255 + span // 2) // span).astype(np.uint8)


def _is_deep(image: Image.Image, data: bytes) -> bool:
    if image.mode.startswith("I"):
        return True
    if image.format == "PNG":
        return any(";16" in tile.args for tile in image.tile)
    if image.format == "PPM":
        return image.mode == "RGB" and _largest(image) > 255
    if image.format == "TIFF":
        return image.mode in ("RGB", "RGBA", "CMYK") and max(_numbers(image, _BITS), default=8) == 16
    if image.format == "JPEG2000":
        return image.mode in ("LA", "RGB", "RGBA") and _precision(data) > 8
    return False


def _png(image: Image.Image, data: bytes) -> Samples:
    rawmode, clear = image.tile[0].args, image.info.get("transparency")
    declared = _significant(data)
    if rawmode == "LA;16B":
        # Pillow cannot give the lower bytes of this layout; its four bytes a pixel are read as they stand.
        gray, opacity = _joined(_plane(image, "RGBA", "RGBA"), (0, 2))
        return _color(np.dstack([gray, gray, gray, opacity]), "RGBA", declared)
    if image.mode.startswith("I"):
        return _gray(np.asarray(loaded(image)), 16, declared, clear=clear)
    return _color(_two_bytes(image, data, rawmode), image.mode, declared, clear=clear)


def _tiff(image: Image.Image, data: bytes) -> Samples:
    bits = max(_numbers(image, _BITS), default=16)
    declared = max((value for tag in _MAX_SAMPLE_VALUES for value in _numbers(image, tag)), default=0)
    declared = declared if 0 < declared < 2**bits - 1 else 2**bits - 1 if bits % 8 else 0
    codec, rawmode = image.tile[0].codec_name, image.tile[0].args[0]
    if not image.mode.startswith("I"):
        separate = image.tag_v2.get(_PLANAR) == _SEPARATE_PLANES and codec == "raw"
        values = _separate_planes(image, data) if separate else _two_bytes(image, data, rawmode.replace("a", "A"))
        premultiplied = image.tag_v2.get(338) in (1, (1,))
        return _color(values, image.mode, declared, premultiplied=premultiplied)
    inverted = image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if codec == "libtiff":
        # libtiff gives numbers in the machine's order; Pillow minds that for those without a sign only.
        rawmode = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "I;32B": "I;32N"}.get(rawmode, rawmode)
    values = _plane(image, image.mode, rawmode)
    if bits == 32 and set(_numbers(image, _SAMPLE_FORMAT)) <= {_UNSIGNED}:
        values = values.view(np.uint32)
    return _gray(values, bits, declared, inverted=inverted)


def _portable(image: Image.Image, data: bytes) -> Samples:
    largest, offset = _largest(image), image.tile[0].offset
    bits, declared = largest.bit_length(), largest if largest < 65535 else 0
    if image.mode == "RGB":
        if image.tile[0].codec_name == "ppm_plain":
            numbers = np.array(re.sub(rb"#[^\r\n]*", b"", data[offset:]).split(), dtype=np.int64)
            if numbers.min() < 0 or numbers.max() > largest:
                raise ValueError(f"a value lies outside 0 to {largest}")
            values = numbers[: 3 * image.width * image.height].reshape(image.height, image.width, 3)
            return _color(values.astype(np.uint16), "RGB", declared, bits=bits)
        image.tile = [image.tile[0]._replace(codec_name="raw", args="")]
        return _color(_two_bytes(image, data, "RGB;16B"), "RGB", declared, bits=bits)
    if image.tile[0].codec_name == "ppm_plain":
        values = (np.asarray(loaded(image)).astype(np.int64) * largest + 32767) // 65535
        return _gray(values.astype(np.uint16), bits, declared)
    image.tile = [image.tile[0]._replace(codec_name="raw", args="")]
    return _gray(_plane(image, "I", "I;16B").astype(np.uint16), bits, declared)


def _jpeg2000(image: Image.Image, data: bytes) -> Samples:
    bits = min(_precision(data), 16)
    white = 2**bits - 1
    declared = white if bits < 16 else 0
    pixels = np.asarray(loaded(image))
    if pixels.ndim == 2:
        return _gray(pixels >> (16 - bits), bits, declared)
    # Pillow gives the upper 8 bits of color only, rounded: 256 levels from black to white.
    step = 2 ** (bits - 8)
    least_high = max(0, int(pixels[..., : 1 if image.mode == "LA" else 3].max()) * step - step // 2)
    values = (pixels.astype(np.uint32) * white // 255).astype(np.uint16)
    if image.mode == "LA":
        values = values[..., [0, 0, 0, 1]]
    found = _color(values, "RGB" if values.shape[2] == 3 else "RGBA", declared, bits=bits)
    return replace(found, depth=replace(found.depth, high=least_high))


def _precision(data: bytes) -> int:
    """Bits of the first channel: the size segment has 36 bytes of sizes, the number of channels, and then that."""
    return (data[data.find(_CODESTREAM) + 42] & 0x7F) + 1


def _gray(values: np.ndarray, bits: int, declared: int = 0, **more: object) -> Samples:
    if values.dtype.itemsize == 2:
        values = values.astype(np.uint16)  # in the machine's order
    return Samples(values, "L", Depth(bits, int(values.min()), int(values.max()), declared), **more)


def _color(values: np.ndarray, mode: str, declared: int, bits: int = 16, **more: object) -> Samples:
    colors = values[..., :3] if mode == "RGBA" else values
    return Samples(values, mode, Depth(bits, int(colors.min()), int(colors.max()), declared), **more)


def _plane(image: Image.Image, mode: str, rawmode: str) -> np.ndarray:
    """Pixels of an opened image whose bytes are understood as ``rawmode`` says."""
    image._mode = mode
    image.tile = [
        tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:])) for tile in image.tile
    ]
    return np.asarray(loaded(image))


def _two_bytes(image: Image.Image, data: bytes, rawmode: str) -> np.ndarray:
    """Color of 16 bits, uint16: Pillow gives a byte of each number, the upper one or, in the other order, the lower.

    Of compressed separate planes it gives the upper byte both times: they have 256 levels only.
    """
    layout, order = rawmode.split(";16")
    order = _NATIVE if order == "N" else order
    with _again(image, data) as second:
        upper = _plane(image, image.mode, f"{layout};16{order}")
        lower = _plane(second, second.mode, f"{layout};16{'B' if order == 'L' else 'L'}")
    return upper.astype(np.uint16) << 8 | lower


def _separate_planes(image: Image.Image, data: bytes) -> np.ndarray:
    """Color of 16 bits that lies a channel after the other, which Pillow would read as 8 bits."""
    mode = "I;16B" if data.startswith(b"MM") else "I;16"
    planes = []
    for band in dict.fromkeys(tile.args[0] for tile in image.tile):
        with _again(image, data) as plane:
            plane.tile = [tile for tile in plane.tile if tile.args[0] == band]
            planes.append(_plane(plane, mode, mode).astype(np.uint16))
    return np.dstack(planes)


def _again(image: Image.Image, data: bytes) -> Image.Image:
    again = Image.open(io.BytesIO(data), formats=(image.format,))
    again.tile = list(image.tile)
    return again


def _joined(bytes_of: np.ndarray, places: tuple[int, ...]) -> list[np.ndarray]:
    return [bytes_of[..., place].astype(np.uint16) << 8 | bytes_of[..., place + 1] for place in places]


def _largest(image: Image.Image) -> int:
    """The largest value of a PGM or PPM, as its header says."""
    arguments = image.tile[0].args
    if isinstance(arguments, str):  # Pillow's raw decoder, which it takes for full bytes alone
        return 65535 if ";16" in arguments else 255
    return int(arguments[-1])


def _significant(data: bytes) -> int:
    """White by a PNG's sBIT chunk, which tells how many bits of its colors mean something; 0 without one."""
    at = 8
    while at + 8 <= len(data) and data[at + 4 : at + 8] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(data[at : at + 4])
        if data[at + 4 : at + 8] == b"sBIT":
            bits = max(data[at + 8 : at + 8 + min(length, 3 if length > 2 else 1)], default=0)
            return 2**bits - 1 if 0 < bits < 16 else 0
        at += 12 + length
    return 0


def _narrow_palette(image: Image.Image) -> bytes | None:
    """The colors of a TIFF's palette where they were written as 8 bits, though the format wants 16: else black."""
    if image.format != "TIFF" or image.mode not in ("P", "PA"):
        return None
    colors = _numbers(image, _COLOR_MAP)
    return bytes(colors) if 0 < max(colors, default=0) < 256 else None


def _numbers(image: Image.Image, tag: int) -> list[int]:
    """The whole numbers of a TIFF's tag; none where it is absent or holds something else."""
    content = image.tag_v2.get(tag, ())
    content = content if isinstance(content, tuple) else (content,)
    try:
        return [int(value) for value in content]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        return []
