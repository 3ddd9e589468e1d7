"""What names of files and classes say on the terminal and in reports is text."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kd_mlflow.entrypoints.show import predictions
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import harmless
from kd_mlflow.reports.tables import Table

STEERING = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "\r", "\b\b", "\u202e", "\x00", "\udcff"]


@pytest.mark.fault("names with escape sequences of a terminal", "they are spelt out; the terminal obeys none")
@pytest.mark.parametrize("sequence", STEERING, ids=ascii)
def test_a_name_does_not_steer_the_terminal(sequence, capsys):
    name = f"cat{sequence}.png"
    Terminal().warn(f"1 files cannot be used, the first: {name}")
    said = capsys.readouterr().err
    assert sequence not in said
    assert ascii(sequence)[1:-1] in said
    shown = io.StringIO()
    result = {"predictions": [], "unreadable": [{"path": name, "reason": "the file is empty"}]}
    Console(file=shown, width=200).print(predictions(result))
    assert sequence not in shown.getvalue()


def test_plain_text_stays_as_it_is():
    text = "über 猫 'quoted' \"x\" $(touch f) `id` <b>\n\ttwo lines"
    assert harmless(text) == text


@pytest.mark.parametrize("cell", ["=1+1", " =1+1", "\n=1+1", "+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1"])
def test_no_text_in_a_table_is_a_formula(cell):
    assert Table(["class"], [[cell]]).to_csv().splitlines()[1].lstrip('"').startswith("'")


@pytest.mark.parametrize("cell", ["-0.25", "+1.5e-3", "+0.01 (+0.00 … +0.02)"])
def test_figures_stay_figures(cell):
    assert Table(["gain"], [[cell]]).to_csv().splitlines()[1] == cell
