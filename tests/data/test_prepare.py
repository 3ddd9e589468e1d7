from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.config import DataOptions
from kd_mlflow.data.images import read_image
from kd_mlflow.data.store import prepare
from kd_mlflow.errors import InputError

SPLIT_FOLDERS = {f"{split}/{label}": 4 for split in ("train", "val", "test") for label in ("cat", "dog")}


def test_store_holds_every_picture_in_the_order_of_its_path(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    store = prepared(root)
    paths = sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))
    assert [store.path_of(index) for index in range(24)] == paths
    assert (store.name, store.classes, store.image_size, store.side) == ("pets", ("cat", "dog"), 16, 19)
    assert store.images.shape == (24, 3, 19, 19)
    for index, path in enumerate(paths):
        assert np.array_equal(store.images[index], read_image(root / path, 19))
        assert store.classes[store.labels[index]] == path.split("/")[1]
        assert index in store.splits[path.split("/")[0]]
    assert (store.bad, store.warnings) == ((), ())


@pytest.mark.parametrize("image_size", [16, 224, 300])
def test_mean_and_std_are_those_of_the_training_pixels(image_size: int, tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", SPLIT_FOLDERS), image_size=image_size)
    train = store.images[store.splits["train"]] / 255
    assert store.mean == pytest.approx(train.mean((0, 2, 3)), abs=1e-12)
    assert store.std == pytest.approx(train.std((0, 2, 3)), abs=1e-12)


def test_images_cannot_be_written_to(tmp_path: Path, fill, prepared):
    store = prepared(fill(tmp_path / "pets", SPLIT_FOLDERS))
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 0


def test_manifest_tells_path_class_split_size_and_digest(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/broken.png").write_bytes(b"")
    store = prepared(root, max_bad=0.5)
    lines = [json.loads(line) for line in (store.path / "manifest.jsonl").read_text().splitlines()]
    assert lines[0]["path"] == "test/cat/0016.png"
    assert {name: lines[0][name] for name in ("class", "split", "width", "height")} == {
        "class": "cat",
        "split": "test",
        "width": 24,
        "height": 20,
    }
    assert len(lines[0]["sha256"]) == 64
    assert lines[-1] == {"path": "train/cat/broken.png", "bad": "the file is empty"}


def test_second_preparation_decodes_nothing_and_gives_the_same(tmp_path: Path, fill, home: Path):
    options = DataOptions(data=str(fill(tmp_path / "pets", SPLIT_FOLDERS)), image_size=16)
    calls: list[tuple[int, int]] = []
    first = prepare(options, home, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 24) for done in range(1, 25)]
    again = prepare(options, home, lambda done, total: calls.append((done, total)))
    assert len(calls) == 24
    assert (again.path, again.digest, again.mean, again.std) == (first.path, first.digest, first.mean, first.std)
    assert all(np.array_equal(again.splits[split], first.splits[split]) for split in first.splits)


def test_copy_of_the_folder_finds_the_same_store_under_its_own_name(tmp_path: Path, fill, prepared):
    first = prepared(fill(tmp_path / "pets", SPLIT_FOLDERS))
    second = prepared(fill(tmp_path / "copied", SPLIT_FOLDERS))
    assert second.path == first.path
    assert second.digest == first.digest
    assert (first.name, second.name) == ("pets", "copied")


def test_digest_does_not_depend_on_size_and_does_on_content_and_split(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    first = prepared(root)
    assert len(first.digest) == 32
    larger = prepared(root, image_size=32)
    assert larger.digest == first.digest
    assert larger.path != first.path
    (root / "val/cat/0008.png").rename(root / "train/cat/0008.png")
    moved = prepared(root)
    Image.new("RGB", (9, 9)).save(root / "val/cat/0009.png")
    changed = prepared(root)
    assert len({first.digest, moved.digest, changed.digest}) == 3


@pytest.mark.fault("an image is changed within the same size and time", "noticed: another store")
def test_file_changed_within_the_same_size_and_time_is_noticed(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    path = root / "train/cat/0000.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path, compress_level=0)
    first, status = prepared(root), path.stat()
    Image.new("RGB", (8, 8), (3, 2, 1)).save(path, compress_level=0)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert prepared(root).digest != first.digest


@pytest.mark.fault("a prepared store that was cut off or altered", "noticed, and built again")
@pytest.mark.parametrize(
    "name", ["images.u8", "manifest.jsonl", "labels.npy", "splits.npy", "offsets.npy", "store.json"]
)
@pytest.mark.parametrize("damage", ["cut", "altered", "removed"])
def test_damaged_store_is_built_again(name: str, damage: str, tmp_path: Path, fill, prepared, caplog):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    store = prepared(root)
    expected = np.array(store.images)
    path = store.path / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content[:-9] if damage == "cut" else content)
    with caplog.at_level(logging.WARNING):
        again = prepared(root)
    assert "is damaged" in caplog.text
    assert np.array_equal(again.images, expected)
    assert (again.digest, again.mean) == (store.digest, store.mean)


def test_store_whose_times_changed_is_checked_and_kept(tmp_path: Path, fill, prepared, caplog):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    store = prepared(root)
    inode = (store.path / "images.u8").stat().st_ino
    os.utime(store.path / "images.u8")
    assert (prepared(root).path / "images.u8").stat().st_ino == inode
    assert caplog.text == ""


def test_bad_files_are_named_with_their_reasons(tmp_path: Path, fill, prepared, png):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/empty.png").write_bytes(b"")
    (root / "train/cat/cut.png").write_bytes(png(99)[:300])
    (root / "train/dog/notes.png").write_text("not an image at all")
    (root / "train/dog/gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "train/dog/pipe.png")
    with (root / "train/dog/huge.png").open("wb") as file:
        file.truncate(2**29)
    store = prepared(root, max_bad=0.5)
    reasons = {bad.path: bad.reason for bad in store.bad}
    assert list(reasons) == sorted(reasons)
    assert reasons.pop("train/cat/cut.png")
    assert reasons == {
        "train/cat/empty.png": "the file is empty",
        "train/dog/gone.png": "a link to nothing",
        "train/dog/huge.png": "absurdly large: 512 MiB, the limit is 256 MiB",
        "train/dog/notes.png": "not an image in a format that can be read, but a text file (fetch the picture again)",
        "train/dog/pipe.png": "not a regular file",
    }
    assert len(store.labels) == 24


def test_too_many_bad_files_stop_with_the_first_few_named(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"1 of 25 files .* 0\.01 .*'train/cat/empty\.png': the file is empty"):
        prepared(root)
    assert len(prepared(root, max_bad=0.04).bad) == 1
    with pytest.raises(InputError, match="1 of 25"):
        prepared(root, max_bad=0.03)


def test_bad_file_changes_neither_digest_nor_splits(tmp_path: Path, fill, prepared):
    clean = prepared(fill(tmp_path / "clean", {"cat": 20, "dog": 20}))
    root = fill(tmp_path / "spoiled", {"cat": 20, "dog": 20})
    (root / "cat/zz.png").write_bytes(b"")
    assert prepared(root, max_bad=0.5).digest == clean.digest


@pytest.mark.fault("file names with newlines, quotes, unicode", "they are data and come back as they are")
def test_odd_names_survive(tmp_path: Path, fill, prepared, png):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    names = ["a\nb.png", 'it\'s "quoted".png', "\u732b \u00fc.png", "-rf.png", "back\\slash.png"]
    names.append(os.fsdecode(b"\xff.png"))
    for number, name in enumerate(names):
        (root / "train/cat" / name).write_bytes(png(100 + number))
    store = prepared(root)
    assert {f"train/cat/{name}" for name in names} <= {store.path_of(index) for index in range(len(store.labels))}


def test_clutter_of_the_operating_system_is_passed_over(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    for name in ("train/cat/.DS_Store", "train/cat/Thumbs.db", ".hidden", "__MACOSX/train/cat/._0000.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("clutter")
    store = prepared(root)
    assert (len(store.labels), store.bad) == (24, ())
    (note,) = store.warnings
    assert "4 files and folders of a system or another program left out: '.DS_Store' (1)" in note


@pytest.mark.fault("the disk is too small for the store", "said with figures before work begins")
def test_disk_that_is_too_small_is_named_before_work_begins(tmp_path: Path, fill, prepared, monkeypatch):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"24 images needs 0\.00 GB, but only 0\.00 GB are free"):
        prepared(root)


def test_home_that_cannot_be_made_is_named(tmp_path: Path, fill):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="KD_MLFLOW_HOME"):
        prepare(DataOptions(data=str(root), image_size=16), tmp_path / "file")


PREPARE = """
import sys
from pathlib import Path
from kd_mlflow.config import DataOptions
from kd_mlflow.data.store import prepare
decoded = []
store = prepare(DataOptions(data=sys.argv[1], image_size=64), Path(sys.argv[2]), lambda done, _: decoded.append(done))
print(store.path, store.digest, int(store.images.sum()), len(decoded))
"""


def start(data: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(data), str(home)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.fault("two commands prepare one data set at once", "one store, both right")
def test_two_processes_at_once_build_one_store(tmp_path: Path, fill, home: Path):
    root = fill(tmp_path / "pets", {**SPLIT_FOLDERS, "train/cat": 150, "train/dog": 150})
    both = [start(root, home) for _ in range(2)]
    answers = [process.communicate(timeout=120)[0].split() for process in both]
    assert answers[0][:3] == answers[1][:3]
    assert sorted(int(answer[3]) for answer in answers) == [0, 316]
    assert [path.name for path in (home / "stores").iterdir() if not path.name.startswith(".")].count("known") == 1
    assert len([path for path in (home / "stores").iterdir() if (path / "store.json").exists()]) == 1


@pytest.mark.fault("the disk is full while a store is built", "one sentence; nothing is left that looks like a store")
def test_a_full_disk_ends_a_build_with_a_sentence(tmp_path: Path, fill, home: Path):
    root = fill(tmp_path / "pets", {**SPLIT_FOLDERS, "train/cat": 150})
    # No file may grow beyond 1 MB: the system refuses what a full disk would.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))" + PREPARE
    command = [sys.executable, "-c", limited, str(root), str(home)]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    assert "InputError: The store in" in said
    assert "cannot be written" in said
    assert said.count("Traceback") == 1  # that of the sentence itself
    assert not list(home.glob("stores/*/store.json"))
    assert len(prepare(DataOptions(data=str(root), image_size=64), home).labels) > 150


@pytest.mark.fault("SIGKILL while a store is built", "nothing stands in the way of the next")
def test_killed_build_leaves_nothing_in_the_way(tmp_path: Path, fill, home: Path, photo):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    for number in range(40):
        photo(1000 + number, 900, 700).save(root / f"train/cat/large{number}.png")
    process = start(root, home)
    deadline = time.monotonic() + 60
    while not list(home.glob("stores/.build-*/images.u8")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(home.glob("stores/.build-*"))
    store = prepare(DataOptions(data=str(root), image_size=64), home)
    assert len(store.labels) == 64
    assert not list(home.glob("stores/.build-*"))
