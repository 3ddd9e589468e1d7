"""Image files as other programs write them."""

from __future__ import annotations

import io

from PIL import Image

ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int = 6) -> Image.Exif:
    """EXIF data that tell a viewer to turn the picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def with_late_exif(jpeg: bytes, exif: Image.Exif) -> bytes:
    """The same file with EXIF data between the frame's header and the pixels."""
    content = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    scan = jpeg.index(b"\xff\xda")
    return jpeg[:scan] + b"\xff\xe1" + (len(content) + 2).to_bytes(2) + content + jpeg[scan:]
