"""Paths to classes and splits: what the folders of a data set mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from kd_mlflow.errors import InputError

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
MAX_DEPTH = 64
_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")


class Entry(NamedTuple):
    """A file as it was found: its path below the root, size in bytes, and what is known to be wrong with it."""

    path: str
    size: int
    problem: str = ""
    offset: int = 0


class Item(NamedTuple):
    """A file of the data set; ``split`` is None where the layout does not say."""

    entry: Entry
    path: str
    label: str
    split: Split | None


@dataclass(frozen=True)
class Arrangement:
    """The files in the order of the manifest, all class names, and what a person should know."""

    items: list[Item]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name belongs to the operating system, not to the data."""
    return name.startswith(".") or name in _CLUTTER


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, quoted, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(repr(name) for name in listed[:most]) + more


def arrange(entries: Iterable[Entry], folders: set[str], what: str) -> Arrangement:
    """Read classes and splits off the paths of a data set.

    Parameters
    ----------
    entries:
        All files, with paths relative to the root, parts separated by ``/``.
    folders:
        All folders, so that an empty class is noticed.
    what:
        How messages name the data set.

    Raises
    ------
    InputError
        No class folders, an empty class, one class only, a split layout without ``train``.
    """
    files = sorted(entries)
    prefix = _top(files, folders)
    if prefix:
        folders = {folder[len(prefix) :] for folder in folders if folder.startswith(prefix)}
    tops = {folder.split("/")[0] for folder in folders if folder}
    splits = _split_folders(tops, folders, what)
    items, loose = _items(files, prefix, splits)
    warnings = []
    unknown = sorted(tops - splits.keys()) if splits else []
    if unknown:
        warnings.append(f"{what}: {some(unknown)} beside train, val and test: not a split, left out.")
    if loose:
        warnings.append(f"{what}: {len(loose)} images lie outside any class folder and are left out: {some(loose)}.")
    depth = 2 if splits else 1
    named = {folder for folder in folders if folder.count("/") == depth - 1 and folder}
    labels = {folder.split("/")[-1] for folder in named if not splits or folder.split("/")[0] in splits}
    classes = tuple(sorted(labels | {item.label for item in items}))
    _check_classes(classes, items, what)
    return Arrangement(items, classes, tuple(warnings))


def _top(files: list[Entry], folders: set[str]) -> str:
    """The path of the one folder that everything lies in, ending in ``/``, or nothing."""
    prefix = ""
    while True:
        below = [folder[len(prefix) :] for folder in folders if folder.startswith(prefix)]
        tops = {folder.split("/")[0] for folder in below if folder}
        loose = any(f.path.startswith(prefix) and "/" not in f.path[len(prefix) :] and is_image(f.path) for f in files)
        if len(tops) != 1 or loose:
            return prefix
        (only,) = tops
        if only.lower() in SPLIT_FOLDERS or not any("/" in folder for folder in below):
            return prefix
        prefix += f"{only}/"


def _split_folders(tops: set[str], folders: set[str], what: str) -> dict[str, Split]:
    """Which top folders are which split; empty if the top folders are the classes."""
    holders = {folder.split("/")[0] for folder in folders if "/" in folder}
    found = {top: SPLIT_FOLDERS[top.lower()] for top in tops if top.lower() in SPLIT_FOLDERS}
    # "train" may be a class, among cars and ships: a split holds folders, such a class holds images.
    if not found or not any(top in holders for top in found):
        if found and found.keys() == tops and len(set(found.values())) == len(found):
            raise InputError(f"{what}: {some(sorted(tops))} hold no class folders; put the images of each class into "
                             "a folder of its own.")  # fmt: skip
        return {}
    if "train" not in found.values():
        raise InputError(f"{what} has {some(sorted(found))} but no 'train' folder; add one.")
    for split in SPLITS:
        names = sorted(top for top, meant in found.items() if meant == split)
        if len(names) > 1:
            raise InputError(f"{what}: {some(names)} both mean the {split} split; keep one of them.")
    return found


def _items(files: list[Entry], prefix: str, splits: dict[str, Split]) -> tuple[list[Item], list[str]]:
    items: list[Item] = []
    loose: list[str] = []
    for entry in files:
        if not entry.path.startswith(prefix):
            continue
        path = entry.path[len(prefix) :]
        parts = path.split("/")
        if splits and parts[0] not in splits and len(parts) > 1:
            continue
        if len(parts) < (3 if splits else 2):
            if is_image(path):
                loose.append(path)
            continue
        label = parts[1] if splits else parts[0]
        items.append(Item(entry, path, label, splits.get(parts[0]) if splits else None))
    return items, loose


def _check_classes(classes: tuple[str, ...], items: list[Item], what: str) -> None:
    if not classes:
        raise InputError(f"{what} has no class folders; it must look like ROOT/CLASS/IMAGE or "
                         "ROOT/{train,val,test}/CLASS/IMAGE.")  # fmt: skip
    filled = {item.label for item in items}
    empty = [name for name in classes if name not in filled]
    if empty:
        raise InputError(f"{what}: class {some(empty)} has no images; add some or remove the folder.")
    if len(classes) == 1:
        raise InputError(f"{what} has one class only, {classes[0]!r}; a classifier needs at least two.")


def is_image(path: str) -> bool:
    """Whether a file's name says that it is an image."""
    return path.lower().endswith(_IMAGE_ENDINGS)
