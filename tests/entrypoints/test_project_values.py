"""Every parameter of every entry point, through the very shell command that MLflow builds and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.projects._project_spec import load_project

from tests.conftest import ROOT

PROJECT = load_project(str(ROOT))
ENTRIES = sorted(PROJECT._entry_points)
STUB = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"
VALUES = [
    "$(touch trap)", "`touch trap`", "; touch trap", "| touch trap", "& touch trap", "> trap", "a\ntouch trap\n",
    "'; touch trap; '", '"; touch trap; "', "'\"'\"", "\\", "{data}", "{0}", "%(data)s", "-rf", "--json", "*", "~",
    "!!", "<script>alert(1)</script>", "=1+1", "\u00fc \u732b", "$HOME", "#", "\t",
]  # fmt: skip


@pytest.mark.fault(
    "shell text, quotes, newlines, HTML and formulas in every parameter of every entry point",
    "each arrives as it is; nothing is executed",
)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_value_of_every_parameter_arrives_as_it_is(entry, tmp_path: Path):
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)
    point = PROJECT.get_entry_point(entry)
    for value in VALUES:
        given = dict.fromkeys([*point.parameters, "not-declared"], value)
        command = point.compute_command(given, str(tmp_path))
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        words = json.loads(done.stdout)
        assert words[:2] == ["-m", "kd_mlflow"]
        arrived = words[3:]
        # Only options, and the value as often as it was given.
        assert arrived.count(value) == len(given), (command, arrived)
        assert all(word == value or word.startswith("--") for word in arrived)
    assert os.listdir(tmp_path) == ["python"]
