"""What a file is, whatever it is called, and what is no part of a data set."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from kd_mlflow.data.clutter import is_clutter
from kd_mlflow.data.images import FORMATS, BadImage, decode
from kd_mlflow.data.kinds import HEAD_BYTES, is_picture, kind_of
from tests.pictures import encoded


def boxed(brand: bytes, *compatible: bytes) -> bytes:
    """The first box of a file of ISO base media boxes."""
    brands = brand + bytes(4) + b"".join(compatible)
    return (8 + len(brands)).to_bytes(4) + b"ftyp" + brands + b"\0\0\0\x10mdat" + bytes(range(100))


def zipped(first: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(first, "content")
    return buffer.getvalue()


def tagged_tiff(photo, **tags: tuple[int, object]) -> bytes:
    """A TIFF with these tags, such as the thumbnail that a camera's raw file begins with."""
    directory = ImageFileDirectory_v2()
    for tag, value in tags.values():
        directory[tag] = value
    return encoded(photo(0), "TIFF", tiffinfo=directory)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_read_is_told_by_its_first_bytes(kind: str, photo):
    data = encoded(photo(1), kind)
    assert kind_of(data[:HEAD_BYTES]).group == "image"
    assert decode(data, 8).pixels.shape == (3, 8, 8)


DISGUISED = {
    "HEIC": (boxed(b"heic", b"mif1", b"heic"), "a HEIC picture", "convert it to JPEG"),
    "HEIF of another maker": (boxed(b"mif1", b"heic", b"miaf"), "a HEIC picture", "convert it to JPEG"),
    "raw of Canon": (boxed(b"crx ", b"crx ", b"isom"), "raw file", "develop it"),
    "raw of Fuji": (b"FUJIFILMCCD-RAW 0201" + bytes(200), "raw file", "develop it"),
    "Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n",
        "LFS pointer",
        "git lfs pull",
    ),
    "git-annex": (b"/annex/objects/SHA256E-s1--1.jpg\n", "git-annex pointer", "git annex get"),
    "HTML": (b"\n<!DOCTYPE html>\n<html><title>404</title>", "an HTML page", "fetch it again"),
    "XHTML": (b'<?xml version="1.0"?>\n<!-- x --><html xmlns="http://www.w3.org/1999/xhtml">', "HTML page", "fetch"),
    "XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file", "fetch"),
    "JSON": (b'{"error": "not found"}', "a JSON file", "fetch"),
    "SVG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing", "PNG"),
    "SVG without a prolog": (b'<svg width="3"/>', "an SVG drawing", "PNG"),
    "PDF": (b"%PDF-1.7\n%\xe2\xe3", "a PDF document", "export"),
    "Photoshop": (b"8BPS\0\x01" + bytes(30), "a Photoshop document", "export"),
    "JPEG XL": (b"\xff\x0a" + bytes(range(40)), "a JPEG XL picture", "convert it"),
    "QuickTime": (boxed(b"qt  ", b"qt  "), "a video", "frames"),
    "MP4": (boxed(b"isom", b"iso2", b"mp41"), "a video", "frames"),
    "Matroska": (b"\x1a\x45\xdf\xa3" + bytes(range(40)), "a video", "frames"),
    "ZIP": (zipped("cat/1.jpg"), "a ZIP archive", "unpack it"),
    "RAR": (b"Rar!\x1a\x07\x01\x00" + bytes(range(20)), "a RAR archive", "unpack it"),
    "text": (b"hello, I am a readme", "a text file", "fetch"),
    "zeros": (bytes(5000), "a file of zeros", "fetch it again"),
}


@pytest.mark.fault("a file called .jpg that is something else", "the reason says what it is and the step that helps")
@pytest.mark.parametrize("content", DISGUISED)
def test_the_reason_says_what_a_file_called_jpg_is(content: str):
    data, name, step = DISGUISED[content]
    with pytest.raises(BadImage) as caught:
        decode(data, 8)
    assert caught.value.reason.startswith("not an image in a format that can be read, but ")
    assert name in caught.value.reason
    assert step in caught.value.reason


RAW = {
    "DNG": {"subfile": (254, 1), "version": (50706, b"\1\4\0\0")},
    "thumbnail of a larger picture": {"subfile": (254, 1), "make": (271, "NIKON"), "below": (330, 8)},
}


@pytest.mark.parametrize("kind", RAW)
def test_the_thumbnail_in_a_raw_file_is_not_taken_for_the_picture(kind: str, photo):
    with pytest.raises(BadImage, match="a camera's raw file"):
        decode(tagged_tiff(photo, **RAW[kind]), 8)
    assert decode(tagged_tiff(photo, make=(271, "NIKON")), 8).pixels.shape == (3, 8, 8)


def test_text_that_begins_like_a_picture_is_text():
    for text in (b"BMW is a make of cars", b"P1 comes first", b"BZh is no word", b"the moov is out"):
        assert kind_of(text).name == "a text file"
        assert not is_picture("notes", text)


def test_a_weights_file_and_an_office_document_are_no_mere_zip():
    assert kind_of(zipped("archive/data.pkl")).group == "weights"
    assert kind_of(zipped("[Content_Types].xml")).name == "an office document"


CLUTTER = [
    "@eaDir", "@EADIR", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot", ".@__thumb", "SYNOPHOTO_THUMB_M.jpg",
    "$RECYCLE.BIN", "$Recycle.Bin", "System Volume Information", "Thumbs.db", "THUMBS.DB", "ehthumbs.db", "desktop.ini",
    "Desktop.ini", "FOUND.000", "~$report.docx", "__MACOSX", ".DS_Store", "._0001.jpg", ".AppleDouble", ".Trashes",
    "Icon\r", "lost+found", ".Trash-1000", ".ipynb_checkpoints", ".thumbnails", "0001.jpg~", ".picasa.ini",
    "Picasa.ini", ".picasaoriginals", "Catalog Previews.lrdata", "__pycache__", "0001.jpg:Zone.Identifier", ".git",
]  # fmt: skip
CLASSES = ["trash", "recycled", "test", "#cat", "@nasa", "icon", "network", "System", "thumbs", "snapshot", "$5", "tmp"]


