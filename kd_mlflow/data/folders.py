"""A folder of class folders."""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from kd_mlflow.data.clutter import clutter_label, is_clutter, left_out
from kd_mlflow.data.images import MAX_BYTES, opened_path, read_file, read_head, too_many_bytes
from kd_mlflow.data.layout import MAX_DEPTH, Arrangement, Entry, arrange
from kd_mlflow.errors import InputError


class FolderSource:
    """The files below a folder; links are followed as long as they stay inside it, or everywhere if that is allowed.

    ``stamp``, ``files`` and ``arrangement`` raise InputError for a link that leaves the folder without leave, for one
    that leads back to a folder above it, and for a folder that cannot be listed.
    """

    held_out = 0.2

    def __init__(self, root: Path, name: str = "", *, follow_links: bool = False) -> None:
        self.root = root
        self.name = name or root.name or "data"
        self.what = f"The folder {str(root)!r}"
        self.follow_links = follow_links
        self._clutter: Counter[str] | None = None

    def stamp(self) -> str:
        """A hash of all paths, sizes and times; of a link's target, where it leads to one."""
        marks = hashlib.sha256(os.fsencode(self.root))
        for path, status in self._listed():
            mark = None
            if status is not None:
                mark = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_mode)
            marks.update(repr((path, mark)).encode())
        return marks.hexdigest()

    def files(self) -> list[Entry]:
        """Every file that is not clutter, in the order of the names."""
        return [_entry(path, status) for path, status in self._listed() if status is not None]

    def clutter_note(self) -> str | None:
        """What of other programs was left out when the folder was last listed; None if it was not."""
        return None if self._clutter is None else left_out(self.what, self._clutter)

    def arrangement(self) -> Arrangement:
        """Items, classes and warnings."""
        return self._arranged

    def read(self, place: int) -> bytes:
        """The bytes of an item's file, which may have become another one since it was listed."""
        path = self._arranged.items[place].entry.path
        return read_file(f"{self.root}/{path}", lambda real: self._check_opened(real, path))

    def head(self, index: int) -> bytes:
        """The first bytes of an item's file; none if it cannot be read."""
        path = self._arranged.items[index].entry.path
        return read_head(f"{self.root}/{path}", lambda real: self._check_opened(real, path))

    @functools.cached_property
    def _arranged(self) -> Arrangement:
        entries: list[Entry] = []
        folders: set[str] = set()
        for path, status in self._listed():
            if status is None:
                folders.add(path)
            else:
                entries.append(_entry(path, status))
        return arrange(entries, folders, self.what)

    def _listed(self) -> Iterator[tuple[str, os.stat_result | None]]:
        """Every folder (with None) and file, in the order of their names; counts what is left out."""
        self._clutter = Counter()
        return self._walk("", (os.path.realpath(self.root),))

    def _walk(self, below: str, above: tuple[str, ...]) -> Iterator[tuple[str, os.stat_result | None]]:
        """Every folder (with None) and file below a folder, in the order of their names."""
        try:
            with os.scandir(self.root / below) as found:
                listed = sorted(found, key=lambda one: one.name)
        except OSError as error:
            raise InputError(f"The folder {str(self.root / below)!r} cannot be listed: {error.strerror}.") from None
        for one in listed:
            if is_clutter(one.name):
                self._clutter[clutter_label(one.name)] += 1
                continue
            path = f"{below}/{one.name}" if below else one.name
            if path.count("/") >= MAX_DEPTH:
                raise InputError(f"{path!r} in {str(self.root)!r} lies more than {MAX_DEPTH} folders deep; move it up.")
            real = self._real(Path(one.path), path) if one.is_symlink() else one.path
            if _is_folder(one):
                target = os.path.realpath(one.path)
                if any(os.path.commonpath((target, folder)) == target for folder in above):
                    where = f"The link {path!r} in {str(self.root)!r}"
                    raise InputError(f"{where} leads back to a folder above it; remove it.")
                yield path, None
                yield from self._walk(path, (*above, target))
                continue
            try:
                yield path, os.stat(real)
            except OSError:
                yield path, os.stat(one.path, follow_symlinks=False)

    def _real(self, one: Path, path: str) -> str:
        real = os.path.realpath(one)
        self._check_inside(real, os.path.realpath(self.root), path)
        return real

    def _check_opened(self, real: str, path: str) -> None:
        if not self.follow_links:
            self._check_inside(real, self._opened_root, path)

    def _check_inside(self, real: str, root: str, path: str) -> None:
        if not self.follow_links and not real.startswith(os.path.join(root, "")):
            raise InputError(f"The link {path!r} leads out of the folder {str(self.root)!r}; give --follow-links if "
                             "what it points to belongs to the data, or remove it.")  # fmt: skip

    @functools.cached_property
    def _opened_root(self) -> str:
        """The root as the system calls it, which on some disks is not how it was typed."""
        number = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return opened_path(number, self.root)
        finally:
            os.close(number)


def _is_folder(one: os.DirEntry[str]) -> bool:
    try:
        return one.is_dir()
    except OSError:  # a link to itself
        return False


def _entry(path: str, status: os.stat_result) -> Entry:
    if stat.S_ISLNK(status.st_mode):
        return Entry(path, 0, "a link to nothing")
    if not stat.S_ISREG(status.st_mode):
        return Entry(path, 0, "not a regular file")
    problem = too_many_bytes(status.st_size) if status.st_size > MAX_BYTES else ""
    return Entry(path, status.st_size, problem)
