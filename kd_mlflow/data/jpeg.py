"""Plain JPEG files by torchvision's decoder, which is quicker than Pillow's and gives the same pixels."""

from __future__ import annotations

import torch
from torchvision.io import decode_jpeg

_SCAN = 0xDA  # pixels begin; what stands before it, EXIF data behind the frame's header too, is what Pillow heeds
_THREE_OF_8_BITS = b"\x08\x03"
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive, Huffman-coded
# Tables, restart interval, comment, and the applications' segments that change neither colours nor the way up.
_PASSED_OVER = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)} - {0xE1, 0xEE})


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG with three components of 8 bits and nothing that asks for more than decoding.

    None for any other file: another format, grey or CMYK, with EXIF data or Adobe's marker, or with a damaged header.
    """
    if data[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == _SCAN:
            return size
        if marker in _FRAMES and size is None and data[at + 4 : at + 10 : 5] == _THREE_OF_8_BITS:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            size = (width, height) if width and height else None
        elif marker not in _PASSED_OVER or length < 2:
            return None
        at += 2 + length
    return None


def decode_plain(data: bytes) -> torch.Tensor | None:
    """Pixels ``[H, W, 3]`` uint8, or None where the decoder finds the file damaged."""
    try:
        # A copy, because PyTorch warns of memory that may not be written to.
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)).permute(1, 2, 0)
    except RuntimeError:
        return None
