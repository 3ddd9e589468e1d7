"""A ``.tar`` of class folders, read where it lies: nothing is unpacked."""

from __future__ import annotations

import functools
import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from kd_mlflow.data.clutter import clutter_label, is_clutter, left_out
from kd_mlflow.data.images import MAX_BYTES, read_head, too_many_bytes
from kd_mlflow.data.kinds import HEAD_BYTES, TAR, TEXT, ZEROS, Kind, kind_named, kind_of
from kd_mlflow.data.layout import MAX_DEPTH, Arrangement, Entry, arrange
from kd_mlflow.errors import InputError

SHOWN = 300


class TarSource:
    """The members of an uncompressed tar.

    ``arrangement`` raises InputError for what is no tar, compressed or cut, naming what it is, and for one with a
    member that is refused: an absolute path, ``..``, a link, a device, a sparse file.
    """

    held_out = 0.2

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.what = f"The archive {str(path)!r}"
        self._clutter: Counter[str] | None = None

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

    def head(self, index: int) -> bytes:
        """The first bytes of a member."""
        entry = self._arranged.items[index].entry
        with self.path.open("rb") as archive:
            archive.seek(entry.offset)
            return archive.read(min(entry.size, HEAD_BYTES))

    def clutter_note(self) -> str | None:
        """What of other programs is left out; None before the archive has been listed."""
        return None if self._clutter is None else left_out(self.what, self._clutter)

    @functools.cached_property
    def _arranged(self) -> Arrangement:
        latest: dict[str, Entry] = {}
        folders: set[str] = set()
        clutter: dict[str, str] = {}
        for member in self._members():
            parts = self._checked(member)
            depth = next((depth for depth, part in enumerate(parts, 1) if is_clutter(part)), 0)
            if depth:
                clutter["/".join(parts[:depth])] = clutter_label(parts[depth - 1])
            if not parts or depth:
                continue
            parents = parts if member.isdir() else parts[:-1]
            folders.update("/".join(parents[:length]) for length in range(1, len(parents) + 1))
            if not member.isdir():
                problem = too_many_bytes(member.size) if member.size > MAX_BYTES else ""
                name = "/".join(parts)
                # A name that comes twice means the later one, as it does to tar.
                latest[name] = Entry(name, member.size, problem, member.offset_data)
        if not (latest or folders or clutter):  # to tar, zeros are an archive of nothing: a disk image begins with them
            raise InputError(_no_tar(self.path, "it holds nothing"))
        self._clutter = Counter(clutter.values())
        return arrange(latest.values(), folders, self.what)

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
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(_no_tar(self.path, reason)) from None

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


def _no_tar(path: Path, reason: str) -> str:
    """What a file that is no tar is, and the step that helps."""
    kind, shown = _kind(path), repr(str(path))
    if kind is None or kind is TAR:
        return f"{shown} is not a complete .tar ({reason}); make or fetch it again."
    if kind.group == "compressed":
        return f"{shown}, {kind.name}, is compressed; unpack it and name the folder, or make it a plain .tar."
    if kind.group == "archive":
        return f"{shown} is {kind.name}; {kind.step} and name the folder, or make a plain .tar of it."
    if kind.group == "mistaken":
        return f"{shown} is {kind.name}, not a .tar of images; {kind.step}."
    if path.suffix.lower() == ".tar":
        return f"{shown} is not a complete .tar but {kind.name}; make or fetch it again."
    if kind.group == "weights":
        return f"{shown} is {kind.name}, not a data set; name it with --teacher or --student-weights."
    if kind.group in ("image", "picture"):
        return (f"{shown} is {kind.name}, a single picture; name a folder of class folders (ROOT/CLASS/IMAGE), or use "
                "`kd-mlflow predict MODEL_FOLDER IMAGE` to classify it.")  # fmt: skip
    return (f"{shown} is {kind.name}, not a data set; put the images of each class into a folder and name the folder "
            "above these (ROOT/CLASS/IMAGE), or a plain .tar of it.")  # fmt: skip


def _kind(path: Path) -> Kind | None:
    """What a file is: by its content, and where that is plain text or tells nothing, by its name."""
    kind, named = kind_of(read_head(path)), kind_named(path.name)
    vague = kind in (None, TEXT, ZEROS)
    return named if vague and named is not None and path.suffix.lower() != ".tar" else kind