@pytest.mark.parametrize("name", CLUTTER)
def test_what_other_programs_keep_is_clutter(name: str):
    assert is_clutter(name)


@pytest.mark.parametrize("name", CLASSES)
def test_names_that_classes_have_are_no_clutter(name: str):
    assert not is_clutter(name)


SPLIT_FOLDERS = {f"{split}/{label}": 4 for split in ("train", "val", "test") for label in ("cat", "dog")}
LITTER = {
    "@eaDir/cat/x.png": 1, "train/@eaDir/y.png": 1, "train/cat/@eaDir/0000.png/SYNOPHOTO_THUMB_M.png": 1,
    "$RECYCLE.BIN/a.png": 1, "train/System Volume Information/b.png": 1, "val/dog/Thumbs.db": 1, "test/cat/._0.png": 1,
    "test/cat/._1.png": 1, "lost+found/c.png": 1,
}  # fmt: skip


def litter(root: Path, png) -> None:
    """Pictures that belong to other programs, at every depth."""
    for number, name in enumerate(LITTER):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(900 + number))


@pytest.mark.fault("folders and files of a NAS, a system, another program in the data", "left out, counted, said once")
@pytest.mark.parametrize("packed", [False, True])
def test_clutter_at_any_depth_is_left_out_and_said_once(packed: bool, tmp_path: Path, fill, pack, prepared, png):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    clean = prepared(root)
    litter(root, png)
    files = {f"pets/{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    data = pack(tmp_path / "pets.tar", files) if packed else root
    what = f"The archive '{data}'" if packed else f"The folder '{root}'"
    for _ in range(2):  # the second time from what was kept of the first
        store = prepared(data)
        assert store.digest == clean.digest
        assert store.warnings == (
            f"{what}: 9 files and folders of a system or another program left out: "
            "'@eaDir' (3), '._*' (2), '$RECYCLE.BIN' (1), 'System Volume Information' (1) and 2 more kinds.",
        )


def test_clutter_that_came_later_is_said_and_nothing_is_read_anew(tmp_path: Path, fill, prepared, png, monkeypatch):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    assert prepared(root).warnings == ()
    monkeypatch.setattr("kd_mlflow.data.store.survey", None)
    (root / "train/@eaDir").mkdir()
    (note,) = prepared(root).warnings
    assert "1 file or folder of a system or another program left out: '@eaDir' (1)." in note


def test_files_beside_the_pictures_do_not_count_as_bad(tmp_path: Path, fill, prepared, png):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    clean = prepared(root)
    names = ["0.json", "0.jpg.json", "0.xml", "0.txt", "0.MOV", "0.AAE", "0.xmp", "0.csv", "0.NEF", "LICENSE", "0.zip"]
    for label in ("cat", "dog"):
        for name in names:
            (root / "train" / label / name).write_bytes(b"not a picture")
    for label, first in (("cat", 0), ("dog", 4)):
        (root / f"train/{label}/0.NEF").rename(root / f"train/{label}/{first:04d}.NEF")
    store = prepared(root, max_bad=0)
    assert (store.digest, store.bad) == (clean.digest, ())
    (note,) = store.warnings
    assert "22 files in class folders are no pictures and are left out: '.json' (4), '.aae' (2), '.csv' (2)" in note


def test_what_claims_to_be_a_picture_counts_whatever_it_is_called(tmp_path: Path, fill, prepared, png):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    clean = prepared(root)
    (root / "train/cat/0002.png").rename(root / "train/cat/0002")
    (root / "train/cat/0003.png").rename(root / "train/cat/0003.txt")
    (root / "train/dog/phone.heic").write_bytes(boxed(b"heic", b"mif1"))
    (root / "train/dog/phone").write_bytes(boxed(b"heic", b"mif1"))
    (root / "train/dog/photo.jpg").write_bytes(b'{"not": "found"}')
    store = prepared(root, max_bad=0.2)
    assert len(store.labels) == len(clean.labels)
    assert {"train/cat/0002", "train/cat/0003.txt"} <= {store.path_of(index) for index in range(len(store.labels))}
    assert {bad.path: bad.reason.split(", but ")[1].split(" (")[0] for bad in store.bad} == {
        "train/dog/phone": "a HEIC picture",
        "train/dog/phone.heic": "a HEIC picture",
        "train/dog/photo.jpg": "a JSON file",
    }


def test_a_class_of_other_files_is_empty(tmp_path: Path, fill, refused, png):
    root = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    (root / "labels").mkdir()
    for number in range(3):
        (root / f"labels/{number}.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert "class 'labels' has no images, only other files ('.txt' (3)); add some or remove the folder" in refused(root)


def test_a_video_beside_the_pictures_is_not_read_whole(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    with (root / "cat/IMG_1.MOV").open("wb") as file:
        file.write(boxed(b"qt  "))
        file.truncate(2**29)  # more than is read of any file
    store = prepared(root, max_bad=0)
    assert store.bad == ()
    assert "'.mov' (1)" in store.warnings[0]


def test_pixels_are_told_apart_from_files(prepared):
    store = prepared("digits")
    assert np.bincount(store.labels).sum() == 1797
    assert Image.fromarray(store.images[0].transpose(1, 2, 0)).mode == "RGB"
