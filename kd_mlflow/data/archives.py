"""A ``.tar`` of class folders, read where it lies: nothing is unpacked."""

from __future__ import annotations

import functools
import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from kd_mlflow.data.images import MAX_BYTES, too_many_bytes
from kd_mlflow.data.layout import MAX_DEPTH, Arrangement, Entry, arrange, is_clutter
from kd_mlflow.errors import InputError

SHOWN = 300


class TarSource:
    """The members of an uncompressed tar.

    ``arrangement`` raises InputError for what is no tar, compressed or cut, and for one with a member that is
    refused: an absolute path, ``..``, a link, a device, a sparse file.
    """

    held_out = 0.2

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem

    def stamp(self) -> str:
        """A hash of the archive's path, size and times."""
        status = self.path.stat()
        mark = (str(self.path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return hashlib.sha256(repr(mark).encode()).hexdigest()

    def arrangement(self) -> Arrangement:
        """Items, classes and warnings."""
        return self._arranged

    def read(self, place: int) -> bytes:
        """The bytes of a member."""
        entry = self._arranged.items[place].entry
        with self.path.open("rb") as archive:
            archive.seek(entry.offset)
            return archive.read(entry.size)

    @functools.cached_property
    def _arranged(self) -> Arrangement:
        latest: dict[str, Entry] = {}
        folders: set[str] = set()
        for member in self._members():
            parts = self._checked(member)
            if not parts or any(is_clutter(part) for part in parts):
                continue
            parents = parts if member.isdir() else parts[:-1]
            folders.update("/".join(parents[:depth]) for depth in range(1, len(parents) + 1))
            if not member.isdir():
                problem = too_many_bytes(member.size) if member.size > MAX_BYTES else ""
                name = "/".join(parts)
                # A name that comes twice means the later one, as it does to tar.
                latest[name] = Entry(name, member.size, problem, member.offset_data)
        return arrange(latest.values(), folders, f"The archive {str(self.path)!r}")

    def _members(self) -> Iterator[tarfile.TarInfo]:
        try:
            size = self.path.stat().st_size
            with self.path.open("rb") as file, tarfile.open(fileobj=_Bounded(file, size), mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # it keeps every member it has seen otherwise
                    if member.isreg() and not 0 <= member.size <= size - member.offset_data:
                        raise tarfile.ReadError("unexpected end of data")
                    if archive.offset <= member.offset:
                        raise tarfile.ReadError("a header leads back")
                    yield member
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # a forged header leads the reader to any of them
            if _is_compressed(self.path):
                raise InputError(f"{str(self.path)!r} is compressed; unpack it and name the folder, or make it a plain "
                                 ".tar.") from None  # fmt: skip
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{str(self.path)!r} is not a complete .tar ({reason}); make or fetch it again.") from None

    def _checked(self, member: tarfile.TarInfo) -> tuple[str, ...]:
        """The parts of a member's path.

        Raises
        ------
        InputError
            A member that could reach outside the archive, or that is no plain file or folder.
        """
        path = PurePosixPath(member.name)
        wrong = ""
        if path.is_absolute():
            wrong = "has an absolute path"
        elif ".." in path.parts:
            wrong = "has '..' in its path"
        elif member.issym() or member.islnk():
            wrong = f"is a link to {member.linkname!r}"
        elif not (member.isreg() or member.isdir()):
            wrong = "is neither a file nor a folder"
        elif member.issparse():
            wrong = "is a sparse file"
        elif len(path.parts) > MAX_DEPTH:
            wrong = f"lies more than {MAX_DEPTH} folders deep"
        if wrong:
            where = f"The member {member.name[:SHOWN]!r} of {str(self.path)!r}"
            raise InputError(f"{where} {wrong}; make the archive again without it.")
        return path.parts


class _Bounded:
    """A file from which no more is asked than it has: a header may claim any size, and memory is taken for it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size

    def read(self, count: int) -> bytes:
        return self.file.read(max(0, min(count, self.size - self.file.tell())))

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
