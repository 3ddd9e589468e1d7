"""Real image files, folders and archives to prepare."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_mlflow.config import DataOptions
from kd_mlflow.data.store import Store, prepare
from kd_mlflow.errors import InputError


def picture(number: int, width: int = 24, height: int = 20) -> Image.Image:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    """``photo(number, width, height)``: a picture that no other number has."""
    return picture


@pytest.fixture
def fill() -> Callable[..., Path]:
    """``fill(root, {"train/cat": 3})``: that many PNG files in each folder, all different."""

    def make(root: Path, counts: dict[str, int], first: int = 0) -> Path:
        number = first
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for _ in range(count):
                picture(number).save(root / folder / f"{number:04d}.png")
                number += 1
        return root

    return make


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def prepared(home: Path) -> Callable[..., Store]:
    """``prepared(data, image_size=16, ...)``: the store of it, below ``home``."""

    def make(data: Path | str, **options: object) -> Store:
        return prepare(DataOptions(**{"data": str(data), "image_size": 16, **options}), home)

    return make


@pytest.fixture
def refused(prepared) -> Callable[..., str]:
    """``refused(data, ...)``: the one sentence with which the preparation is refused."""

    def make(data: Path | str, **options: object) -> str:
        with pytest.raises(InputError) as caught:
            prepared(data, **options)
        assert caught.value.exit_code == 2
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return make


@pytest.fixture
def pack() -> Callable[[Path, dict[str, bytes]], Path]:
    """``pack(path, {"a/b.png": content})``: a plain tar."""

    def make(path: Path, files: dict[str, bytes]) -> Path:
        with tarfile.open(path, "w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return path

    return make


@pytest.fixture
def png() -> Callable[[int], bytes]:
    """``png(number)``: the bytes of a picture that no other number has."""

    def make(number: int) -> bytes:
        buffer = io.BytesIO()
        picture(number).save(buffer, "PNG")
        return buffer.getvalue()

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder with imagenette224.tar and tiny_clothing.tar."""
    folder = os.environ.get("KD_MLFLOW_DATA", "")
    if not folder or not (Path(folder) / "imagenette224.tar").is_file():
        pytest.skip("KD_MLFLOW_DATA does not name a folder with imagenette224.tar and tiny_clothing.tar")
    return Path(folder)
