"""What names of files and classes say on the terminal and in reports is text."""

from __future__ import annotations

import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from kd_mlflow.entrypoints.evaluate import same_classes
from kd_mlflow.entrypoints.show import predictions
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError, harmless
from kd_mlflow.reports.tables import Table
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import download, find_runs
from tests.conftest import QUICK

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


@pytest.mark.parametrize(
    ("theirs", "ours", "sentence"),
    [
        ("caf\u00e9", "cafe\u0301", "'cafe\\u0301' and 'caf\\xe9' differ only in Unicode form"),
        ("Cat", "cat", "'Cat' and 'cat' differ only in upper and lower case"),
    ],
)
def test_a_model_that_spells_a_class_otherwise_is_refused_with_the_twin(theirs: str, ours: str, sentence: str):
    def known(*classes: str) -> SimpleNamespace:
        return SimpleNamespace(classes=classes, image_size=16, value_range=(0, 65535))

    network = SimpleNamespace(model=SimpleNamespace(spec=known(theirs, "dog")))
    with pytest.raises(InputError) as caught:
        same_classes(SimpleNamespace(store=known(ours, "dog")), network, "models:/pets@champion")
    assert f"spell their classes in different ways: {sentence}" in str(caught.value)
    with pytest.raises(InputError, match=r"they differ in bird, dog"):
        same_classes(SimpleNamespace(store=known(theirs, "bird")), network, "models:/pets@champion")


@pytest.mark.parametrize("cell", ["=1+1", " =1+1", "\n=1+1", "+cmd", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1"])
def test_no_text_in_a_table_is_a_formula(cell):
    assert Table(["class"], [[cell]]).to_csv().splitlines()[1].lstrip('"').startswith("'")


@pytest.mark.parametrize("cell", ["-0.25", "+1.5e-3", "+0.01 (+0.00 … +0.02)"])
def test_figures_stay_figures(cell):
    assert Table(["gain"], [[cell]]).to_csv().splitlines()[1] == cell


CLASSES = ["$(touch trap)", "`touch trap`", "<script>alert(1)<", "=1+1", "a\nb", "$\\bad{$", "'\"", "\x1b[2J", "-rf"]


@pytest.mark.fault("class and file names of shell text, HTML, formulas, mathematics, escape sequences", "they are text")
@pytest.mark.slow
def test_a_distillation_takes_any_names_of_classes_and_files(place, tmp_path):
    data = tmp_path / "$(touch trap)"
    for number, name in enumerate(CLASSES):
        (data / name).mkdir(parents=True)
        for image in range(8):
            pixels = np.random.default_rng(10 * number + image).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{name} {image}.png")
    place.run("distill", "--data", str(data), *QUICK, "--epochs", "1", "--name", "odd")
    place.run("pull", "odd-student@champion", "pulled")
    said = place.run("predict", "pulled", str(data))
    assert "\x1b[2J" not in said
    assert not list(tmp_path.rglob("trap"))
    client = connect(place.uri)
    (run,) = find_runs(client, tags={}, role="student")
    report = download(client, run.run_id, "report.html", tmp_path / "here").read_text()
    assert "<script" not in report
    assert "&lt;script&gt;alert(1)&lt;" in report
    table = download(client, run.run_id, "tables/per_class.csv", tmp_path / "here").read_text()
    with (tmp_path / "read.csv").open("w+", newline="") as file:
        file.write(table)
        file.seek(0)
        named = {row["class"].removeprefix("'") for row in csv.DictReader(file)}
    assert named == {name.removeprefix("'") for name in CLASSES}
    assert "\n=1+1" not in table
