"""The figures of a study: drawn whole, said why where they cannot be, and nothing left open."""

from __future__ import annotations

import io
import math
import random
from datetime import datetime, timedelta

import matplotlib.pyplot as plt
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from kd_mlflow.search.figures import study_figures

RANGES = {
    "temperature": FloatDistribution(1, 20, log=True),
    "alpha": FloatDistribution(0, 1),
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "method": CategoricalDistribution(["kd", "dkd"]),
    "dkd-beta": FloatDistribution(0.5, 8, log=True),
}
NAMES = ["val/accuracy"]
ALL = {
    *("optimisation_history", "parameter_importances", "slice", "parallel_coordinates"),
    *("contour", "intermediate_values", "timeline"),
}


def study_of(trials: int, names=tuple(RANGES), objectives: int = 1) -> optuna.Study:
    draw = random.Random(3)
    study = optuna.create_study(directions=["maximize", "minimize"][:objectives], study_name="photos")
    for number in range(trials):
        values = {
            "temperature": 20 ** draw.random(),
            "alpha": draw.random(),
            "learning_rate": 10 ** (-5 + 4 * draw.random()),
            "method": draw.choice(["kd", "dkd"]),
            "dkd-beta": 0.5 * 16 ** draw.random(),
        }
        params = {name: values[name] for name in names if name != "dkd-beta" or values["method"] == "dkd"}
        value = 0.8 + 0.1 * values["alpha"] - 0.02 * abs(math.log10(values["learning_rate"]) + 3)
        state = [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL][number % 4]
        state = TrialState.COMPLETE if objectives > 1 else state
        steps = {step: value * step / 9 for step in range(1, 9 if state == TrialState.COMPLETE else 3)}
        trial = create_trial(
            state=state,
            params=params,
            distributions={name: RANGES[name] for name in params},
            values=[value, draw.random()][:objectives] if state == TrialState.COMPLETE else None,
            intermediate_values=steps if objectives == 1 else {},
        )
        trial.datetime_start = datetime(2026, 1, 1) + timedelta(minutes=number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=50)
        study.add_trial(trial)
    return study


def is_a_picture(png: bytes) -> bool:
    image = Image.open(io.BytesIO(png)).convert("L")
    return min(image.size) > 300 and max(image.size) < 3000 and len(set(image.resize((200, 200)).getdata())) > 10


@pytest.mark.parametrize("names", [tuple(RANGES), ("temperature", "alpha", "learning_rate")])
def test_every_figure_is_a_picture_and_stands_on_the_page(names):
    figures = study_figures(study_of(24, names), NAMES)
    assert figures.pngs.keys() == ALL
    assert not figures.missing
    assert all(map(is_a_picture, figures.pngs.values()))
    assert all(f'id="{name}"' in figures.page for name in ALL)
    assert "src=" not in figures.page.split("</script>")[-1]
    assert "cdn." not in figures.page.split("</script>", 1)[1]
    assert len(figures.page) < 6e6
    assert not plt.get_fignums()


def test_the_same_study_gives_the_same_pictures():
    study = study_of(16)
    assert study_figures(study, NAMES).pngs == study_figures(study, NAMES).pngs


def test_a_pareto_set_and_each_objective_have_their_figures():
    names = ["val/accuracy", "efficiency/latency_ms_b1_median"]
    figures = study_figures(study_of(12, objectives=2), names)
    assert {"pareto_front", "slice_val_accuracy", "slice_efficiency_latency_ms_b1_median", "timeline"} <= set(
        figures.pngs
    )
    assert all(map(is_a_picture, figures.pngs.values()))


@pytest.mark.parametrize(
    ("trials", "names", "missing"),
    [
        (0, tuple(RANGES), ALL - {"timeline"}),
        (1, ("alpha",), {"parameter_importances", "parallel_coordinates", "contour"}),
        (12, ("alpha",), {"parameter_importances", "contour"}),
    ],
)
def test_what_cannot_be_drawn_says_why(trials, names, missing):
    figures = study_figures(study_of(trials, names), NAMES)
    assert figures.missing.keys() >= missing
    assert figures.missing.keys() | figures.pngs.keys() == ALL
    assert all(reason.startswith("It ") for reason in figures.missing.values())
