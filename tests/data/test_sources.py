from __future__ import annotations

import struct
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.errors import InputError

SPLIT_FOLDERS = {f"{split}/{label}": 4 for split in ("train", "val", "test") for label in ("cat", "dog")}


def counts(store) -> dict[str, int]:
    return {split: len(index) for split, index in store.splits.items()}


def per_class(store, split: str) -> dict[str, int]:
    numbers = np.bincount(store.labels[store.splits[split]], minlength=len(store.classes))
    return dict(zip(store.classes, numbers.tolist(), strict=True))


def test_digits_are_split_60_20_20_in_every_class(prepared):
    store = prepared("digits")
    assert store.name == "digits"
    assert store.classes == tuple("0123456789")
    assert counts(store) == {"train": 1079, "val": 359, "test": 359}
    assert all(34 <= number <= 37 for number in per_class(store, "test").values())
    assert np.array_equal(store.images[:, 0], store.images[:, 2])
    assert (store.warnings, store.bad) == ((), ())


def test_digits_have_the_same_digest_wherever_they_are_prepared(prepared):
    assert prepared("digits").digest == "391313ee7384ec9bf836cb5b1573992a"
    assert prepared("digits", split_seed=1).digest != prepared("digits").digest


def test_class_folders_are_split_by_the_seed(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 50, "dog": 10, "\u00fcber bird": 5})
    store = prepared(root)
    assert per_class(store, "val") == per_class(store, "test") == {"cat": 10, "dog": 2, "\u00fcber bird": 1}
    assert counts(store)["train"] == 39
    assert np.array_equal(np.sort(np.concatenate(list(store.splits.values()))), np.arange(65))
    other = prepared(root, split_seed=1)
    assert counts(other) == counts(store)
    assert not np.array_equal(other.splits["test"], store.splits["test"])


def test_copies_of_one_picture_stay_in_one_split(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 12, "dog": 12})
    for path in sorted((root / "cat").iterdir()):
        (root / "cat" / f"copy-{path.name}").write_bytes(path.read_bytes())
    store = prepared(root)
    assert store.warnings == ()
    split_of = {store.path_of(i): split for split, index in store.splits.items() for i in index}
    assert all(split_of[f"cat/copy-{path.split('/')[1]}"] == split for path, split in split_of.items()
               if path.startswith("cat/0"))  # fmt: skip


