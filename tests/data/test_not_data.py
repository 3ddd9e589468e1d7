"""What ``--data`` may be by mistake, and what a person is told."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.pictures import encoded

PICTURES = "put the images of each class into a folder"
UNPACK = "unpack it and name the folder, or make"


def zip_of(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1.jpg", "x")


FILES = {
    "photos.7z": (b"7z\xbc\xaf\x27\x1c\0\4" + bytes(60), "is a 7z archive; unpack it and name the folder"),
    "photos.rar": (b"Rar!\x1a\x07\x00" + bytes(60), "is a RAR archive; unpack it and name the folder"),
    "photos.tar.gz": (gzip.compress(b"x" * 600), f", a gzip file, is compressed; {UNPACK}"),
    "photos.tar.bz2": (bz2.compress(b"x" * 600), f", a bzip2 file, is compressed; {UNPACK}"),
    "photos.tar.xz": (lzma.compress(b"x" * 600), f", an xz file, is compressed; {UNPACK}"),
    "photos.tar.zst": (b"\x28\xb5\x2f\xfd" + bytes(60), f", a Zstandard file, is compressed; {UNPACK}"),
    "photos.iso": (bytes(40000) + b"\1CD001", "is a disk image; copy the files out of it and name the folder"),
    "labels.csv": (b"path,label\n1.jpg,cat\n", f"is a table (CSV), not a data set; {PICTURES}"),
    "annotations.json": (b'{"images": []}', f"is a JSON file, not a data set; {PICTURES}"),
    "list.txt": (b"cat/1.jpg 0\n", f"is a text file, not a data set; {PICTURES}"),
    "train.parquet": (b"PAR1" + bytes(range(60)), f"is a Parquet table, not a data set; {PICTURES}"),
    "x.npy": (b"\x93NUMPY\x01\0" + bytes(60), f"is a NumPy array, not a data set; {PICTURES}"),
    "clip.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isomiso2", f"is a video, not a data set; {PICTURES}"),
    "data_batch_1": (b"\x80\x02}q\x01" + bytes(60), f"is a Python pickle, not a data set; {PICTURES}"),
    "model.safetensors": (b"\x40" + bytes(7) + b'{"a":{}}', "is a file of network weights, not a data set; name"),
    "empty.tar": (b"", "is an empty file, not a .tar of images; fetch or copy it again"),
    "photos.tar": (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not a .tar of images; run"),
    "page.tar": (b"<!doctype html><html>", "is an HTML page, not a .tar of images; the download failed: fetch"),
    "words.tar": (b"words" * 500, "is not a complete .tar but a text file; make or fetch it again"),
}  # fmt: skip


@pytest.mark.fault("a file that is no .tar as --data", "what it is, and the step that helps")
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_tar_is_named_with_the_step_that_helps(name: str, tmp_path: Path, refused):
    content, sentence = FILES[name]
    (tmp_path / name).write_bytes(content)
    message = refused(tmp_path / name)
    assert message.startswith(repr(str(tmp_path / name)))
    assert sentence in message


def test_content_goes_before_the_name(tmp_path: Path, fill, pack, png, refused, prepared):
    zip_of(tmp_path / "photos.tar")
    assert "is a ZIP archive; unpack it and name the folder" in refused(tmp_path / "photos.tar")
    pack(tmp_path / "photos.zip", {f"{label}/{number}.png": png(10 * number + ord(label))
                                   for label in "ab" for number in range(5)})  # fmt: skip
    assert prepared(tmp_path / "photos.zip").classes == ("a", "b")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_single_image_is_named(kind: str, tmp_path: Path, photo, refused):
    (tmp_path / "cat.jpg").write_bytes(encoded(photo(0), kind))
    message = refused(tmp_path / "cat.jpg")
    assert f"is a {kind}, a single picture; name a folder of class folders" in message
    assert "kd-mlflow predict" in message


def test_a_folder_of_archives_or_of_pictures_alone_says_so(tmp_path: Path, photo, refused):
    (tmp_path / "packed").mkdir()
    zip_of(tmp_path / "packed/photos.zip")
    assert "and it holds 'photos.zip': unpack it and name the folder that comes of it" in refused(tmp_path / "packed")
    (tmp_path / "flat").mkdir()
    for number in range(3):
        photo(number).save(tmp_path / f"flat/{number}.png")
    assert "and its 3 images lie in no folder" in refused(tmp_path / "flat")


def test_a_relative_path_is_said_as_it_was_tried(tmp_path: Path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("no/photos")
    assert f"'{tmp_path}/no/photos' was tried" in message
    assert "a relative path starts in the working directory, which under `mlflow run` is the project's" in message
    assert "was tried" not in refused(tmp_path / "no/photos")


def test_an_address_is_no_path_and_its_password_is_not_said(refused):
    message = refused("https://me:secret@host/photos.zip")
    assert "--data is an address (https://…), not a path; fetch what it leads to" in message
    assert "secret" not in message


def test_a_table_of_numbers_beside_the_classes_is_left_alone(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    np.save(root / "features.npy", np.zeros(3))
    assert prepared(root).warnings == ()
