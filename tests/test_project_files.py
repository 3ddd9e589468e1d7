"""The files at the top hold to each other."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml
from rich_click import RichContext as Context

from kd_mlflow.cli import cli
from kd_mlflow.config import COMMANDS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MLPROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
REQUIREMENTS = set(PROJECT["project"]["dependencies"])


def test_python_env_has_the_same_requirements():
    content = yaml.safe_load((ROOT / "python_env.yaml").read_text())
    assert set(content["dependencies"]) == REQUIREMENTS
    assert content["python"] == PROJECT["project"]["requires-python"]


def test_conda_has_the_same_requirements():
    content = yaml.safe_load((ROOT / "conda.yaml").read_text())
    plain = [item for item in content["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in content["dependencies"] if isinstance(item, dict)]
    assert set(pip) == REQUIREMENTS
    assert f"python{PROJECT['project']['requires-python']}" in plain


def test_mlproject_names_one_environment():
    assert [key for key in MLPROJECT if key.endswith("_env")] == ["python_env"]


@pytest.mark.parametrize("entry", sorted(MLPROJECT["entry_points"]))
def test_every_entry_point_is_the_command_of_its_name_with_its_options(entry):
    point = MLPROJECT["entry_points"][entry]
    command = "distill" if entry == "main" else entry
    words = point["command"].split()
    assert words[:4] == ["python", "-m", "kd_mlflow", command]
    known = cli.commands[command]
    options = {option for parameter in known.get_params(Context(known)) for option in parameter.opts}
    for name, parameter in point["parameters"].items():
        assert f"{{{name}}}" in words, "a placeholder must stand alone and unquoted"
        if f"--{name}" in words:
            assert f"--{name}" in options
            assert parameter["default"] == ""
    assert '"' not in point["command"]
    assert "'" not in point["command"]


# A worker of a search has no run of its own.
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"search-worker"}))
def test_common_options_are_declared(command):
    declared = set(MLPROJECT["entry_points"][command]["parameters"])
    common = {n.replace("_", "-") for n, f in COMMANDS[command].model_fields.items() if f.json_schema_extra["common"]}
    assert common <= declared


def test_main_is_distill():
    assert MLPROJECT["entry_points"]["main"] == MLPROJECT["entry_points"]["distill"]
