"""What the folders of archives and data sets mean, as people pack them."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from kd_mlflow.data.naming import split_named, split_names


def counts(store) -> dict[str, int]:
    return {split: len(index) for split, index in store.splits.items()}


def classes(store, split: str) -> set[str]:
    return {store.classes[label] for label in np.unique(store.labels[store.splits[split]])}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("seg_train", None), ("Train", "train"), ("TRAINING", "train"), ("Training Set", "train"),
        ("training_set", "train"), ("train_images", "train"), ("train-set", "train"), ("TrainingData", "train"),
        ("train2017", "train"), ("01_train", "train"), ("trainval", "train"), ("VALIDATION", "val"), ("valid", "val"),
        ("dev", "val"), ("eval", "val"), ("val_images", "val"), ("Test Set", "test"), ("test_set", "test"),
        ("imgs_test", "test"), ("hold-out", "test"), ("station", None), ("contest", None), ("trains", None),
        ("train_station", None), ("test tube", None), ("protest", None), ("latest", None),
    ],
)  # fmt: skip
def test_a_name_stands_for_a_split_or_for_none(name: str, split: str | None):
    named = split_named(name)
    assert (named.split if named else None) == split


def test_a_word_of_its_own_counts_where_two_names_differ_in_the_split_alone():
    assert {n: s.split for n, s in split_names({"seg_train", "seg_test", "seg_pred"}).items()} == {
        "seg_train": "train",
        "seg_test": "test",
    }
    assert split_names({"train_station", "bus_station", "crash test"}) == {}


LAYOUTS = {
    "a split in a folder of its own name": ("seg_train/seg_train", "seg_test/seg_test", None),
    "all three so": ("train/train", "test/test", "val/val"),
    "only train so": ("train/train", "test", "val"),
    "in a folder of images": ("train/images", "test/images", "valid/images"),
    "in a folder of the same name": ("train/pets", "test/pets", None),
    "archive in archive": ("Dataset/dataset/Training Set", "Dataset/dataset/Test Set", None),
    "thrice": ("archive/data/train/train/train", "archive/data/test/test/test", None),
    "with words": ("TrainingData", "TestingData", "ValidationData"),
    "in capitals": ("TRAIN", "TEST", "VALIDATION"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", [False, True])
def test_the_splits_of_an_archive_are_understood(layout: str, packed: bool, tmp_path: Path, fill, pack, prepared):
    train, test, val = LAYOUTS[layout]
    parts = {f"{train}/a": 10, f"{train}/b": 10, f"{test}/a": 3, f"{test}/b": 3}
    root = fill(tmp_path / "data", parts | ({f"{val}/a": 2, f"{val}/b": 2} if val else {}))
    files = {f"{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*.png"))}
    store = prepared(pack(tmp_path / "data.tar", files) if packed else root)
    assert store.classes == ("a", "b")
    assert counts(store) == ({"train": 20, "val": 4, "test": 6} if val else {"train": 16, "val": 4, "test": 6})


def test_pictures_without_labels_beside_the_splits_are_left_out_with_a_warning(tmp_path: Path, fill, prepared):
    root = fill(
        tmp_path / "scenes",
        {f"seg_{split}/seg_{split}/{label}": 5 for split in ("train", "test") for label in ("sea", "street")}
        | {"seg_pred/seg_pred": 4},
    )
    store = prepared(root)
    assert (store.classes, counts(store)) == (("sea", "street"), {"train": 8, "val": 2, "test": 10})
    assert any(
        "'seg_pred' beside train, val and test: not a split, left out (4 pictures)." in w for w in store.warnings
    )


@pytest.mark.parametrize("test", ["test", "test/test", "test/images"])
def test_a_test_split_without_labels_is_left_out_with_a_warning(test: str, tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", {"train/cat": 10, "train/dog": 10, test: 4}))
    assert (store.classes, counts(store)) == (("cat", "dog"), {"train": 12, "val": 4, "test": 4})
    assert all(store.path_of(index).startswith("train/") for index in store.splits["test"])
    assert any("4 images lie outside any class folder" in warning for warning in store.warnings)


@pytest.mark.parametrize(
    "folders",
    [
        {"train": 5, "bus": 5, "ship": 5},
        {"train": 5, "test": 5, "ship": 5},
        {"train": 5, "train/night": 2, "bus": 5, "ship": 5},
        {"test/blue": 2, "test": 5, "control": 5},
        {"test/blue": 5, "control": 5},
    ],
)
def test_a_class_called_like_a_split_stays_a_class(folders: dict[str, int], tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "data", folders))
    assert store.classes == tuple(sorted({folder.split("/")[0] for folder in folders}))
    assert len(store.labels) == sum(folders.values())


def test_a_class_called_like_a_split_within_splits_stays_a_class(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "data", {"train/train": 5, "train/bus": 5, "test/train": 2, "test/bus": 2}))
    assert (store.classes, classes(store, "test")) == (("bus", "train"), {"bus", "train"})
    one = prepared(fill(tmp_path / "more", {"train/test": 5, "train/bus": 5, "test/test": 2}))
    assert (one.classes, classes(one, "test")) == (("bus", "test"), {"test"})


def test_folders_of_folders_are_said_to_be_the_classes(tmp_path: Path, fill, prepared):
    (note,) = prepared(fill(tmp_path / "data", {"A/x": 5, "A/y": 5, "B/x": 5, "B/y": 5})).warnings
    assert "the classes are 'A', 'B', though these hold only folders ('x', 'y')" in note
    assert prepared(fill(tmp_path / "more", {"A/x": 5, "B": 5})).warnings == ()


def test_loose_pictures_beside_the_one_folder_do_not_hide_the_classes(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "data", {"pets/cat": 5, "pets/dog": 5, "": 1}))
    assert store.classes == ("cat", "dog")
    assert "1 images lie outside any class folder and are left out: '0010.png'" in store.warnings[0]


def test_splits_of_pictures_alone_are_refused_by_any_name(tmp_path: Path, fill, refused):
    for number, names in enumerate([("train_images", "test_images"), ("train/train", "test/test")]):
        root = fill(tmp_path / str(number), dict.fromkeys(names, 3))
        assert "hold no class folders; put the images of each class into a folder" in refused(root)


TWINS = {
    "case": ("Cat", "cat", "'cat' and 'Cat' differ only in upper and lower case"),
    "Unicode form": (
        unicodedata.normalize("NFC", "caf\u00e9"),
        unicodedata.normalize("NFD", "caf\u00e9"),
        "'cafe\\u0301' and 'caf\\xe9' differ only in Unicode form",
    ),
    "a blank": ("big cat", "big  cat", "'big  cat' and 'big cat' differ only in blanks"),
}


@pytest.mark.fault("class names that differ in case or Unicode form between splits", "the sentence names the twin")
@pytest.mark.parametrize("kind", TWINS)
@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_spelled_otherwise_in_another_split_is_named_with_its_twin(
    kind: str, split: str, tmp_path: Path, fill, refused
):
    ours, theirs, sentence = TWINS[kind]
    root = fill(tmp_path / "pets", {f"train/{ours}": 4, "train/dog": 4, f"{split}/{theirs}": 2, f"{split}/dog": 2})
    message = refused(root)
    assert sentence in message
    assert f"the first in {split}, the second in train; give both folders one name" in message


def test_letters_of_both_cases_are_classes(tmp_path: Path, fill, prepared):
    folders = {f"{split}/{letter}": 3 for split in ("train", "val", "test") for letter in ("a", "A", "b")}
    store = prepared(fill(tmp_path / "letters", folders))
    assert (store.classes, store.warnings) == (("A", "a", "b"), ())


def test_two_spellings_of_one_split_are_named(tmp_path: Path, fill, refused):
    root = fill(tmp_path / "pets", {"train/cat": 3, "train/dog": 3, "Val/cat": 1, "val/dog": 1})
    assert "'Val', 'val' both mean the val split" in refused(root)


def test_a_plain_name_of_a_split_goes_before_a_longer_one(tmp_path: Path, fill, prepared):
    store = prepared(
        fill(tmp_path / "pets", {"train/a": 5, "train/b": 5, "train_images/a": 2, "test/a": 2, "test/b": 2})
    )
    assert counts(store) == {"train": 8, "val": 2, "test": 4}
    assert "'train_images' beside train, val and test" in store.warnings[0]
