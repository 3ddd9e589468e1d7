"""One paired test for every report: its values, and one pair of networks told in the same words everywhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kd_mlflow.reports.comparison import Cell, Comparison, rows
from kd_mlflow.reports.comparison import verdict as compared
from kd_mlflow.reports.data import Predictions, RunView
from kd_mlflow.reports.paired import UNPAIRED, basis, caveat, paired, paired_views
from kd_mlflow.reports.search import BEST, DEFAULTS
from kd_mlflow.reports.search import verdict as searched
from kd_mlflow.reports.statistics import mcnemar, paired_difference
from kd_mlflow.reports.tables import quality_table
from kd_mlflow.reports.verdict import gain
from tests.reports.builders import make_views, said_of


def rights(both: int, first_alone: int, second_alone: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(images)
    first = place < both + first_alone
    second = (place < both) | ((place >= both + first_alone) & (place < both + first_alone + second_alone))
    return first, second


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [(0, 0, 1.0), (5, 0, 2 / 32), (6, 0, 2 / 64), (1, 7, 18 / 256), (24, 17, 0.3488888), (10, 10, 1.0)],
)
def test_mcnemar_is_the_two_sided_probability_of_fair_coins(first: int, second: int, value: float):
    assert mcnemar(first, second) == pytest.approx(value, rel=1e-6)


def test_mcnemar_of_many_images_neither_overflows_nor_vanishes():
    # Normal approximation with continuity correction: z = 999 / sqrt(49000) = 4.513.
    assert mcnemar(25_000, 24_000) == pytest.approx(6.39e-6, rel=0.01)


def test_interval_leaves_zero_out_exactly_when_mcnemar_rules_chance_out():
    for first in range(0, 25):
        for second in range(0, 25):
            found = paired_difference(*[[one] for one in rights(100, first, second, 200)], draws=400)
            assert found.holds_zero == (mcnemar(first, second) >= 0.05), (first, second)
            assert found.low <= found.mean <= found.high
            assert (found.first_alone, found.second_alone) == (first, second)


def test_five_images_to_none_are_not_more_than_chance():
    found = paired_difference(*[[one] for one in rights(100, 5, 0, 200)])
    assert found.p_value == 0.0625
    assert found.low == pytest.approx(-0.2182375 / 200)  # 2 · 0.47818 − 1 of five images
    assert found.holds_zero


def test_several_seeds_are_tested_over_images_and_seeds_together():
    first, second = rights(100, 20, 4, 200)
    found = paired_difference([first, first], [second, second])
    assert (found.seeds, found.p_value, found.first_alone) == (2, None, None)
    assert basis(found).endswith("paired over 2 seeds and all images")


def views(both: int, first_alone: int, second_alone: int, images: int = 200) -> list[RunView]:
    made = []
    student, control = rights(both, first_alone, second_alone, images)
    for view, right in zip(make_views(["a", "b"]), (student, control, student), strict=True):
        predictions = dict.fromkeys(("val", "test"), said_of(right.astype(int), np.ones(images, int)))
        figures = {"test/accuracy": right.mean(), "val/accuracy": right.mean()}
        made.append(replace(view, metrics=view.metrics | figures, predictions=predictions))
    return made


def comparison(student: RunView, control: RunView) -> Comparison:
    cells = []
    for method, view in (("labels", control), ("kd", student)):
        said = view.predictions.get("test")
        predicted, labels = (said.predicted, said.label) if said else (None, None)
        cells.append(Cell(method, 0, view.run_id, view.metrics, predicted, labels))
    return Comparison("photos", 2, 100.0, 32, {}, tuple(cells), (), "resnet18", "resnet34")


@pytest.mark.parametrize("counts", [(100, 30, 8), (100, 8, 30), (100, 12, 9), (100, 5, 0), (100, 6, 0), (100, 0, 0)])
def test_distill_compare_and_search_say_the_same_of_the_same_pair(counts: tuple[int, int, int]):
    _, control, student = views(*counts)
    difference = paired_views(student, control, "test")
    said = [
        gain(student, control),
        compared(rows(comparison(student, control))),
        searched("val/accuracy", {DEFAULTS: 0.8, BEST: 0.9}, BEST, None, difference, {}),
    ]
    verb = "not told apart from" if difference.holds_zero else ("better" if difference.mean > 0 else "worse")
    assert all(verb in sentence and basis(difference) in sentence for sentence in said)
    assert all(caveat(difference) in sentence for sentence in said)


@pytest.mark.fault("a run without predictions.json", "the difference is given, and said not to be paired")
def test_runs_that_keep_no_predictions_are_said_not_to_be_paired():
    _, control, student = views(100, 30, 8)
    student = replace(student, predictions={})
    assert gain(student, control).startswith(
        f"The distilled student and the labels-only control differ by +0.1100 in accuracy on test. {UNPAIRED}"
    )
    row = rows(comparison(student, control))
    assert row[1].minus_control is None
    assert f"kd and the labels-only control differ by +0.1100 in accuracy on test. {UNPAIRED}" in compared(row)
    (cell,) = [line[-1] for line in quality_table([control, student]).rows if line[0] == "test accuracy"]
    assert cell == "+0.1100"


def test_predictions_are_paired_by_image_whatever_their_order_and_never_with_other_images():
    _, control, student = views(100, 30, 8)
    said = student.predictions["test"]
    turned = Predictions.of({name: getattr(said, name)[::-1].tolist() for name in ("index", "label", "predicted")})
    assert paired_views(replace(student, predictions={"test": turned}), control, "test") == paired_views(
        student, control, "test"
    )
    others = replace(student, predictions={"test": replace(said, index=said.index + 1)})
    assert paired_views(others, control, "test") is None
    fewer = replace(student, predictions={"test": Predictions(*(part[:50] for part in vars(said).values()))})
    assert paired_views(fewer, control, "test") is None


def test_seeds_without_predictions_are_left_out_of_the_pairs():
    first, second = rights(100, 30, 8, 200)
    assert paired([(first, second), (None, second)]) == paired([(first, second)])
    assert paired([(None, second)]) is None


def test_table_of_quality_gives_the_interval_of_the_same_test():
    _, control, student = views(100, 30, 8)
    found = paired_views(student, control, "test")
    cells = {line[0]: line[-1] for line in quality_table([control, student]).rows}
    assert cells["test accuracy"] == f"+0.1100 (+{found.low:.4f} … +{found.high:.4f})"
    assert "…" not in cells["test F1 (macro)"]
