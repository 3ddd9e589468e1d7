"""The code that travels inside a logged model and answers for it: images in, classes out.

MLflow imports this file from the model's own folder, so it stands alone there: it needs torch, numpy, pandas
and Pillow, and never the package that trained the model; what it imports of that is put before it in one file.
An image is decoded, scaled and cropped here exactly as it is for evaluation.

Input of ``predict``
    A table with a column ``image``, a list, or a single image. An image is the bytes of a file, those as base64
    text (a ``data:`` URL is fine), a Pillow image, or an array of whole numbers from 0 to 255: ``[H, W, C]``,
    ``[C, H, W]`` or gray ``[H, W]``, C being 1, 3 or 4 (the fourth is opacity). A batch may also be one array,
    ``[B, H, W, C]`` or ``[B, C, H, W]``. An array of the model's own size is taken as it is, any other is scaled
    and cropped as a file would be.
    In Python an image may be a ``pathlib.Path`` too. Text never is a path: whoever may ask a server for an answer
    could otherwise have it read its files.
Output
    A table with a row an image: ``class`` (name), ``probability`` (of that class) and ``probabilities``
    (a list, in the order of the model's classes).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch.nn.functional import interpolate

from kd_mlflow.data.depth import FULL_RANGE, loaded, loose_samples, picture, samples

Image.init()
# Named, because Pillow would otherwise also try formats that start other programs; MPO comes with JPEG.
FORMATS = [
    name for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN
]
MAX_PIXELS = 2**27
MAX_BYTES = 2**28
BATCH = 64
CHANNELS = (1, 3, 4)
FILE = (bytes, bytearray, memoryview, str)
TAKEN = "the bytes of an image file, their base64 text, a Pillow image, an array, or in Python a pathlib.Path"
SHAPES = "[H, W], [H, W, C], [C, H, W], [B, H, W, C] or [B, C, H, W] with C = 1, 3 or 4"


class ImageClassifier:
    """An exported image classifier on the CPU, for MLflow's ``python_function``."""

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))["spec"]
        self.classes: list[str] = list(spec["classes"])
        self.size = int(spec["image_size"])
        self.value_range: tuple[int, int] = tuple(spec.get("value_range", FULL_RANGE))
        self.program = torch.export.load(str(folder / "model.pt2")).module()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classes with probabilities; see the module for what goes in and what comes out."""
        pixels = pixels_of(model_input, self.size, self.value_range)
        if not len(pixels):
            return pd.DataFrame({"class": [], "probability": [], "probabilities": []})
        with torch.inference_mode():
            parts = [self.program(torch.from_numpy(pixels[i : i + BATCH])) for i in range(0, len(pixels), BATCH)]
            probabilities = torch.cat(parts).float().softmax(dim=1)
        highest, index = probabilities.max(dim=1)
        return pd.DataFrame(
            {
                "class": [self.classes[k] for k in index.tolist()],
                "probability": highest.tolist(),
                "probabilities": probabilities.tolist(),
            }
        )


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> ImageClassifier:
    """Called by MLflow with the folder of the model's files."""
    return ImageClassifier(Path(path))


