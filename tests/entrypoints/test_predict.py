"""`predict` on files and folders: what counts as an image, what is left out, and how that is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kd_mlflow.config import DataOptions
from kd_mlflow.data.store import prepare
from kd_mlflow.entrypoints.deploy import predict_images
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import save_model
from kd_mlflow.models.classifier import ModelSpec
from kd_mlflow.models.zoo import build
from tests.data.conftest import picture
from tests.pictures import encoded


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "student"
    architecture, classes = "tests.entrypoints.tiny:make", ("cat", "dog")
    spec = ModelSpec(architecture=architecture, classes=classes, image_size=16, mean=(0.5,) * 3, std=(0.2,) * 3)
    save_model(folder, build(spec, seed=0), run_id="r1", program=False)
    return folder


NAMES = {"a.jfif": "JPEG", "b.jp2": "JPEG2000", "c": "PNG", "D.JPG": "JPEG", "e.jpe": "JPEG", "f.dib": "BMP",
         "g.txt": "PNG", "sub/h.avif": "AVIF", "sub/i.png": "PNG", "sub/photo.jpg?w=300": "JPEG"}  # fmt: skip


def fill(folder: Path) -> Path:
    """A picture of every name, each in the format it is called after or in another."""
    for number, (name, kind) in enumerate(NAMES.items()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(picture(number), kind))
    return folder


def predict(model: Path, *images: Path) -> dict[str, list]:
    return predict_images(model, images, 1, 4, "cpu", Terminal())


def names(result: dict[str, list], folder: Path, part: str = "predictions") -> set[str]:
    return {str(Path(item["path"]).relative_to(folder)) for item in result[part]}


def test_a_folders_pictures_are_those_that_training_reads(model, tmp_path: Path):
    data = tmp_path / "photos"
    for label in ("cat", "dog"):
        fill(data / label)
    for name in ("a.json", "clip.MOV", "LICENSE", "sub/a.xmp"):
        (data / "cat" / name).write_bytes(b"words")
    result = predict(model, data)
    assert names(result, data) == {f"{label}/{name}" for label in ("cat", "dog") for name in NAMES}
    assert result["unreadable"] == []
    store = prepare(DataOptions(data=str(data), image_size=16), tmp_path / "home")
    assert {store.path_of(index) for index in range(len(store.labels))} == names(result, data)
    assert store.bad == ()


def test_what_is_left_out_of_a_folder_is_said_once(model, tmp_path: Path, capsys):
    folder = fill(tmp_path / "photos")
    for number, name in enumerate(("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "sub/@eaDir/x.jpg", "$RECYCLE.BIN/old.jpg")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(encoded(picture(50 + number), "JPEG"))
    (folder / "a.json").write_bytes(b"{}")
    assert names(predict(model, folder), folder) == set(NAMES)
    said = capsys.readouterr().err
    assert "3 files and folders of a system or another program left out: '@eaDir' (2), '$RECYCLE.BIN' (1)." in said
    assert f"Left out 1 files in {folder} that are no pictures: '.json' (1)" in said


def test_a_file_that_is_named_is_tried_whatever_it_is_called(model, tmp_path: Path):
    files = [tmp_path / name for name in (".hidden.jpg", "thumbs.db", "picture.json")]
    for file in files:
        file.write_bytes(encoded(picture(0), "JPEG"))
    assert len(predict(model, *files)["predictions"]) == 3


def test_linked_folders_are_gone_through_as_in_training(model, tmp_path: Path):
    fill(tmp_path / "pool")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/linked").symlink_to(tmp_path / "pool")
    assert names(predict(model, tmp_path / "photos"), tmp_path / "photos/linked") == set(NAMES)


def test_a_folder_without_pictures_says_what_it_holds(model, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"There are no images in .*, only 1 other files: '\.csv' \(1\)\."):
        predict(model, tmp_path)


def test_what_cannot_be_read_is_named_counted_and_said_last(model, place, tmp_path: Path):
    folder = fill(tmp_path / "photos")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    (folder / "cut.jpg").write_bytes(encoded(picture(3), "JPEG")[:200])
    (folder / "notes.txt").write_bytes(b"words")
    process = place.start("predict", str(model), str(folder), "--json", "--device", "cpu")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert err.splitlines()[-1] == "Warning: 2 of 12 files cannot be used."
    result = json.loads(out)
    assert names(result, folder) == set(NAMES)
    assert names(result, folder, "unreadable") == {"phone.heic", "cut.jpg"}
    assert any("a HEIC picture (convert it to JPEG" in item["reason"] for item in result["unreadable"])


def test_nothing_readable_is_a_refusal_with_the_first_reason(model, place, tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    said = place.run("predict", str(model), str(tmp_path / "a.jpg"), code=2)
    assert "None of 1 files can be used as an image, the first: " in said
    assert "a Git LFS pointer (run `git lfs pull` where it was cloned)" in said
    assert "Traceback" not in said
