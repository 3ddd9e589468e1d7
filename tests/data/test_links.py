"""Links that lead out of the data folder: pools of images, caches of DVC and of hubs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from kd_mlflow.config import DistillConfig, SearchConfig
from kd_mlflow.entrypoints.fingerprint import request_fingerprint
from kd_mlflow.search.settings import Settings

SPLIT_FOLDERS = {f"{split}/{label}": 4 for split in ("train", "val", "test") for label in ("cat", "dog")}


def linked(root: Path, pool: Path, target: Path) -> Path:
    """The tree below ``root`` once more below ``target``: links to its files, moved to a pool under other names."""
    pool.mkdir()
    for number, file in enumerate(sorted(root.rglob("*.png"))):
        blob = pool / f"blob{number}"
        file.rename(blob)
        link = target / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return target


@pytest.fixture
def pooled(tmp_path: Path, fill) -> Path:
    return linked(fill(tmp_path / "pets", SPLIT_FOLDERS), tmp_path / "pool", tmp_path / "links")


def test_links_out_of_the_folder_are_refused_with_the_option_that_allows_them(pooled: Path, refused):
    message = refused(pooled)
    assert "The link 'test/cat/0016.png' leads out of the folder" in message
    assert "give --follow-links if what it points to belongs to the data, or remove it" in message


def test_links_to_a_pool_give_what_the_files_themselves_give(pooled: Path, tmp_path: Path, fill, prepared):
    store = prepared(pooled, follow_links=True)
    assert store.digest == prepared(fill(tmp_path / "copy", SPLIT_FOLDERS)).digest
    assert store.path_of(0) == "test/cat/0016.png"


def test_a_linked_folder_of_a_pool_is_a_class(tmp_path: Path, fill, prepared, refused):
    root = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    fill(tmp_path / "pool", {"bird": 5}, first=50)
    (root / "bird").symlink_to(tmp_path / "pool/bird")
    assert "'bird' leads out of the folder" in refused(root)
    assert prepared(root, follow_links=True).classes == ("bird", "cat", "dog")


@pytest.mark.fault("the target of a link out of the folder changes", "noticed: another store")
@pytest.mark.parametrize("change", ["content", "target"])
def test_a_link_whose_target_changed_is_noticed(change: str, pooled: Path, prepared):
    first = prepared(pooled, follow_links=True)
    link = pooled / "train/cat/0000.png"
    if change == "content":
        Image.new("RGB", (9, 9)).save(link.resolve(), "PNG")
    else:
        other = link.resolve().with_name("other")
        Image.new("RGB", (9, 9)).save(other, "PNG")
        link.unlink()
        link.symlink_to(other)
    assert prepared(pooled, follow_links=True).digest != first.digest


@pytest.mark.fault("a store made with links followed, asked for without", "refused as before")
def test_a_store_made_with_links_followed_is_not_given_without_the_option(pooled: Path, prepared, refused):
    prepared(pooled, follow_links=True)
    assert "leads out of the folder" in refused(pooled)


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_a_link_to_a_folder_above_is_refused_even_if_links_are_followed(target: str, tmp_path: Path, fill, refused):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/again").symlink_to(root / target)
    assert "The link 'train/cat/again'" in (message := refused(root, follow_links=True))
    assert "leads back to a folder above it; remove it" in message


def test_a_link_to_nothing_is_a_bad_file_if_links_are_followed(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", SPLIT_FOLDERS)
    (root / "train/cat/gone.png").symlink_to(tmp_path / "pool/gone.png")
    assert [bad.reason for bad in prepared(root, max_bad=1, follow_links=True).bad] == ["a link to nothing"]


def test_clutter_behind_a_link_is_left_out(tmp_path: Path, fill, prepared):
    root = fill(tmp_path / "pets", {"cat": 5})
    fill(tmp_path / "pool", {"dog": 5, "dog/@eaDir": 3}, first=50)
    (root / "dog").symlink_to(tmp_path / "pool/dog")
    store = prepared(root, follow_links=True)
    assert len(store.labels) == 10
    assert "'@eaDir' (1)" in store.warnings[-1]


def test_whether_links_are_followed_makes_no_other_training():
    asked = [DistillConfig(follow_links=follow) for follow in (False, True)]
    assert request_fingerprint(asked[0], "d") == request_fingerprint(asked[1], "d")
    searches = [Settings.of(SearchConfig(follow_links=follow), _NO_SPACE, [], [], {}, "d") for follow in (False, True)]
    assert searches[0].identity == searches[1].identity
    assert searches[0].difference(searches[1]) == ""


class _NoSpace:
    def to_json(self) -> list[dict]:
        return []


_NO_SPACE = _NoSpace()
