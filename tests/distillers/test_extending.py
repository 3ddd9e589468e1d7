"""docs/extending.md is true: its package, put beside this one, adds a method."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT, Place

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as `pip install` leaves it: the module of the page, and its entry point."""
    (code,), (project,) = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.S) for kind in ("python", "toml"))
    folder = tmp_path / "site"
    information = folder / "logit_matching-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "logit_matching.py").write_text(code)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: logit-matching\nVersion: 1.0\n")
    points = tomllib.loads(project)["project"]["entry-points"]
    lines = [f"[{group}]\n" + "\n".join(f"{n} = {v}" for n, v in names.items()) for group, names in points.items()]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def run(place: Place, package: Path, *arguments: str, code: int = 0) -> str:
    environment = place.environment | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "kd_mlflow", *arguments]
    done = subprocess.run(command, cwd=place.path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_the_page_is_short():
    assert len(PAGE.splitlines()) < 60


def test_a_package_from_outside_adds_a_method(place, photos, package):
    (told,) = json.loads(run(place, package, "methods", "matching", "--json"))
    assert (told["year"], told["evidence"], told["options"][0]["flag"]) == (2014, "paper", "--matching-weight")
    assert "matching" in {method["name"] for method in json.loads(run(place, package, "methods", "--json"))}
    options = ["distill", "--data", str(photos), "--epochs", "1", *QUICK, "--method", "matching", "--no-control"]
    result = json.loads(run(place, package, *options, "--matching-weight", "0.5", "--json"))
    assert 0 <= result["student"]["test"]["accuracy"] <= 1
    assert "--matching-weight" in run(place, package, *options, "--matching-weight", "-1", code=2)
