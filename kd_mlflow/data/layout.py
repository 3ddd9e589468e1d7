"""Paths to classes and splits: what the folders of a data set mean."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from kd_mlflow.data.kinds import Kind, kind_named, may_be_picture, named_picture
from kd_mlflow.data.naming import (
    SPLITS,
    Split,
    same_letters,
    same_name,
    says_nothing,
    split_named,
    split_names,
    twin_of,
    twins_sentence,
)
from kd_mlflow.errors import InputError

__all__ = ["MAX_DEPTH", "SPLITS", "Arrangement", "BadFile", "Entry", "Item", "Split", "arrange", "some"]

MAX_DEPTH = 64


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
    """The files in the order of the manifest, all class names, and what a person should know.

    Attributes
    ----------
    what:
        How messages name the data set.
    """

    items: list[Item]
    classes: tuple[str, ...]
    warnings: tuple[str, ...]
    what: str = ""


@dataclass(frozen=True)
class BadFile:
    """A file that was left out, and why."""

    path: str
    reason: str


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few names, quoted, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(repr(name) for name in listed[:most]) + more


def arrange(entries: Iterable[Entry], folders: set[str], what: str) -> Arrangement:
    """Read classes and splits off the paths of a data set; names alone decide, no file is opened.

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
        No class folders, an empty class, one class only, a split layout without ``train``, class names of two splits
        that differ in case or Unicode form.
    """
    files = sorted(entries)
    tree = _Tree(files, folders)
    top = _top(tree)
    tops = tree.children[top]
    splits = _split_folders(tree, top, what)
    bases = _class_holders(tree, top, splits)
    homes = {_below(base, name): (name, split) for base, split in bases.items() for name in tree.children[base]}
    _check_twins(homes.values(), what)
    items, loose = _items(files, top, homes, tops - splits.keys() if splits else set())
    classes = tuple(sorted({label for label, _ in homes.values()}))
    _check_classes(classes, items, files, splits, what)
    warnings = [*_left_out(tree, top, tops - splits.keys(), what)] if splits else []
    if loose:
        warnings.append(f"{what}: {len(loose)} images lie outside any class folder and are left out: {some(loose)}.")
    warnings += _doubtful(tree, homes, what)
    return Arrangement(items, classes, tuple(warnings), what)


class _Tree:
    """The folders of a data set.

    Attributes
    ----------
    children:
        The names of the folders in each folder; the root is the empty path.
    pictures:
        How many files lie in each folder, not counting those below it, whose names leave it open that they are
        pictures.
    """

    def __init__(self, files: list[Entry], folders: set[str]) -> None:
        self.children: defaultdict[str, set[str]] = defaultdict(set)
        for folder in folders:
            parent, _, name = folder.rpartition("/")
            if name:
                self.children[parent].add(name)
        self.pictures = Counter(file.path.rpartition("/")[0] for file in files if may_be_picture(file.path))

    def pictures_below(self, folder: str) -> int:
        """How many lie in a folder and below it."""
        return sum(count for path, count in self.pictures.items() if path == folder or path.startswith(f"{folder}/"))

    def wrapped(self, folder: str) -> str:
        """The name of the one folder that a folder holds, which has no pictures beside it; else nothing."""
        names = self.children[folder]
        return next(iter(names)) if len(names) == 1 and not self.pictures[folder] else ""


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _top(tree: _Tree) -> str:
    """The innermost folder that all class folders lie in."""
    top = ""
    while len(tree.children[top]) == 1:
        (only,) = tree.children[top]
        named = split_named(only)
        if (named is not None and named.exact) or not tree.children[_below(top, only)]:
            break
        top = _below(top, only)
    return top


def _split_folders(tree: _Tree, top: str, what: str) -> dict[str, Split]:
    """Which of the topmost folders are which split; empty if they are the classes."""
    tops = tree.children[top]
    named = split_names(tops)
    unknown = {name for name in tops - named.keys() if tree.pictures_below(_below(top, name))} if named else set()
    # "train" may be a class, among cars and ships: a split holds folders, such a class holds images.
    holders = [name for name in named if tree.children[_below(top, name)]]
    if not holders:
        if named and not unknown and len({name.split for name in named.values()}) == len(named):
            raise InputError(f"{what}: {some(sorted(named))} hold no class folders; put the images of each class into "
                             "a folder of its own.")  # fmt: skip
        return {}
    if unknown and all(_is_class(tree, _below(top, name)) for name in named):
        return {}
    if "train" not in {name.split for name in named.values()}:
        images_beside = unknown and all(tree.pictures[_below(top, name)] for name in unknown)
        if images_beside or not any(name.exact for name in named.values()):
            return {}
        raise InputError(f"{what} has {some(sorted(named))} but no 'train' folder; add one.")
    chosen: dict[str, Split] = {}
    for split in SPLITS:
        names = sorted(name for name, meant in named.items() if meant.split == split)
        # A plain name goes before one with more words: beside "train", "train_images" is not a split.
        names = [name for name in names if named[name].exact] or names
        if len(names) > 1:
            raise InputError(f"{what}: {some(names)} both mean the {split} split; keep one of them.")
        chosen |= dict.fromkeys(names, split)
    return chosen


def _is_class(tree: _Tree, folder: str) -> bool:
    """Whether at least half of the pictures below a folder lie in it, as those of a class do."""
    return 2 * tree.pictures[folder] >= max(1, tree.pictures_below(folder))


def _class_holders(tree: _Tree, top: str, splits: dict[str, Split]) -> dict[str, Split | None]:
    """The folders whose folders are the classes, each with its split.

    An archive packs a split into a folder once more: ``seg_train/seg_train/CLASS``, ``train/images/CLASS``.
    """
    if not splits:
        return {top: None}
    bases: dict[str, Split | None] = {_below(top, name): split for name, split in splits.items()}
    while True:
        inner = {base: tree.wrapped(base) for base in bases}
        deeper = {base: name for base, name in inner.items() if name and tree.children[_below(base, name)]}
        # A single class makes no data set: folders that every split holds alone are not classes.
        every = len(deeper) == len(bases)
        moved: dict[str, Split | None] = {}
        for base, split in bases.items():
            name = inner[base]
            elsewhere = {label for beside in bases if beside != base for label in tree.children[beside]}
            again = name and _repeats(name, base, split) and (base in deeper or name not in elsewhere)
            moved[_below(base, name) if again or every else base] = split
        if moved.keys() == bases.keys():
            return bases
        bases = moved


def _repeats(name: str, base: str, split: Split | None) -> bool:
    """Whether a folder's name says no more than that of the split it lies in."""
    named = split_named(name)
    again = named is not None and named.split == split
    return again or says_nothing(name) or same_name(name, base.rpartition("/")[2])


