"""What the figures of a study bear: large studies, trials without parameters, equal values, and a page alone."""

from __future__ import annotations

import math
import random
import re
import warnings
from datetime import datetime, timedelta

import matplotlib.pyplot as plt
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from plotly.offline import get_plotlyjs

from kd_mlflow.search.figures import study_figures

SPACE = {
    "temperature": FloatDistribution(1, 20, log=True),
    "alpha": FloatDistribution(0, 1),
    "depth": IntDistribution(1, 6),
    "method": CategoricalDistribution(["kd", "dkd", "$\\frac"]),
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "batch_size": IntDistribution(16, 512, log=True),
}
NAME = "efficiency/latency_ms_b1_median"


def drawn(draw: random.Random, distribution) -> float | int | str:
    if isinstance(distribution, CategoricalDistribution):
        return draw.choice(distribution.choices)
    if not distribution.log:
        value = draw.uniform(distribution.low, distribution.high)
    else:
        value = math.exp(draw.uniform(math.log(distribution.low), math.log(distribution.high)))
    return int(value) if isinstance(distribution, IntDistribution) else value


def study_of(trials: int, names=tuple(SPACE), value=None, without: int = 0, objectives: int = 1) -> optuna.Study:
    """Every trial complete; the first ``without`` have no parameters."""
    draw = random.Random(5)
    study = optuna.create_study(directions=["minimize"] * objectives, study_name="</script><b>photos")
    for number in range(trials):
        params = {} if number < without else {name: drawn(draw, SPACE[name]) for name in names}
        values = [draw.random() if value is None else value for _ in range(objectives)]
        trial = create_trial(
            params=params,
            distributions={name: SPACE[name] for name in params},
            values=values,
            constraints={"size": number % 3 - 1},
        )
        trial.datetime_start = datetime(2026, 1, 1) + timedelta(minutes=number)
        trial.datetime_complete = trial.datetime_start + timedelta(seconds=50)
        study.add_trial(trial)
    return study


@pytest.fixture(scope="module")
def large():
    return study_figures(study_of(300), [NAME])


def test_the_page_of_a_large_study_stays_small(large):
    assert large.missing.keys() == {"intermediate_values"}
    assert len(large.page) < 6e6


def test_the_page_needs_no_network_and_holds_plotly_once(large):
    assert large.page.count(get_plotlyjs()) == 1
    rest = large.page.replace(get_plotlyjs(), "")
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)=", rest)
    assert "&lt;/script&gt;" in rest


def test_every_figure_on_the_page_has_a_heading_and_a_sentence(large):
    rest = large.page.replace(get_plotlyjs(), "")
    assert len(re.findall(r"<h2>[^<]+</h2>\n<p>[^<]+\.</p>", rest)) == len(large.pngs)


def test_trials_without_parameters_leave_the_others_comparable():
    figures = study_figures(study_of(9, without=1), [NAME])
    assert figures.missing.keys() == {"intermediate_values"}


@pytest.mark.parametrize("value", [0.5, 0.0, math.inf])
def test_trials_that_are_all_alike_give_reasons_and_no_error(value):
    figures = study_figures(study_of(6, value=value), [NAME])
    assert all(re.fullmatch(r"It needs .*\.", reason) for reason in figures.missing.values())
    assert "parameter_importances" in figures.missing
    assert ("slice" in figures.pngs) == math.isfinite(value)


def test_running_and_waiting_trials_are_borne():
    study = optuna.create_study()
    study.enqueue_trial({"alpha": 0.5})
    study.enqueue_trial({"alpha": 0.7})
    study.ask(SPACE)
    figures = study_figures(study, [NAME])
    assert figures.pngs.keys() == {"timeline"}


@pytest.mark.parametrize("objectives", [3, 4])
def test_more_than_two_objectives(objectives):
    names = [f"val/{place}" for place in range(objectives)]
    figures = study_figures(study_of(8, ("alpha", "depth"), objectives=objectives), names)
    assert not figures.missing
    assert {"pareto_front", *(f"slice_val_{place}" for place in range(objectives))} < figures.pngs.keys()


def test_nothing_reaches_the_terminal_and_nobodys_settings_change(capfd):
    study, level = study_of(6, ("alpha", "depth")), optuna.logging.get_verbosity()
    plt.figure(7)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study_figures(study, [NAME])
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == level
    assert plt.get_fignums() == [7]
    plt.close(7)


def test_state_of_pruned_trials_is_told_where_no_trial_is_complete():
    study = optuna.create_study()
    study.add_trial(create_trial(state=TrialState.PRUNED, intermediate_values={1: 0.3}))
    assert study_figures(study, [NAME]).pngs.keys() == {"intermediate_values", "timeline"}
