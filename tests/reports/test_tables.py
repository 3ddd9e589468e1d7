"""The tables of a comparison, cell by cell."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from kd_mlflow.reports.tables import Table, efficiency_table, not_measured, quality_table
from tests.reports.builders import NO_GPU, make_views

CLASSES = [f"class {number}" for number in range(8)]


@pytest.fixture(scope="module")
def views():
    return make_views(CLASSES)


def row_of(table: Table, label: str) -> list[str]:
    (found,) = [row[1:] for row in table.rows if row[0] == label]
    return found


def test_quality_has_a_column_a_network_and_the_gain_over_the_control(views):
    table = quality_table(views)
    assert table.header == ["", "teacher (resnet34)", "control (resnet18)", "student (resnet18)", "student − control"]
    teacher, control, student = [view.metrics["test/macro_f1"] for view in views]
    assert row_of(table, "test F1 (macro)") == [
        f"{teacher:.4f}",
        f"{control:.4f}",
        f"{student:.4f}",
        f"{student - control:+.4f}",
    ]


@pytest.mark.parametrize("split", ["val", "test"])
def test_quality_has_every_measure_of_a_split(views, split):
    labels = [row[0] for row in quality_table(views).rows]
    for label in (
        "accuracy",
        "top-5 accuracy",
        "precision (macro)",
        "recall (macro)",
        "F1 (macro)",
        "precision (weighted)",
        "recall (weighted)",
        "F1 (weighted)",
        "mean average precision",
        "negative log-likelihood (less is better)",
        "calibration error (less is better)",
    ):
        assert labels.count(f"{split} {label}") == 1


def test_likeness_to_the_teacher_is_the_students_alone(views):
    first, second, student, gain = row_of(quality_table(views), "test agreement with the teacher")
    assert (first, second, gain) == ("", "", "")
    assert 0 < float(student) < 1


def test_run_alone_has_no_column_of_differences(views):
    table = quality_table(views[:1])
    assert table.header == ["", "teacher (resnet34)"]
    assert {len(row) for row in table.rows} == {2}


def test_every_row_is_as_long_as_the_header(views):
    for table in (quality_table(views), efficiency_table(views), quality_table(views[1:]), efficiency_table(views[1:])):
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_cost_in_full_figures(views):
    table = efficiency_table(views)
    assert row_of(table, "parameters") == ["21,289,802", "11,181,642", "11,181,642"]
    assert row_of(table, "FLOPs an image (2 a multiply-add)") == ["300,000,000", "150,000,000", "150,000,000"]
    assert row_of(table, "latency of one image, median, ms") == ["9.10", "4.60", "4.60"]


def test_what_was_not_measured_says_so_and_is_never_zero(views):
    assert row_of(efficiency_table(views), "power, inference, W") == ["not measured"] * 3
    names = "energy an image, inference, J; energy of the training, J; power, inference, W"
    assert not_measured(views) == f"{names} ({NO_GPU})"


def test_figure_that_one_network_has_stands_beside_the_gap_of_another(views):
    measured = replace(views[0], metrics={**views[0].metrics, "efficiency/inference_power_w": 71.25}, missing={})
    assert row_of(efficiency_table([measured, views[1]]), "power, inference, W") == ["71.2", "not measured"]


def test_figure_that_nobody_was_asked_for_is_left_out(views):
    assert "GPU utilisation, training, %" not in [row[0] for row in efficiency_table(views).rows]


def test_nothing_missing_gives_no_sentence(views):
    assert not_measured([replace(view, missing={}) for view in views]) == ""


@pytest.mark.parametrize("cell", ["=SUM(A1)", "+cmd", "-rm", "@x", "\t=1", "\r=1", "-", "+1+1", "=1", "-1e", "+1,2"])
def test_cell_that_a_spreadsheet_would_calculate_becomes_text(cell: str):
    assert next(csv.reader(io.StringIO(Table([cell], []).to_csv(), newline=""))) == [f"'{cell}"]


@pytest.mark.parametrize("cell", ["+0.0123", "-0.5", "-12", "1e-05", "-1.5E+3", "cat", "a=b", "", "12,345", "'x"])
def test_number_and_plain_text_stay_as_they_are(cell: str):
    assert next(csv.reader(io.StringIO(Table([cell, "end"], []).to_csv(), newline=""))) == [cell, "end"]


def test_commas_quotes_and_line_breaks_survive_csv():
    cells = ['a,b "c"', "line\nbreak", "naïve 猫"]
    assert next(csv.reader(io.StringIO(Table(["x"] * 3, [cells]).to_csv().split("\n", 1)[1], newline=""))) == cells


def test_html_is_escaped():
    page = Table(["<script>"], [["a & b"], ['"q"']]).to_html()
    assert "<script>" not in page
    assert "<th>&lt;script&gt;</th>" in page
    assert "<td>a &amp; b</td>" in page