def pixels_of(model_input: Any, size: int, value_range: tuple[int, int] = FULL_RANGE) -> np.ndarray:
    """Any accepted input as uint8 ``[B, 3, size, size]``.

    Parameters
    ----------
    value_range:
        What black and white are in files of more than 8 bits a channel.

    Raises
    ------
    ValueError
        The input, or an image in it (named by its place), cannot be used.
    """
    if isinstance(model_input, (pd.DataFrame, dict)):
        if "image" not in model_input:
            raise ValueError(f"The input needs a column 'image'; it has {', '.join(map(str, model_input))}.")
        model_input = model_input["image"]
    if isinstance(model_input, (*FILE, os.PathLike, Image.Image)):
        model_input = [model_input]
    if isinstance(model_input, torch.Tensor):
        model_input = model_input.cpu().numpy()
    if isinstance(model_input, np.ndarray) and model_input.dtype.kind in "biufc":
        return _from_array(model_input, size)
    if not isinstance(model_input, Iterable):
        raise ValueError(f"The input is a {type(model_input).__name__}; an image is {TAKEN}.")
    items = list(model_input.reshape(-1) if isinstance(model_input, np.ndarray) else model_input)
    if items and not any(isinstance(item, _IMAGES) for item in items):
        whole = _nested(items)
        if whole is not None:
            return _from_array(whole, size)
    images = [_numbered(place, item, size, value_range) for place, item in enumerate(items)]
    return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def read_image(data: bytes, size: int, value_range: tuple[int, int] = FULL_RANGE) -> np.ndarray:
    """The bytes of an image file as uint8 ``[3, size, size]``: upright, RGB, scaled, centre crop."""
    side = -(-8 * size // 7)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.draft(None, (2 * side, 2 * side))
        deep = samples(image, data)
        return _centre(_to_rgb(loaded(image) if deep is None else picture(deep, value_range)), side, size)


_IMAGES = (*FILE, os.PathLike, Image.Image, np.ndarray, torch.Tensor)


def _nested(items: list[Any]) -> np.ndarray | None:
    """Nested lists as one array; None if they are no numbers or not all of one length."""
    try:
        array = np.asarray(items)
    except ValueError:
        return None
    return array if array.dtype.kind in "biufc" else None


def _numbered(place: int, item: Any, size: int, value_range: tuple[int, int]) -> np.ndarray:
    try:
        return _read(item, size, value_range)
    except UnidentifiedImageError:
        what = "the text is not base64 of an image file" if isinstance(item, str) else "it is no image file"
        raise ValueError(f"Image {place} cannot be used: {what}; give {TAKEN}.") from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        reason = str(error).rstrip(".") or type(error).__name__
        raise ValueError(f"Image {place} cannot be used: {reason}.") from None


def _read(item: Any, size: int, value_range: tuple[int, int]) -> np.ndarray:
    if isinstance(item, Image.Image):
        return _from_pillow(item, size, value_range)
    if isinstance(item, torch.Tensor):
        item = item.cpu().numpy()
    if isinstance(item, (list, tuple)):
        array = _nested(list(item))
        if array is None:
            raise ValueError(f"its rows differ in length or hold no numbers; give {TAKEN}")
        item = array
    if isinstance(item, np.ndarray) and item.ndim:
        if item.ndim > 3:
            raise ValueError(f"an array in a list is a single image of 2 or 3 dimensions, not {list(item.shape)}")
        return _from_array(item, size)[0]
    return read_image(_bytes_of(item), size, value_range)


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    # A path as an object was made in this process. Text may come from anywhere: it is never opened as a file.
    if isinstance(item, os.PathLike):
        return _file(Path(item))
    if not isinstance(item, str):
        raise ValueError(f"it is a {type(item).__name__}; give {TAKEN}")
    text = item.split(",", 1)[1] if item.startswith("data:") and "," in item else item
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the text is not base64; give {TAKEN}") from None


def _file(path: Path) -> bytes:
    if not path.is_file():  # a pipe would keep one waiting
        raise ValueError(f"there is no file {path}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()


def _from_pillow(image: Image.Image, size: int, value_range: tuple[int, int]) -> np.ndarray:
    file = getattr(image, "fp", None)
    if isinstance(image, ImageFile.ImageFile) and file is not None and image.tile and not image.tell():
        # Nothing was decoded yet: the file says more about its pixels than Pillow hands on.
        before = file.tell()
        file.seek(0)
        data = file.read()
        file.seek(before)
        return read_image(data, size, value_range)
    side = -(-8 * size // 7)
    deep = loose_samples(image)
    return _centre(_to_rgb(loaded(image) if deep is None else picture(deep, value_range)), side, size)


def _from_array(array: np.ndarray, size: int) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"Pixels must be integers from 0 to 255, not {array.dtype}; of pixels x from 0 to 1 give "
            "(255 * x).round().astype('uint8')."
        )
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError(
            f"Pixels must be integers from 0 to 255, not {array.min()} to {array.max()}; give an image of more than "
            "8 bits as the bytes of its file."
        )
    batch = _rows(array.astype(np.uint8), size)
    if batch.shape[1:] == (size, size, 3):
        return np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    side = -(-8 * size // 7)
    images = [_centre(Image.fromarray(np.ascontiguousarray(image)), side, size) for image in batch]
    return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def _rows(array: np.ndarray, size: int) -> np.ndarray:
    """Pixels in any accepted shape as RGB ``[B, H, W, 3]``."""
    given = list(array.shape)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3:
        if array.shape[2] not in CHANNELS and array.shape[0] not in (1, 3):
            raise ValueError(
                f"An array must be {SHAPES}, not {given}: gray images in one array are [B, 1, H, W], those "
                "with opacity [B, 4, H, W]."
            )
        array = array[None]
    if array.ndim != 4 or not {array.shape[1], array.shape[3]} & set(CHANNELS) or 0 in array.shape[1:]:
        raise ValueError(f"An array must be {SHAPES}, not {given}.")
    first = array.shape[3] not in CHANNELS or array.shape[1:] == (3, size, size)
    rows = array.transpose(0, 2, 3, 1) if first else array
    if rows.shape[3] == 1:
        return rows.repeat(3, axis=3)
    if rows.shape[3] == 4:
        images = [np.asarray(_to_rgb(Image.fromarray(np.ascontiguousarray(image)))) for image in rows]
        return np.stack(images) if images else rows[..., :3]
    return rows


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _centre(image: Image.Image, side: int, size: int) -> np.ndarray:
    short = min(image.size)
    factor = max(1, short // (3 * side))
    short -= short % factor
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = torch.from_numpy(np.array(image.reduce(factor, box=(left, top, left + short, top + short))))
    scaled = interpolate(square[None].permute(0, 3, 1, 2), size=(side, side), mode="bilinear", antialias=True)[0]
    margin = (side - size) // 2
    return np.ascontiguousarray(scaled[:, margin : margin + size, margin : margin + size].numpy())
