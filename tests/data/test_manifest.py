"""store.json of any content gives a description or DamagedStore; what was written is read as it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from kd_mlflow.data import manifest
from kd_mlflow.data.layout import SPLITS
from kd_mlflow.data.manifest import DamagedStore, FileMark, Meta, mark_file, read_meta, write_meta

SIDE = 2
NAMES = some.text(some.characters(), max_size=8)  # lone surrogates too: names of files may be any bytes
PLAIN = some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=5)
ANYTHING = some.recursive(
    PLAIN, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(NAMES, inner), max_leaves=6
)


def write_store(folder: Path, classes: list[str], bad: list[list[str]], count: int) -> Meta:
    (folder / manifest.IMAGES).write_bytes(bytes(count * 3 * SIDE**2))
    (folder / manifest.MANIFEST).write_bytes(b"{}\n" * count)
    np.save(folder / manifest.LABELS, np.arange(count, dtype=np.int64) % len(classes))
    np.save(folder / manifest.SPLIT_CODES, np.zeros(count, dtype=np.int8))
    np.save(folder / manifest.OFFSETS, np.arange(count + 1, dtype=np.int64) * 3)
    rows = {name: 3 * SIDE**2 if name == manifest.IMAGES else 0 for name in sorted(manifest.FILES)}
    marks = {name: mark_file(folder / name, row_size=size) for name, size in rows.items()}
    meta = Meta("key", "digest", classes, 2, SIDE, count, count, [0.5] * 3, [0.2] * 3, [], bad, marks)
    write_meta(folder, meta)
    return meta


def seal(folder: Path, content: dict) -> None:
    content = {**content, "seal": manifest._seal(content)}
    (folder / manifest.META).write_text(json.dumps(content), encoding="ascii")


@given(classes=some.lists(NAMES, min_size=1, max_size=4), bad=some.lists(some.lists(NAMES, min_size=2, max_size=2)))
def test_what_was_written_is_read_as_it_was(classes, bad):
    with TemporaryDirectory() as folder:
        meta = write_store(Path(folder), classes, bad, count=3)
        assert read_meta(Path(folder)) == meta


@pytest.mark.fault("a store.json of any content, even with the right seal", "its store, or it is taken as damaged")
@given(name=some.sampled_from(sorted(Meta.__dataclass_fields__)), value=ANYTHING)
def test_any_value_in_any_place_is_a_store_or_a_damaged_one(name, value):
    with TemporaryDirectory() as folder:
        content = asdict(write_store(Path(folder), ["a", "b"], [], count=3))
        seal(Path(folder), {**content, name: value})
        try:
            found = read_meta(Path(folder))
        except DamagedStore:
            return
        assert found.count == 3
        assert np.load(Path(folder) / manifest.LABELS).max() < len(found.classes)


@pytest.mark.fault("a sealed store.json with anything about a file", "its store, or it is taken as damaged")
@given(
    file=some.sampled_from(sorted(manifest.FILES)),
    name=some.sampled_from(sorted(FileMark.__dataclass_fields__)),
    value=ANYTHING | some.sampled_from([-1, 1.5, 2**60, 3 * SIDE**2]),
)
def test_any_value_about_a_file_is_a_store_or_a_damaged_one(file, name, value):
    with TemporaryDirectory() as folder:
        content = asdict(write_store(Path(folder), ["a", "b"], [], count=3))
        content["marks"][file][name] = value
        seal(Path(folder), content)
        for path in Path(folder).iterdir():
            os.utime(path, (1, 1))  # so that every file is read and hashed
        try:
            assert read_meta(Path(folder)).count == 3
        except DamagedStore:
            return


@given(some.binary(max_size=200))
def test_garbage_is_a_damaged_store(content):
    with TemporaryDirectory() as folder:
        write_store(Path(folder), ["a", "b"], [], count=1)
        (Path(folder) / manifest.META).write_bytes(content)
        with pytest.raises(DamagedStore):
            read_meta(Path(folder))


def test_a_description_nested_without_end_is_a_damaged_store(tmp_path):
    (tmp_path / manifest.META).write_text("[" * 100_000)
    with pytest.raises(DamagedStore):
        read_meta(tmp_path)


@pytest.mark.fault("a store that names other files, or more rows than it has", "it is not mapped into memory")
@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(count=10**12),
        lambda content: content["marks"].update({"../outside": {"size": 0, "sha256": "", "mtime_ns": 0}}),
        lambda content: content["marks"].pop("labels.npy"),
        lambda content: content.update(classes=["a"]),
        lambda content: content.update(mean=[0.5, 0.5]),
    ],
)
def test_figures_that_do_not_fit_the_files_are_refused(tmp_path, change):
    content = asdict(write_store(tmp_path, ["a", "b"], [], count=3))
    change(content)
    seal(tmp_path, content)
    with pytest.raises(DamagedStore):
        read_meta(tmp_path)


def test_labels_that_name_no_class_are_refused(tmp_path):
    for name, wrong in ((manifest.LABELS, 2), (manifest.SPLIT_CODES, len(SPLITS)), (manifest.LABELS, -1)):
        content = asdict(write_store(tmp_path, ["a", "b"], [], count=3))
        numbers = np.load(tmp_path / name)
        numbers[1] = wrong
        np.save(tmp_path / name, numbers)
        content["marks"][name] = asdict(mark_file(tmp_path / name))
        seal(tmp_path, content)
        with pytest.raises(DamagedStore, match=name):
            read_meta(tmp_path)
