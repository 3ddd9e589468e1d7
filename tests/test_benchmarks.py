"""The benchmarks run and say what they promise; what they measure is nobody's test."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run(*arguments: str) -> dict:
    command = [sys.executable, "-m", "benchmarks", *arguments, "--json"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


@pytest.mark.slow
def test_the_step_names_its_machine_its_contenders_and_their_ratios():
    found = run("step", "--image-size", "32", "--batch-size", "16", "--steps", "1", "--rounds", "1")
    assert {"processor", "cores", "torch", "date"} <= found["machine"].keys()
    assert {"bare_student", "bare_kd", "notebook", "live", "cached"} <= found["contenders"].keys()
    assert all(one["low"] <= one["images_per_s"] <= one["high"] for one in found["contenders"].values())
    wanted = {"live/bare_kd", "cached/bare_student", "cached/bare_kd", "live/notebook", "cached/notebook"}
    assert wanted <= found["ratios"].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["startup", "--rounds", "1"],
        ["pipeline", "--files", "40", "--size", "32", "--rounds", "1"],
        ["inference", "--image-size", "32", "--batch-size", "16", "--rounds", "1"],
        ["memory", "--small", "60", "--large", "120", "--size", "32"],
        ["tracking", "--epochs", "1", "--rounds", "1", "--image-size", "16"],
        ["processes", "--epochs", "1", "--rounds", "1", "--image-size", "16"],
        ["search", "--trials", "2", "--epochs", "1", "--image-size", "16"],
    ],
    ids=lambda words: words[0],
)
def test_every_other_benchmark_prints_one_object(arguments):
    found = run(*arguments)
    assert found["contenders"]
    assert all(isinstance(value, float) for value in found["ratios"].values())
