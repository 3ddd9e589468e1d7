"""The code that travels inside a logged model and answers for it: images in, classes out.

MLflow imports this file from the model's own folder, so it stands alone: it needs torch, numpy, pandas
and Pillow, and never the package that trained the model. An image is decoded, scaled and cropped here
exactly as it is for evaluation.

Input of ``predict``
    A table with a column ``image``, or a list: the bytes of image files, or those as base64 text (a
    ``data:`` URL is fine). Or an array of integers 0 to 255: ``[B, 3, S, S]`` or ``[B, S, S, 3]`` of the
    model's own size S is taken as it is, any other ``[B, H, W, 3]`` or ``[B, 3, H, W]`` is scaled and
    cropped as a file would be. A single image, ``[3, H, W]`` or ``[H, W, 3]``, is a batch of one.
Output
    A table with a row an image: ``class`` (name), ``probability`` (of that class) and ``probabilities``
    (a list, in the order of the model's classes).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

Image.init()
# Named, because Pillow would otherwise also try formats that start other programs; MPO comes with JPEG.
FORMATS = [
    name for name in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000") if name in Image.OPEN
]
MAX_PIXELS = 2**27
BATCH = 64


class ImageClassifier:
    """An exported image classifier on the CPU, for MLflow's ``python_function``."""

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "model.json").read_text(encoding="utf-8"))["spec"]
        self.classes: list[str] = list(spec["classes"])
        self.size = int(spec["image_size"])
        self.program = torch.export.load(str(folder / "model.pt2")).module()

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classes with probabilities; see the module for what goes in and what comes out."""
        pixels = pixels_of(model_input, self.size)
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


def pixels_of(model_input: Any, size: int) -> np.ndarray:
    """Any accepted input as uint8 ``[B, 3, size, size]``.

    Raises
    ------
    ValueError
        The input, or an image in it (named by its place), cannot be used.
    """
    if isinstance(model_input, (pd.DataFrame, dict)):
        if "image" not in model_input:
            raise ValueError(f"The input needs a column 'image'; it has {', '.join(map(str, model_input))}.")
        model_input = model_input["image"]
    if isinstance(model_input, (bytes, bytearray, memoryview, str)):
        model_input = [model_input]
    if isinstance(model_input, torch.Tensor):
        model_input = model_input.cpu().numpy()
    if isinstance(model_input, np.ndarray) and model_input.dtype.kind in "biuf":
        return _from_array(model_input, size)
    items = list(model_input.reshape(-1) if isinstance(model_input, np.ndarray) else model_input)
    if items and not isinstance(items[0], (bytes, bytearray, memoryview, str)):
        return _from_array(np.asarray(items), size)
    images = [_numbered(place, item, size) for place, item in enumerate(items)]
    return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def read_image(data: bytes, size: int) -> np.ndarray:
    """The bytes of an image file as uint8 ``[3, size, size]``: upright, RGB, scaled, centre crop."""
    side = -(-8 * size // 7)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are too many")
        image.draft(None, (2 * side, 2 * side))
        return _centre(_to_rgb(_upright(image)), side, size)


def _numbered(place: int, item: Any, size: int) -> np.ndarray:
    try:
        return read_image(_bytes_of(item), size)
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        raise ValueError(f"Image {place} cannot be used: {error or type(error).__name__}") from None


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    if not isinstance(item, str):
        raise ValueError(f"it is a {type(item).__name__}, neither the bytes of a file nor base64 text")
    text = item.split(",", 1)[1] if item.startswith("data:") and "," in item else item
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except binascii.Error:
        raise ValueError("the text is not base64") from None


def _from_array(array: np.ndarray, size: int) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise ValueError(f"Pixels must be integers from 0 to 255, not {array.dtype}.")
    if array.size and (array.min() < 0 or array.max() > 255):
        raise ValueError("Pixels must be integers from 0 to 255.")
    batch = (array[None] if array.ndim == 3 else array).astype(np.uint8)
    if batch.ndim != 4 or 3 not in (batch.shape[1], batch.shape[3]):
        raise ValueError(f"An array must be [B, 3, H, W] or [B, H, W, 3], not {list(array.shape)}.")
    if batch.shape[1:] == (3, size, size):
        return np.ascontiguousarray(batch)
    rows = batch if batch.shape[3] == 3 else batch.transpose(0, 2, 3, 1)
    if rows.shape[1:] == (size, size, 3):
        return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))
    side = -(-8 * size // 7)
    images = [_centre(Image.fromarray(np.ascontiguousarray(image)), side, size) for image in rows]
    return np.stack(images) if images else np.empty((0, 3, size, size), np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16 bits at 255: nearly all of the image would be white.
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
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