def _items(
    files: list[Entry], top: str, homes: dict[str, tuple[str, Split | None]], unknown: set[str]
) -> tuple[list[Item], list[str]]:
    """The files in class folders, and the paths of the pictures that lie in none and in no ``unknown`` folder."""
    items: list[Item] = []
    loose: list[str] = []
    depths = sorted({home.count("/") + 1 for home in homes})
    start = f"{top}/" if top else ""
    for entry in files:
        inside = entry.path.startswith(start)
        path = entry.path[len(start) :] if inside else entry.path
        parts = entry.path.split("/")
        home = next((h for depth in depths if depth < len(parts) and (h := "/".join(parts[:depth])) in homes), None)
        if home is not None:
            items.append(Item(entry, path, *homes[home]))
        elif named_picture(path) and not (inside and "/" in path and path.split("/")[0] in unknown):
            loose.append(path)
    return items, loose


def _left_out(tree: _Tree, top: str, unknown: set[str], what: str) -> Iterable[str]:
    if unknown:
        count = sum(tree.pictures_below(_below(top, name)) for name in unknown)
        yield (f"{what}: {some(sorted(unknown))} beside train, val and test: not a split, left out "
               f"({count} {'picture' if count == 1 else 'pictures'}).")  # fmt: skip


def _doubtful(tree: _Tree, homes: dict[str, tuple[str, Split | None]], what: str) -> Iterable[str]:
    """Say what was taken for the classes where their folders hold folders only."""
    if all(tree.children[home] and not tree.pictures[home] for home in homes):
        labels = sorted({label for label, _ in homes.values()})
        inner = sorted({name for home in homes for name in tree.children[home]})
        yield (f"{what}: the classes are {some(labels)}, though these hold only folders ({some(inner)}), whose images "
               "count as theirs; if those are the classes or the splits, name or make a folder that holds them "
               "directly.")  # fmt: skip
    labels = sorted({label for label, _ in homes.values()})
    for label in labels:
        twin = twin_of(label, labels)
        if twin is not None and label < twin and same_letters(label, twin):
            yield f"{what}: the classes {twins_sentence(label, twin)}; merge their folders if they are one class."


def _check_twins(labels: Iterable[tuple[str, Split | None]], what: str) -> None:
    """Refuse a class that train calls by a name of other case or Unicode form."""
    of_split: defaultdict[Split | None, set[str]] = defaultdict(set)
    for label, split in labels:
        of_split[split].add(label)
    for split in (split for split in SPLITS if split != "train"):
        for label in sorted(of_split[split] - of_split["train"]):
            twin = twin_of(label, sorted(of_split["train"]))
            if twin is not None:
                raise InputError(f"{what}: the classes {twins_sentence(label, twin)}, the first in {split}, the second "
                                 "in train; give both folders one name.")  # fmt: skip


def _check_classes(
    classes: tuple[str, ...], items: list[Item], files: list[Entry], splits: dict[str, Split], what: str
) -> None:
    if not classes and splits:
        raise InputError(f"{what}: {some(sorted(splits))} hold no class folders; put the images of each class into "
                         "a folder of its own.")  # fmt: skip
    if not classes:
        raise InputError(f"{what} has no class folders; it must look like ROOT/CLASS/IMAGE or "
                         f"ROOT/{{train,val,test}}/CLASS/IMAGE{_instead(files)}.")  # fmt: skip
    filled = {item.label for item in items}
    empty = [name for name in classes if name not in filled]
    if empty:
        raise InputError(f"{what}: class {some(empty)} has no images; add some or remove the folder.")
    if len(classes) == 1:
        raise InputError(f"{what} has one class only, {classes[0]!r}; a classifier needs at least two.")


def _instead(files: list[Entry]) -> str:
    """What a folder without class folders holds, as the end of a sentence."""
    named: list[tuple[str, Kind | None]] = [(file.path, kind_named(file.path)) for file in files]
    packed = [(path, kind) for path, kind in named if kind is not None and kind.group == "archive"]
    if packed:
        path, kind = packed[0]
        return f", and it holds {path!r}: {kind.step} and name the folder that comes of it"
    pictures = [path for path, _ in named if named_picture(path)]
    return f", and its {len(pictures)} images lie in no folder" if pictures else ""
