"""One image file to the pixels the store keeps; prediction uses the very same function."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn.functional import interpolate

from kd_mlflow.data.depth import FULL_RANGE, Depth, loaded, picture, samples
from kd_mlflow.data.jpeg import decode_plain, plain_size
from kd_mlflow.data.kinds import HEAD_BYTES, is_raw, kind_of, unreadable

# Named, because Pillow would otherwise also try formats that start other programs (EPS: Ghostscript).
_WANTED = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
Image.init()
FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
MAX_PIXELS = 2**27
MAX_BYTES = 2**28


class BadImage(Exception):
    """A file that cannot be used as an image.

    Attributes
    ----------
    reason:
        What is wrong, as a phrase that can follow the file's name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels ``[3, side, side]`` uint8, with the size in pixels that the image had, upright.

    ``depth`` tells of the values that an image of more than 8 bits a channel had.
    """

    pixels: np.ndarray
    width: int
    height: int
    depth: Depth | None = None


def read_image(source: Path | bytes, side: int, value_range: tuple[int, int] = FULL_RANGE) -> np.ndarray:
    """Pixels ``[3, side, side]``, uint8; see :func:`read_decoded`."""
    return read_decoded(source, side, value_range).pixels


def read_decoded(source: Path | bytes, side: int, value_range: tuple[int, int] = FULL_RANGE) -> Decoded:
    """The image as RGB, upright, its shortest side scaled to ``side``, its centre square kept.

    Parameters
    ----------
    source:
        A file, or the bytes of one.
    side:
        Side of the square, in pixels.
    value_range:
        What black and white are in an image of more than 8 bits a channel.

    Raises
    ------
    BadImage
        With the reason: empty, truncated, not an image, too large, unreadable.
    """
    if isinstance(source, bytes):
        return decode(source, side, value_range)
    try:
        data = read_file(source)
    except OSError as error:
        raise BadImage(f"cannot be read: {error.strerror or error}") from None
    return decode(data, side, value_range)


def read_file(path: Path | str, allowed: Callable[[str], object] | None = None, most: int | None = None) -> bytes:
    """The bytes of a plain file, whatever stood there when its folder was listed.

    Parameters
    ----------
    allowed:
        Is given the real path of what was opened, and raises if it may not be read.
    most:
        Read no more than so many bytes, of a file of any size; None: all of it.

    Raises
    ------
    OSError
        It cannot be read, is a pipe or a device, which could keep one waiting for ever, or is absurdly large.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if allowed is not None:
            allowed(opened_path(number, path))
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > MAX_BYTES and most is None:
            raise OSError(too_many_bytes(status.st_size))
        with open(number, "rb", closefd=False) as file:
            return file.read(status.st_size if most is None else most)
    finally:
        os.close(number)


def read_head(path: Path | str, allowed: Callable[[str], object] | None = None) -> bytes:
    """The bytes that tell a file's kind; none where it cannot be read. Parameters as for :func:`read_file`."""
    try:
        return read_file(path, allowed, HEAD_BYTES)
    except OSError:
        return b""


def opened_path(number: int, path: Path | str) -> str:
    """Where an open file or folder lies; the system says so far quicker than links can be followed once more."""
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:  # not Linux
        return os.path.realpath(path)


def too_many_bytes(size: int) -> str:
    """The reason given for a file that is not even opened."""
    return f"absurdly large: {size / 2**20:.0f} MiB, the limit is {MAX_BYTES // 2**20} MiB"


def decode(data: bytes, side: int, value_range: tuple[int, int] = FULL_RANGE) -> Decoded:
    """Bytes of an image file to pixels; see :func:`read_decoded`."""
    if not data:
        raise BadImage("the file is empty")
    size = plain_size(data)
    # From four times the side on Pillow is quicker: it decodes a JPEG at a part of its size.
    if size and min(size) < 4 * side and size[0] * size[1] <= MAX_PIXELS:
        pixels = decode_plain(data)
        if pixels is not None:
            return Decoded(_scaled(_middle(pixels), side), *size)
    if is_raw(data):  # Pillow reads the thumbnail in it
        raise BadImage(unreadable(data, FORMATS))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(_too_many_pixels(f"{width} x {height} pixels"))
            # A JPEG is decoded at 1/2, 1/4 or 1/8 where that still leaves twice the pixels needed.
            image.draft(None, (2 * side, 2 * side))
            deep = samples(image, data)
            if deep is not None:
                rgb = _to_rgb(picture(deep, value_range))
                return Decoded(_centre_square(rgb, side), *rgb.size, deep.depth)
            turned = loaded(image)
            if (turned.width > turned.height) != (image.width > image.height):
                width, height = height, width
            return Decoded(_centre_square(_to_rgb(turned), side), width, height)
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadImage(_too_many_pixels("far too many pixels")) from None
    except UnidentifiedImageError:
        raise BadImage(unreadable(data, FORMATS)) from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        if (kind := kind_of(data)) is not None and kind.group != "image":
            raise BadImage(unreadable(data, FORMATS)) from None
        raise BadImage(f"cannot be decoded: {error or type(error).__name__}") from None


def from_array(pixels: np.ndarray, side: int) -> Decoded:
    """Pixels ``[H, W]`` or ``[H, W, 3]`` uint8, scaled and cropped as a file would be."""
    height, width = pixels.shape[:2]
    return Decoded(_centre_square(Image.fromarray(pixels).convert("RGB"), side), width, height)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _centre_square(image: Image.Image, side: int) -> np.ndarray:
    short = min(image.size)
    # Averaging whole pixels first keeps a huge image cheap; three times the side is left for the exact scaling.
    factor = max(1, short // (3 * side))
    short -= short % factor
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.reduce(factor, box=(left, top, left + short, top + short))
    return _scaled(torch.from_numpy(np.array(square)), side)


def _middle(pixels: torch.Tensor) -> torch.Tensor:
    """The centre square of ``[H, W, 3]``."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    return pixels[(height - short) // 2 :, (width - short) // 2 :][:short, :short]


def _scaled(square: torch.Tensor, side: int) -> np.ndarray:
    """A square ``[H, H, 3]`` as ``[3, side, side]``; in whole numbers: the same with any vector instructions."""
    scaled = interpolate(square[None].permute(0, 3, 1, 2), size=(side, side), mode="bilinear", antialias=True)
    return np.ascontiguousarray(scaled[0].numpy())


def _too_many_pixels(what: str) -> str:
    return f"absurdly large: {what}, the limit is {MAX_PIXELS / 1e6:.0f} million"
