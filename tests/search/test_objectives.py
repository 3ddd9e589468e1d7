"""Objectives and constraints: names, directions, and what is refused."""

from __future__ import annotations

import pytest

from kd_mlflow.entrypoints.trials import known_metrics
from kd_mlflow.errors import InputError
from kd_mlflow.search.objectives import parse_constraints, parse_objectives


@pytest.mark.parametrize(
    ("asked", "direction"),
    [
        ("val/accuracy", "maximize"),
        ("val/macro_f1", "maximize"),
        ("val/teacher_agreement", "maximize"),
        ("val/loss", "minimize"),
        ("val/negative_log_likelihood", "minimize"),
        ("val/calibration_error", "minimize"),
        ("val/teacher_kl", "minimize"),
        ("efficiency/latency_ms_b1_median", "minimize"),
        ("efficiency/throughput_images_per_s", "maximize"),
        ("efficiency/parameters_total", "minimize"),
        ("efficiency/flops", "minimize"),
        ("efficiency/training_seconds", "minimize"),
        ("val/accuracy:min", "minimize"),
    ],
)
def test_every_metric_of_a_trial_has_its_plain_direction(asked, direction):
    (found,) = parse_objectives([asked], known_metrics())
    assert (found.name, found.direction) == (asked.partition(":")[0], direction)


@pytest.mark.parametrize(
    ("text", "below", "excess"),
    [("efficiency/flops<5e6", True, -1e6), ("efficiency/flops<=3e6", True, 1e6), ("efficiency/flops>3e6", False, -1e6)],
)
def test_a_constraint_knows_by_how_much_it_is_exceeded(text, below, excess):
    (found,) = parse_constraints([text], known_metrics())
    assert (found.below, found.excess(4e6)) == (below, excess)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_objectives, "val/nothing"),
        (parse_objectives, "test/accuracy"),
        (parse_objectives, "val/accuracy:up"),
        (parse_constraints, "val/accuracy"),
        (parse_constraints, "val/accuracy<good"),
        (parse_constraints, "val/accuracy<1e"),
        (parse_constraints, "nothing<1"),
    ],
)
def test_what_is_refused(parse, text):
    with pytest.raises(InputError):
        parse([text], known_metrics())
