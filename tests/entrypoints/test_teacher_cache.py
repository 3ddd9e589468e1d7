"""The teacher cache in whole commands: the same students with it as without, and shared between trainings."""

from __future__ import annotations

import json

import pytest

from kd_mlflow.places import TEACHER_OUTPUTS
from kd_mlflow.training.checkpoint import file_sha256
from tests.conftest import QUICK, SMALL, Place, make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return make_place(tmp_path_factory.mktemp("cached") / "place")


def options(photos, *more: str, pair: list[str] = QUICK) -> list[str]:
    return ["--data", str(photos), *pair, "--epochs", "2", "--batch-size", "8", *more]


def student(place: Place, *arguments: str) -> str:
    """The digest of the weights that a command trained."""
    run_id = json.loads(place.run("distill", *arguments, "--no-control", "--no-register-model", "--json"))["run_id"]
    return file_sha256(place.home / "checkpoints" / run_id / "model" / "model.safetensors")


def records(place: Place) -> list[str]:
    return sorted(file.name for file in (place.home / TEACHER_OUTPUTS).glob("*/epoch-*.bin"))


def test_with_full_records_the_student_is_the_same_bit_for_bit(place, photos):
    plain = student(place, *options(photos))
    assert records(place) == []
    kept = ["--teacher-cache", "on", "--cache-precision", "float32"]
    assert student(place, *options(photos, *kept)) == plain
    assert records(place) == ["epoch-00001.bin", "epoch-00002.bin"]
    before = [file.stat().st_mtime_ns for file in sorted((place.home / TEACHER_OUTPUTS).rglob("epoch-*.bin"))]
    # Filled by the run before, read by this one.
    assert student(place, *options(photos, *kept)) == plain
    assert [file.stat().st_mtime_ns for file in sorted((place.home / TEACHER_OUTPUTS).rglob("epoch-*.bin"))] == before


@pytest.mark.slow
def test_a_comparison_asks_the_teacher_once_for_all_methods(place, photos):
    out = place.run("compare", *options(photos, "--methods", "kd,dkd,fnkd,mlkd", "--seed", "3", pair=SMALL), "--json")
    assert json.loads(out)
    # Logits for kd and dkd, features beside them for fnkd, nothing for mlkd, which shows several views.
    folders = {file.parent for file in (place.home / TEACHER_OUTPUTS).glob("*/epoch-*.bin")}
    facts = [json.loads((folder / "facts.json").read_text()) for folder in folders]
    assert sorted((one["pooled"], one["seed"]) for one in facts if one["seed"] == 3) == [(0, 3), (1024, 3)]


def test_a_method_that_no_cache_serves_is_refused_in_a_sentence(place, photos):
    said = place.run("distill", *options(photos, "--method", "at", "--teacher-cache", "on", pair=SMALL), code=2)
    assert "The method 'at' needs maps of the teacher's stages, which no cache holds" in said
