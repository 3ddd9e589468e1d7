"""Comparisons: paired intervals that tell differences from chance, winners by validation, tables without surprises."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kd_mlflow.reports.comparison import (
    Cell,
    Comparison,
    LeftOut,
    comparison_table,
    gain_rows,
    gain_table,
    rows,
    verdict,
    winner,
)
from kd_mlflow.reports.comparison_figures import accuracy_against, differences, gain_figure
from kd_mlflow.reports.comparison_html import render
from kd_mlflow.reports.figures import to_png
from kd_mlflow.reports.statistics import paired_difference, pareto

IMAGES = 400


def cell(method: str, seed: int, accuracy: float, val: float, **metrics: float) -> Cell:
    draw = np.random.default_rng([seed, len(method)])
    right = draw.random(IMAGES) < accuracy
    figures = {
        "val/accuracy": val,
        "test/accuracy": float(right.mean()),
        "efficiency/training_seconds_per_batch": 0.1 + len(method) / 100,
        "efficiency/latency_ms_b1_median": 3.0,
    }
    return Cell(method, seed, f"{method}{seed}", figures | metrics, right.astype(int), np.ones(IMAGES, int), "paper")


def comparison(*cells: Cell, data: str = "photos", left_out: tuple[LeftOut, ...] = ()) -> Comparison:
    teacher = {"test/accuracy": 0.9, "val/accuracy": 0.91}
    return Comparison(data, 3, 100.0, 32, teacher, cells, left_out, "resnet18", "resnet34")


def test_the_interval_is_that_of_resampled_pairs():
    draw = np.random.default_rng(1)
    one, other = (draw.random(IMAGES) < share for share in (0.8, 0.6))
    found = paired_difference([one], [other])
    assert found.mean == pytest.approx(one.mean() - other.mean())
    deviation = (one.astype(float) - other).std() / np.sqrt(IMAGES)
    assert found.low == pytest.approx(found.mean - 1.96 * deviation, abs=0.15 * deviation)
    assert found.high == pytest.approx(found.mean + 1.96 * deviation, abs=0.15 * deviation)
    assert not found.holds_zero
    assert found == paired_difference([one], [other])


def test_equal_networks_differ_by_nothing_at_all():
    one = np.random.default_rng(2).random(IMAGES) < 0.5
    found = paired_difference([one, one], [one, one])
    assert (found.mean, found.low, found.high, found.seeds) == (0, 0, 0, 2)


def test_seeds_that_disagree_widen_the_interval():
    base = np.zeros(IMAGES, bool)
    better = np.arange(IMAGES) < 40
    steady = paired_difference([better, better, better], [base, base, base])
    torn = paired_difference([np.arange(IMAGES) < 120, base, base], [base, base, base])
    assert steady.mean == torn.mean == pytest.approx(0.1)
    assert torn.high - torn.low > 2 * (steady.high - steady.low)
    assert torn.holds_zero


def test_many_images_and_seeds_stay_within_memory():
    right = [np.random.default_rng(seed).random(50_000) < 0.7 for seed in range(5)]
    assert paired_difference(right, right[::-1]).seeds == 5


def test_nothing_beats_the_front():
    assert pareto([0.9, 0.8, 0.85, 0.9], [3, 1, 2, 4]) == [True, True, True, False]
    assert pareto([0.5, 0.5], [1, 1]) == [True, True]


def test_the_control_comes_first_then_the_best_on_validation():
    made = comparison(
        *[cell("labels", seed, 0.6, 0.6) for seed in (0, 1)],
        *[cell("kd", seed, 0.7, 0.65 + seed / 50) for seed in (0, 1)],
        *[cell("dist", seed, 0.9, 0.62) for seed in (0, 1)],
        cell("at", 0, 0.3, 0.3),
    )
    found = rows(made)
    assert [row.method for row in found] == ["labels", "kd", "dist", "at"]
    assert found[1].mean["val/accuracy"] == pytest.approx(0.66)
    assert found[1].sd["val/accuracy"] == pytest.approx(0.02 / 2**0.5)
    assert found[3].sd["val/accuracy"] is None
    assert found[0].minus_control is None
    assert found[1].minus_kd is None
    assert found[3].minus_control.seeds == 1
    assert found[2].minus_kd.mean == pytest.approx(found[2].mean["test/accuracy"] - found[1].mean["test/accuracy"])
    assert winner(found) == "kd", "dist is better on test, which decides nothing"
    assert "best is kd" in verdict(found)
    json.dumps([row.to_json() for row in found], allow_nan=False)


def test_the_verdict_is_no_stronger_than_the_figures():
    near = rows(comparison(cell("labels", 0, 0.6, 0.6), cell("kd", 0, 0.6, 0.61)))
    assert "not told apart" in verdict(near)
    assert "With one seed" in verdict(near)
    behind = rows(comparison(cell("labels", 0, 0.6, 0.6), cell("kd", 0, 0.5, 0.5)))
    assert winner(behind) == "labels"
    assert "No method is ahead" in verdict(behind)


def test_tables_hold_what_was_left_out_and_every_gain():
    left_out = (LeftOut("iakd", "The stages <do> not correspond."),)
    one = comparison(cell("labels", 0, 0.6, 0.6), cell("kd", 0, 0.7, 0.7), left_out=left_out)
    other = comparison(cell("labels", 0, 0.5, 0.5), cell("kd", 0, 0.5, 0.4), cell("at", 0, 0.6, 0.4), data="=fewer")
    table = comparison_table(rows(one), one.left_out)
    assert [line[0] for line in table.rows] == ["labels", "kd", "iakd"]
    assert table.rows[-1][-1] == "The stages <do> not correspond."
    assert all(len(line) == len(table.header) for line in table.rows)
    gains = gain_table([one, other])
    assert gains.header[-2:] == ["kd", "at"]
    assert gains.rows[0][-1] == ""
    found = gain_rows([one, other])
    assert found[0]["gap"] == pytest.approx(0.9 - found[0]["control_accuracy"])
    pngs = {"photos_differences": to_png(differences(rows(one))), "gains": to_png(gain_figure([one, other]))}
    page = render("A <title>", [one, other], pngs, "a: <b>", ["a <note>"])
    assert "<do>" not in page
    assert "<b>" not in page.split("<pre>")[1]
    assert page.count("data:image/png") == 2


@pytest.mark.parametrize("count", [1, 5, 28])
def test_figures_are_drawn_for_few_and_many(count):
    cells = [cell("labels", 0, 0.55, 0.5)]
    cells += [cell(f"method{n}", 0, 0.5 + n / 100, 0.5 + n / 200) for n in range(count)]
    made = comparison(*cells)
    for figure in (
        accuracy_against(made, "efficiency/training_seconds_per_batch"),
        accuracy_against(made, "efficiency/latency_ms_b1_median"),
        differences(rows(made)),
    ):
        assert to_png(figure).startswith(b"\x89PNG")
