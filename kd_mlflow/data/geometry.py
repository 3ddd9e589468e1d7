"""Crop, mirror and the geometric operations as one affine map a sample, applied in one resampling."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kd_mlflow.config import AugmentationOptions
from kd_mlflow.data.draws import uniform

ATTEMPTS = 10
BINS = 31
_ASPECTS = 1024
# Tables, because sin, cos and exp may differ in the last bit between the vectorised part of an array and
# its remainder; looked up, a sample's numbers cannot depend on how large its batch is.
_ASPECT_TABLE = np.exp(np.linspace(np.log(3 / 4), np.log(4 / 3), _ASPECTS))
_ANGLES = np.deg2rad(np.linspace(0.0, 135.0, BINS))
_SHEARS = np.linspace(0.0, 0.99, BINS)
_SHIFTS = np.linspace(0.0, 32 / 224, BINS)


class Draw(IntEnum):
    """What a random number is for; crops take ATTEMPTS numbers from each of the first two."""

    AREA = 0
    ASPECT = 100
    LEFT = 200
    TOP = 201
    MIRROR = 202
    OPERATION = 203
    MAGNITUDE = 204
    SIGN = 205
    ERASE = 206
    ERASE_AREA = 207
    ERASE_ASPECT = 208
    ERASE_LEFT = 209
    ERASE_TOP = 210


class Operation(IntEnum):
    """The operations of TrivialAugment (Müller and Hutter, 2021), the geometric ones first."""

    IDENTITY = 0
    SHEAR_X = 1
    SHEAR_Y = 2
    TRANSLATE_X = 3
    TRANSLATE_Y = 4
    ROTATE = 5
    BRIGHTNESS = 6
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10
    SOLARIZE = 11
    AUTO_CONTRAST = 12
    EQUALIZE = 13


class Affine:
    """Maps from the output square to the input square, both with corners at -1 and 1.

    ``x_in = a x + b y + c`` and ``y_in = d x + e y + f``, each coefficient ``[B]``, float64.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, e: np.ndarray, f: np.ndarray):
        self.rows = (a, b, c, d, e, f)

    def after(self, first: Affine) -> Affine:
        """The map that applies ``first`` to the output's coordinates, then this one."""
        a, b, c, d, e, f = self.rows
        p, q, r, s, t, u = first.rows
        return Affine(a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f)

    def sample(self, images: Tensor, size: int) -> Tensor:
        """The images ``[B, 3, S, S]`` resampled to ``[B, 3, size, size]`` float32, in one pass."""
        # A crop keeps at most all of an image that is 8/7 of the output: 1.14 pixels into one need no
        # low-pass filter before bilinear sampling. The border is mirrored, not black.
        a, b, c, d, e, f = (torch.from_numpy(row).float().to(images.device).view(-1, 1, 1) for row in self.rows)
        steps = ((torch.arange(size, device=images.device, dtype=torch.float32) + 0.5) * (2 / size)) - 1
        x, y = steps.view(1, 1, -1), steps.view(1, -1, 1)
        grid = torch.stack((a * x + b * y + c, d * x + e * y + f), dim=-1)
        sampled = functional.grid_sample(
            images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False
        )
        return sampled.clamp_(0, 255)  # the four weights may add up to a hair more than 1


def random_crop(index: np.ndarray, options: AugmentationOptions, *, seed: int, epoch: int) -> Affine:
    """A random resized crop, mirrored or not: area ``crop_min_scale`` to 1, aspect 3/4 to 4/3.

    Draws that do not fit the image are repeated, as torchvision does; after ATTEMPTS the whole image is taken.
    """
    tries = [_box(index, options.crop_min_scale, attempt, seed=seed, epoch=epoch) for attempt in range(ATTEMPTS)]
    widths, heights = (np.stack(side) for side in zip(*tries, strict=True))
    fits = (widths <= 1) & (heights <= 1)
    first = fits.argmax(axis=0)
    found, every = fits.any(axis=0), np.arange(len(index))
    width = np.where(found, widths[first, every], 1.0)
    height = np.where(found, heights[first, every], 1.0)
    left = uniform(seed, epoch, index, Draw.LEFT) * (1 - width)
    top = uniform(seed, epoch, index, Draw.TOP) * (1 - height)
    mirrored = uniform(seed, epoch, index, Draw.MIRROR) < (0.5 if options.flip else 0.0)
    none = np.zeros(len(index))
    return Affine(np.where(mirrored, -width, width), none, 2 * left + width - 1, none, height, 2 * top + height - 1)


def operations(index: np.ndarray, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each sample's operation, magnitude (0 to BINS - 1) and sign, ``[B]`` each."""
    operation = (uniform(seed, epoch, index, Draw.OPERATION) * len(Operation)).astype(np.int64)
    magnitude = (uniform(seed, epoch, index, Draw.MAGNITUDE) * BINS).astype(np.int64)
    sign = np.where(uniform(seed, epoch, index, Draw.SIGN) < 0.5, -1.0, 1.0)
    return operation, magnitude, sign


def distortion(operation: np.ndarray, magnitude: np.ndarray, sign: np.ndarray) -> Affine:
    """The affine map of the geometric operations; the identity for all others."""
    zero, one = np.zeros(len(operation)), np.ones(len(operation))

    def of(kind: Operation, table: np.ndarray, otherwise: np.ndarray, signs: np.ndarray = sign) -> np.ndarray:
        return np.where(operation == kind, table[magnitude] * signs, otherwise)

    cosine = of(Operation.ROTATE, np.cos(_ANGLES), one, one)
    sine = of(Operation.ROTATE, np.sin(_ANGLES), zero)
    return Affine(
        cosine, of(Operation.SHEAR_X, _SHEARS, -sine), of(Operation.TRANSLATE_X, 2 * _SHIFTS, zero),
        of(Operation.SHEAR_Y, _SHEARS, sine), cosine, of(Operation.TRANSLATE_Y, 2 * _SHIFTS, zero),
    )  # fmt: skip


def _box(index: np.ndarray, least: float, attempt: int, *, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of one attempt, as shares of the image's side."""
    area = least + (1 - least) * uniform(seed, epoch, index, Draw.AREA + attempt)
    aspect = _ASPECT_TABLE[(uniform(seed, epoch, index, Draw.ASPECT + attempt) * _ASPECTS).astype(np.int64)]
    return np.sqrt(area * aspect), np.sqrt(area / aspect)