def test_missing_val_is_cut_from_train_and_said(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", {"train/cat": 10, "train/dog": 20, "test/cat": 3, "test/dog": 3}))
    assert store.warnings == ("There is no val split: 20% of train is cut for it (seed 0).",)
    assert per_class(store, "val") == {"cat": 2, "dog": 4}
    assert per_class(store, "test") == {"cat": 3, "dog": 3}
    assert all(store.path_of(index).startswith("train/") for index in store.splits["val"])


def test_missing_val_and_test_are_cut_from_train_and_said(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", {"train/cat": 10, "train/dog": 10}))
    assert store.warnings == ("There is no val and test split: 20% of train is cut for each (seed 0).",)
    assert counts(store) == {"train": 12, "val": 4, "test": 4}


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_names_of_val_are_understood(name: str, tmp_path: Path, fill, prepared):
    named = {folder.replace("val/", f"{name}/"): count for folder, count in SPLIT_FOLDERS.items()}
    store = prepared(fill(tmp_path / "pets", named))
    assert counts(store) == {"train": 8, "val": 8, "test": 8}
    assert store.warnings == ()


def test_class_called_train_is_a_class(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "vehicles", {"train": 5, "bus": 5, "ship": 5}))
    assert store.classes == ("bus", "ship", "train")


def test_one_folder_around_everything_is_passed_through(tmp_path: Path, fill, prepared):
    inner = prepared(fill(tmp_path / "outer/inner", SPLIT_FOLDERS))
    outer = prepared(tmp_path / "outer")
    assert outer.digest == inner.digest
    assert outer.path_of(0) == "test/cat/0016.png"


def test_pictures_in_folders_within_a_class_belong_to_it(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", {"cat/indoors": 5, "cat/outdoors/garden": 5, "dog": 5}))
    assert store.classes == ("cat", "dog")
    assert len(store.labels) == 15


def refusal(prepared, data: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        prepared(data, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unknown_data_lists_what_there_is(prepared):
    assert "digits, cifar10, cifar100, fashionmnist, imagenette" in refusal(prepared, "no/such\nplace")


def test_empty_class_is_named(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/empty bird").mkdir()
    assert "'empty bird' has no images" in refusal(prepared, root)


def test_class_whose_files_are_all_bad_is_named(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    (root / "bird").mkdir()
    (root / "bird/one.png").write_bytes(b"")
    assert "'bird' has no image that can be read" in refusal(prepared, root, max_bad=1)


def test_single_class_is_refused(tmp_path: Path, fill, prepared):
    assert "one class only, 'cat'" in refusal(prepared, fill(tmp_path / "pets", {"cat": 5}))


def test_folder_without_class_folders_is_refused(tmp_path: Path, photo, prepared):
    (tmp_path / "pets").mkdir()
    photo(0).save(tmp_path / "pets/one.png")
    assert "no class folders" in refusal(prepared, tmp_path / "pets")


def test_split_folders_without_class_folders_are_refused(tmp_path: Path, fill, prepared):
    assert "hold no class folders" in refusal(prepared, fill(tmp_path / "pets", {"train": 3, "test": 3}))


def test_test_without_train_is_refused(tmp_path: Path, fill, prepared):
    assert "no 'train' folder" in refusal(
        prepared, fill(tmp_path / "pets", {"test/cat": 3, "test/dog": 3, "val/cat": 1})
    )


def test_two_names_for_one_split_are_refused(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {**SPLIT_FOLDERS, "valid/cat": 1})
    assert "'val', 'valid' both mean the val split" in refusal(prepared, root)


def test_class_without_training_images_is_refused(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {**SPLIT_FOLDERS, "test/bird": 3})
    assert "'bird' has no training images" in refusal(prepared, root)


def test_class_missing_in_val_is_a_warning(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", {**SPLIT_FOLDERS, "train/bird": 3, "test/bird": 3}))
    assert store.warnings == ("Class 'bird' has no images in the val split.",)


def test_unknown_folders_and_loose_pictures_are_warnings_each_time(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {**SPLIT_FOLDERS, "extra/cat": 2, "train": 1}, first=50)
    (root / "README.md").write_text("words")
    for _ in range(2):
        first, second = prepared(root).warnings
        assert "'extra' beside train, val and test" in first
        assert "1 images lie outside any class folder and are left out: 'train/0076.png'" in second


def test_same_picture_in_two_splits_and_classes_is_named(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "val/cat/leak.png").write_bytes((root / "train/cat/0000.png").read_bytes())
    (root / "train/dog/torn.png").write_bytes((root / "train/cat/0001.png").read_bytes())
    splits, classes = prepared(root).warnings
    assert splits == (
        "The same picture is in two splits, 1 times: 'train/cat/0000.png' (train) = 'val/cat/leak.png' (val)."
    )
    assert classes == "The same picture is in two classes, 1 times: 'train/cat/0001.png' = 'train/dog/torn.png'."


@pytest.mark.fault("a link that leads out of the data folder", "refused by name")
def test_link_out_of_the_folder_is_refused_by_name(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (tmp_path / "secret.png").write_bytes((root / "train/cat/0000.png").read_bytes())
    (root / "train/cat/link.png").symlink_to(tmp_path / "secret.png")
    assert "'train/cat/link.png' leads out of the folder" in refusal(prepared, root)


def test_linked_folder_out_of_the_folder_is_refused_by_name(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    fill(tmp_path / "pets2", {"bird": 1})  # its path begins like that of the root
    (root / "train/bird").symlink_to(tmp_path / "pets2/bird")
    assert "'train/bird' leads out of the folder" in refusal(prepared, root)


def test_link_inside_the_folder_is_followed(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/link.png").symlink_to(root / "train/cat/0000.png")
    assert len(prepared(root).labels) == 25


def test_link_to_itself_is_a_bad_file(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/self.png").symlink_to(root / "train/cat/self.png")
    assert [bad.reason for bad in prepared(root, max_bad=1).bad] == ["a link to nothing"]


@pytest.mark.fault("links that lead in a circle", "refused")
def test_link_that_leads_round_in_a_circle_is_refused(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/again").symlink_to(root / "train")
    assert "leads back" in refusal(prepared, root)


@pytest.mark.parametrize("name", ["cifar10", "fashionmnist", "imagenette"])
def test_download_without_a_network_says_so(name: str, prepared, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)
    message = refusal(prepared, name)
    assert f"The data set {name} " in message
    assert "connect to the network once" in message


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    )


def test_fashionmnist_is_read_from_its_own_files(home: Path, prepared, capsys):
    raw, rng = home / "downloads/FashionMNIST/raw", np.random.default_rng(0)
    for name, count in (("train", 200), ("t10k", 50)):
        write_idx(raw / f"{name}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{name}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    store = prepared("fashionmnist")
    assert counts(store) == {"train": 180, "val": 20, "test": 50}
    assert "T-shirt/top" in store.classes
    assert list(store.classes) == sorted(store.classes)
    place = int(np.flatnonzero([store.path_of(i) == "test/00003" for i in range(250)])[0])
    assert store.classes[store.labels[place]] == "Dress"
    assert store.warnings == ("There is no val split: 10% of train is cut for it (seed 0).",)
    assert capsys.readouterr().out == ""


def test_imagenette_has_readable_classes_and_its_val_is_for_testing(home: Path, photo, prepared):
    root = home / "downloads/imagenette2-320"
    numbers = iter(range(100))
    for split, count in (("train", 10), ("val", 3)):
        for ident in ("n01440764", "n02102040"):
            (root / split / ident).mkdir(parents=True)
            for number in range(count):
                photo(next(numbers)).save(root / split / ident / f"{ident}_{number}.JPEG", "JPEG")
    store = prepared("imagenette")
    assert store.classes == ("English springer", "tench")
    assert counts(store) == {"train": 18, "val": 2, "test": 6}


def test_real_archives_are_prepared_whole(real_data: Path, prepared):
    clothing = prepared(real_data / "tiny_clothing.tar")
    assert counts(clothing) == {"train": 400, "val": 100, "test": 100}
    assert len(clothing.classes) == 10
    imagenette = prepared(real_data / "imagenette224.tar")
    assert counts(imagenette) == {"train": 2800, "val": 400, "test": 800}
    assert (imagenette.warnings, imagenette.bad, clothing.warnings) == ((), (), ())
    assert Image.fromarray(imagenette.images[0].transpose(1, 2, 0)).size == (19, 19)
