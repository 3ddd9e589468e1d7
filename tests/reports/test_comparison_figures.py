"""What the figures of a comparison show, where its labels stand, and how its figures reach a table."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from kd_mlflow.reports.comparison import Cell, Comparison, comparison_table, rows, signed, verdict
from kd_mlflow.reports.comparison_figures import accuracy_against, differences, gain_figure
from kd_mlflow.reports.statistics import paired_difference

BATCH, LATENCY = "efficiency/training_seconds_per_batch", "efficiency/latency_ms_b1_median"


def cell(method: str, seed: int, right: int, cost: float = 0.1, images: int = 200) -> Cell:
    accuracy = right / images
    figures = {"val/accuracy": accuracy, "test/accuracy": accuracy, BATCH: cost, LATENCY: 3.0}
    labels = np.ones(images, int)
    return Cell(method, seed, f"{method}{seed}", figures, (np.arange(images) < right).astype(int), labels)


def comparison(*cells: Cell, teacher: float = 0.9, data: str = "photos") -> Comparison:
    return Comparison(data, 3, 100.0, 32, {"test/accuracy": teacher}, cells, (), "resnet18", "resnet34")


def crowd(methods: int) -> Comparison:
    draw = np.random.default_rng(3)
    cells = [cell("labels", seed, 110, 0.3) for seed in (0, 1)]
    for number in range(methods):
        cost = 0.3 + 0.02 * draw.random()
        cells += [cell(f"method{number}", seed, 108 + int(draw.integers(0, 9)), cost) for seed in (0, 1)]
    return comparison(*cells)


def labels_of(figure: Figure) -> list[Annotation]:
    return [text for text in figure.axes[0].texts if isinstance(text, Annotation)]


@pytest.mark.parametrize("methods", [5, 27])
def test_labels_lie_neither_on_one_another_nor_on_points(methods):
    figure = accuracy_against(crowd(methods), BATCH)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(label) for label in labels_of(figure)]
    assert len(boxes) == methods + 1
    assert not [1 for one, other in combinations(boxes, 2) if one.overlaps(other)]
    points = figure.axes[0].transData.transform([label.xy for label in labels_of(figure)])
    assert not [1 for box in boxes for x, y in points if box.contains(x, y)]


def test_many_methods_are_numbered_as_their_names_stand_beside():
    figure = accuracy_against(crowd(27), BATCH)
    named = dict(line.split() for line in figure.axes[1].texts[0].get_text().splitlines())
    own = {row.method: row.mean for row in rows(crowd(27))}
    for label in labels_of(figure):
        assert label.xy == (own[named[label.get_text()]][BATCH], own[named[label.get_text()]]["test/accuracy"])


@pytest.mark.parametrize(("teacher", "drawn"), [(0.99, False), (0.6, True), (0.1, False)])
def test_a_teacher_far_away_is_told_and_does_not_flatten_the_picture(teacher, drawn):
    made = comparison(cell("labels", 0, 110), cell("kd", 0, 120, 0.2), teacher=teacher)
    figure = accuracy_against(made, BATCH)
    low, high = figure.axes[0].get_ylim()
    assert (low < teacher < high) == drawn
    assert high - low < 0.2
    assert any(f"teacher {teacher:.4f}" in text.get_text() for text in figure.legends[0].get_texts())


def test_a_cost_that_nobody_measured_gives_a_figure_that_says_so():
    figure = accuracy_against(comparison(cell("labels", 0, 110)), "efficiency/training_joules_per_image")
    assert [text.get_text() for text in figure.axes[0].texts] == ["not measured"]


def test_differences_are_drawn_with_the_best_on_top():
    own = rows(comparison(cell("labels", 0, 100), cell("kd", 0, 90), cell("dist", 0, 150)))
    axes = differences(own).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["kd", "dist"]
    assert "1 seed;" in axes.get_title(loc="left")


def test_a_method_that_a_data_set_lacks_is_a_dash_and_a_clear_gain_is_bold():
    first = comparison(cell("labels", 0, 100), cell("kd", 0, 150))
    second = comparison(cell("labels", 0, 100), cell("at", 0, 100), data="digits")
    texts = [(text.get_text(), text.get_fontweight()) for text in gain_figure([first, second]).axes[0].texts]
    assert texts == [("+0.250", "bold"), ("–", "normal"), ("–", "normal"), ("+0.000", "normal")]


def test_the_interval_counts_patterns_as_the_draw_of_images_would():
    draw = np.random.default_rng(5)
    one, other = draw.random((3, 300)) < 0.8, draw.random((3, 300)) < 0.7
    found, difference = paired_difference(one, other), one.astype(float) - other
    means = []
    for _ in range(2000):
        picked, seeds = draw.integers(0, 300, 300), draw.integers(0, 3, 3)
        # Three seeds of three vary less than the trainings do, by the factor √(2 / 3).
        weights = 1 + (np.bincount(seeds, minlength=3) - 1) * np.sqrt(3 / 2)
        means.append((weights @ difference[:, picked]).mean() / 3)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.006)


def test_a_difference_that_never_varies_is_exact():
    found = paired_difference([np.ones(37, bool)] * 3, [np.zeros(37, bool)] * 3)
    assert (found.mean, found.low, found.high) == (1, 1, 1)


def test_a_figure_that_is_not_finite_counts_as_not_measured():
    broken = cell("kd", 0, 120)
    broken = replace(broken, metrics=broken.metrics | {LATENCY: float("nan")})
    made = rows(comparison(cell("labels", 0, 100), broken))
    assert LATENCY not in made[1].mean
    json.dumps([row.to_json() for row in made], allow_nan=False)


def test_differences_reach_a_spreadsheet_as_they_are_written():
    table = comparison_table(rows(comparison(cell("labels", 0, 100), cell("kd", 0, 150))))
    line = list(csv.reader(io.StringIO(table.to_csv())))[2]
    assert line[-3].startswith("+0.2500 (+0.1")
    assert line[-1] == "The interval covers the drawing of test images alone (1 seed)."
    assert (signed(-0.00001), signed(-0.5)) == ("+0.0000", "−0.5000")


def test_a_control_that_wins_is_still_held_against_the_nearest():
    said = verdict(rows(comparison(*[cell("labels", s, 120) for s in (0, 1)], cell("kd", 0, 118))))
    assert "No method is ahead of the labels-only control on validation (2 seeds), kd coming nearest" in said
    assert "by −0.0100" in said
    assert said.endswith("kd finished at 1 of 2 seeds.")
