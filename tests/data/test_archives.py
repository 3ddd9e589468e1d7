from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from kd_mlflow.errors import InputError

SPLIT_FOLDERS = {f"{split}/{label}": 4 for split in ("train", "val", "test") for label in ("cat", "dog")}


def refusal(prepared, data: Path | str, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        prepared(data, **options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(root: Path, prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{path.relative_to(root)}": path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.mark.parametrize("prefix", ["", "pets/", "./", "./deep/pets/"])
def test_tar_gives_what_its_folder_gives(prefix: str, tmp_path: Path, fill, pack, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    folder = prepared(root)
    store = prepared(pack(tmp_path / "packed.tar", {f"{prefix}LICENSE": b"free", **files_of(root, prefix)}))
    assert store.name == "packed"
    assert store.digest == folder.digest
    assert np.array_equal(store.images, folder.images)


@pytest.mark.fault("a .tar with `../` or absolute members", "refused by name, nothing is written")
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("../evil.png", "has '..' in its path"),
        ("train/cat/../../x.png", "has '..'"),
        ("/etc/evil.png", "an absolute path"),
    ],
)
def test_member_that_reaches_outside_is_refused_by_name(name: str, wrong: str, tmp_path: Path, fill, pack, prepared):
    files = files_of(fill(tmp_path / "pets", SPLIT_FOLDERS))
    message = refusal(prepared, pack(tmp_path / "evil.tar", {**files, name: b"x"}))
    assert wrong in message
    assert repr(name) in message


@pytest.mark.fault("a .tar with devices, links, pipes", "refused by name")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_member_that_is_no_plain_file_is_refused_by_name(kind: bytes, tmp_path: Path, fill, pack, prepared):
    path = pack(tmp_path / "evil.tar", files_of(fill(tmp_path / "pets", SPLIT_FOLDERS)))
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/cat/odd.png")
        member.type, member.linkname = kind, "0000.png"
        archive.addfile(member)
    assert "'train/cat/odd.png'" in refusal(prepared, path)


def test_empty_class_in_a_tar_is_named(tmp_path: Path, fill, pack, prepared):
    path = pack(tmp_path / "pets.tar", files_of(fill(tmp_path / "pets", SPLIT_FOLDERS)))
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/bird")
        member.type = tarfile.DIRTYPE
        archive.addfile(member)
    assert "'bird' has no images" in refusal(prepared, path)


@pytest.mark.fault("a .tar that was cut off", "refused in a sentence")
def test_cut_tar_is_refused(tmp_path: Path, fill, pack, prepared):
    path = pack(tmp_path / "cut.tar", files_of(fill(tmp_path / "pets", SPLIT_FOLDERS)))
    path.write_bytes(path.read_bytes()[:8000])
    assert "is not a complete .tar" in refusal(prepared, path)


def test_file_that_is_no_tar_is_refused(tmp_path: Path, prepared):
    (tmp_path / "notes.tar").write_text("words" * 500)
    assert "is not a complete .tar" in refusal(prepared, tmp_path / "notes.tar")


def test_compressed_tar_says_what_to_do(tmp_path: Path, fill, pack, prepared):
    path = pack(tmp_path / "pets.tar", files_of(fill(tmp_path / "pets", SPLIT_FOLDERS)))
    path.with_suffix(".tgz").write_bytes(gzip.compress(path.read_bytes()))
    assert "is compressed; unpack it" in refusal(prepared, path.with_suffix(".tgz"))


def test_later_member_of_one_name_counts(tmp_path: Path, fill, pack, png, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    path = pack(tmp_path / "pets.tar", files_of(root))
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/cat/0000.png")
        member.size = len(png(500))
        archive.addfile(member, io.BytesIO(png(500)))
    (root / "train/cat/0000.png").write_bytes(png(500))
    assert prepared(path).digest == prepared(root).digest
