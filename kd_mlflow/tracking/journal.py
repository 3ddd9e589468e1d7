"""An append-only file of records that survives being cut off anywhere.

A record is its length and its CRC-32, four bytes each in network order, and then JSON. Reading ends before the first
record that is not whole, so that what is read is always a prefix of what was written.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = struct.Struct("!II")
RECORD_BYTES = 2**24


class Journal:
    """A journal being written; one process at a time. What a crash left half written at its end is cut off."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.end = 0
        for self.end, _ in records(path):
            pass
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._file, self.end)

    def append(self, record: dict[str, Any]) -> int:
        """Write a record and have the disk confirm it; returns the place behind it.

        Raises
        ------
        OSError
            The disk does not take it; the records before are whole.
        """
        content = json.dumps(record, separators=(",", ":")).encode()
        if len(content) > RECORD_BYTES:
            raise ValueError(f"a record of {len(content)} bytes")
        whole = HEAD.pack(len(content), zlib.crc32(content)) + content
        written = 0
        while written < len(whole):
            written += os.pwrite(self._file, whole[written:], self.end + written)
        getattr(os, "fdatasync", os.fsync)(self._file)  # macOS has only the latter
        self.end += len(whole)
        return self.end

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def records(path: Path, start: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each whole record from a place on, with the place behind it; nothing for a file that is not there."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return
    with handle:
        handle.seek(start)
        place = start
        while len(head := handle.read(HEAD.size)) == HEAD.size:
            length, checksum = HEAD.unpack(head)
            if length > RECORD_BYTES:
                return
            content = handle.read(length)
            if len(content) < length or zlib.crc32(content) != checksum:
                return
            try:
                record = json.loads(content)
            except ValueError:
                return
            if not isinstance(record, dict):
                return
            place += HEAD.size + length
            yield place, record
