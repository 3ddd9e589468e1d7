"""Data that changes under one's hands, and files that are not what their names say."""

from __future__ import annotations

import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kd_mlflow.config import DataOptions
from kd_mlflow.data.build import build
from kd_mlflow.data.folders import FolderSource
from kd_mlflow.data.images import MAX_BYTES, BadImage, read_image
from kd_mlflow.data.layout import MAX_DEPTH
from kd_mlflow.data.store import prepare
from kd_mlflow.data.survey import survey
from kd_mlflow.errors import InputError

FOLDERS = {"cat": 6, "dog": 6}


def remove(file: Path) -> None:
    file.unlink()


def change(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def lead_out(file: Path) -> None:
    outside = file.parents[2] / "outside.png"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)


def swell(file: Path) -> None:
    os.truncate(file, MAX_BYTES + 1)


@pytest.mark.fault("a file vanishes or changes while the store is built", "refused by name; no store lacks it")
@pytest.mark.parametrize("harm", [remove, change, pipe, lead_out, swell])
def test_a_file_that_changes_after_the_survey_is_refused_by_name(tmp_path: Path, fill, harm):
    root = fill(tmp_path / "pets", FOLDERS)
    source = FolderSource(root)
    surveyed = survey(source, 16, 0)
    victim = root / "cat/0001.png"
    whole = victim.read_bytes()
    harm(victim)
    (tmp_path / "store").mkdir()
    with pytest.raises(InputError, match=r"cat/0001\.png"):
        build(source, surveyed, tmp_path / "store", image_size=16, split_seed=0, max_bad=1)
    victim.unlink(missing_ok=True)
    victim.write_bytes(whole)
    store = prepare(DataOptions(data=str(root), image_size=16), tmp_path / "home")
    assert (len(store.labels), store.bad) == (12, ())


@pytest.mark.fault("files vanish or change after preparation", "the next command sees it: another store, or a sentence")
def test_what_changes_after_preparation_is_seen_by_the_next_command(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", FOLDERS)
    first = prepared(root)
    pixels = np.array(first.images)
    (root / "cat/0001.png").unlink()
    second = prepared(root)
    assert (len(first.labels), len(second.labels)) == (12, 11)
    assert np.array_equal(first.images, pixels)
    for file in (root / "dog").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="'dog' has no images"):
        prepared(root)


@pytest.mark.fault("a pipe or a device among the images", "left out by name; nobody waits for it")
def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(BadImage, match="not a regular file"):
            read_image(path, 8)


def test_a_folder_is_no_image_and_nothing_is_left_open(tmp_path: Path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(BadImage, match="not a regular file"):
            read_image(tmp_path, 8)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(BadImage, match="absurdly large"):
        read_image(tmp_path / "huge.png", 8)


@pytest.mark.fault("folders nested without end", "refused by name")
def test_what_lies_too_deep_is_refused_by_name(tmp_path: Path, fill, pack, prepared):
    root = fill(tmp_path / "pets", FOLDERS)
    with pytest.raises(InputError, match=f"more than {MAX_DEPTH} folders deep"):
        prepared(pack(tmp_path / "deep.tar", {"cat/" + "a/" * 20_000 + "x.png": b"x"}))
    root.joinpath("cat", *["a"] * (MAX_DEPTH + 1)).mkdir(parents=True)
    with pytest.raises(InputError, match=f"more than {MAX_DEPTH} folders deep"):
        prepared(root)


@pytest.mark.fault("a tar whose headers claim more than there is", "refused; no memory is taken for it")
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_a_header_that_claims_terabytes_is_refused(tmp_path: Path, prepared, kind):
    member = tarfile.TarInfo("cat/1.png")
    member.type, member.size = kind, 2**42
    (tmp_path / "forged.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"forged\.tar"):
            prepared(tmp_path / "forged.tar")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.fault("a tar whose headers lead back or never end", "refused; the reading ends")
@pytest.mark.parametrize("size", [-512, -1024, -(2**40)])
def test_a_negative_size_is_refused(tmp_path: Path, prepared, size):
    member = tarfile.TarInfo("cat/1.png")
    whole = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    whole[124:136] = b"\xff" + (256**11 + size).to_bytes(11, "big")
    whole[148:156] = b"%06o\0 " % (sum(whole[:148]) + sum(whole[156:512]) + 8 * 32)
    (tmp_path / "forged.tar").write_bytes(bytes(whole) + bytes(2048))
    with pytest.raises(InputError, match=r"forged\.tar"):
        prepared(tmp_path / "forged.tar")


def test_ten_thousand_long_names_in_a_row_are_refused(tmp_path: Path, prepared):
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 2
    block = member.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    (tmp_path / "forged.tar").write_bytes(block * 10_000)
    with pytest.raises(InputError, match=r"forged\.tar"):
        prepared(tmp_path / "forged.tar")


def test_a_home_that_nobody_has_is_refused_in_a_sentence(prepared):
    with pytest.raises(InputError, match="cannot be read"):
        prepared("~nobody-of-this-name/photos")


def test_a_sparse_member_with_a_broken_map_is_refused(tmp_path: Path, prepared):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("cat/1.png")
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}
        archive.addfile(member, io.BytesIO(b""))
    (tmp_path / "forged.tar").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"forged\.tar"):
        prepared(tmp_path / "forged.tar")
