"""Image files as other programs write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
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


def tiff(
    pixels: np.ndarray, order: str = "<", photometric: int = 1, *, planes: bool = False, tags: dict | None = None
) -> bytes:
    """An uncompressed TIFF of integers ``[H, W]`` or ``[H, W, C]``.

    Parameters
    ----------
    order:
        ``<`` or ``>``: the lower or the upper byte of a number comes first.
    photometric:
        0 for gray whose 0 is white, 1 for gray, 2 for RGB, 3 for a palette, 5 for CMYK.
    planes:
        A channel after the other instead of a pixel after the other.
    tags:
        More 16-bit tags, each a list of numbers.
    """
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    separate = pixels.reshape(height, width, channels).transpose(2, 0, 1) if planes else pixels
    data = np.ascontiguousarray(separate).astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = 8 * pixels.dtype.itemsize
    short = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric], 277: [channels],
             278: [height], 284: [2 if planes else 1], 339: [2 if pixels.dtype.kind == "i" else 1] * channels,
             **(tags or {})}  # fmt: skip
    strips = channels if planes else 1
    entries = {tag: (3, values) for tag, values in short.items()}
    entries[273] = (4, [8 + place * len(data) // strips for place in range(strips)])
    entries[279] = (4, [len(data) // strips] * strips)
    start = 8 + len(data)
    table, beyond = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(content) > 4:
            offset = start + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += content
            content = struct.pack(f"{order}I", offset)
        table += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + data + struct.pack(f"{order}H", len(entries)) + table + bytes(4) + beyond


def png16(pixels: np.ndarray, significant: int | None = None, clear: list[int] | None = None) -> bytes:
    """A PNG of 16 bits a channel, ``[H, W]`` or ``[H, W, 2 to 4]``, with an sBIT and a tRNS chunk if given."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    rows = pixels.astype(">u2").reshape(height, -1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0))]
    if significant is not None:
        chunks.append((b"sBIT", bytes([significant] * channels)))
    if clear is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
             for name, content in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def portable(pixels: np.ndarray, largest: int, *, plain: bool = False) -> bytes:
    """A PGM ``[H, W]`` or PPM ``[H, W, 3]`` whose white is ``largest``; ``plain``: numbers as text."""
    height, width = pixels.shape[:2]
    kind = (3 if plain else 6) if pixels.ndim == 3 else (2 if plain else 5)
    body = " ".join(map(str, pixels.ravel().tolist())).encode() if plain else pixels.astype(">u2").tobytes()
    return b"P%d\n# a comment\n%d %d\n%d\n" % (kind, width, height, largest) + body
