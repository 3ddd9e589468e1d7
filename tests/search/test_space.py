"""The space: what may be searched, what is refused, and what a trial of each method has."""

from __future__ import annotations

import optuna
import pytest

from kd_mlflow.config import SearchConfig
from kd_mlflow.errors import InputError
from kd_mlflow.search.space import Space, report_values
from kd_mlflow.search.terms import resolve_space


def resolved(**given):
    return resolve_space(SearchConfig(**given))


def ranges(space: Space) -> dict[str, str]:
    return {one.name: str(one) for one in space.parameters}


def test_by_default_temperature_alpha_and_learning_rate_are_searched():
    assert ranges(resolved()[0]) == {
        "temperature": "temperature=1:20:log",
        "alpha": "alpha=0:1",
        "learning_rate": "learning_rate=1e-05:0.1:log",
    }


def test_search_changes_adds_and_fixes():
    space, config = resolved(search="temperature=2:8 batch-size=32,64 alpha=0.5 warmup_epochs=0:2:step=1")
    assert ranges(space) == {
        "temperature": "temperature=2:8",
        "learning_rate": "learning_rate=1e-05:0.1:log",
        "batch_size": "batch_size=32,64",
        "warmup_epochs": "warmup_epochs=0:2:step=1",
    }
    assert config.alpha == 0.5
    assert {type(value) for one in space.parameters if one.name == "batch_size" for value in one.choices} == {int}


def test_a_file_is_the_whole_space_and_search_comes_on_top(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("alpha: {low: 0.2, high: 0.8}\nmethod: [kd, dkd]\ndkd-beta: {low: 0.5, high: 8, log: true}\n")
    space, _ = resolved(space=str(file), search="alpha=0.3:0.4")
    assert ranges(space) == {"alpha": "alpha=0.3:0.4", "method": "method=kd,dkd", "dkd-beta": "dkd-beta=0.5:8:log"}
    assert Space.from_json(space.to_json()) == space


def test_a_methods_parameters_belong_to_its_trials_alone():
    space, config = resolved(search="method=kd,dkd,pkt dkd-beta=0.5:8:log")
    assert space.conditional
    assert space.names("kd") == ["temperature", "alpha", "learning_rate", "method"]
    assert space.names("dkd") == ["temperature", "learning_rate", "method", "dkd-beta"]
    assert space.names("pkt") == ["learning_rate", "method"]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = {}
    for _ in range(20):
        values = space.suggest(study.ask(), config.method)
        seen[values["method"]] = set(values)
    assert {method: names - {"method"} for method, names in seen.items()} == {
        method: set(space.names(method)) - {"method"} for method in ("kd", "dkd", "pkt")
    }


def test_values_become_the_options_of_a_distillation():
    _, config = resolved(search="method=kd,dkd dkd-beta=0.5:8", method="kd", method_options={"temperature": 3})
    cell = config.trial({"method": "dkd", "dkd-beta": 2.0, "learning_rate": 0.01}, seed=5)
    assert (cell.method, cell.method_options, cell.learning_rate, cell.seed) == ("dkd", {"beta": 2.0}, 0.01, 5)
    assert config.trial({}, seed=0).method_options == {"temperature": 3}


@pytest.mark.parametrize(
    ("given", "values", "inside"),
    [
        ({}, {"temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3}, True),
        ({"search": "temperature=5:20"}, {"temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3}, False),
        (
            {"search": "method=kd,dkd dkd-beta=1:8 batch-size=32,64", "batch_size": 64},
            {"temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3, "method": "kd", "batch_size": 64},
            True,
        ),
        (
            {"search": "batch-size=16,32"},
            {"temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3, "batch_size": 64},
            False,
        ),
    ],
)
def test_the_values_of_the_report(given, values, inside):
    space, config = resolved(**given)
    assert report_values(space, config) == values
    assert space.holds(values) is inside


def test_the_points_of_a_grid():
    space, config = resolved(search="temperature=1:16:log:points=5 alpha=0:1:step=0.5 learning_rate=1e-3,1e-2")
    points = space.grid(config.method)
    assert sorted({point["temperature"] for point in points}) == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert sorted({point["alpha"] for point in points}) == [0.0, 0.5, 1.0]
    assert len(points) == len({tuple(point.items()) for point in points}) == 30


@pytest.mark.parametrize(
    ("search", "sentence"),
    [
        ("temperature=1:2:3", "'3' is none of log, step=NUMBER, points=NUMBER"),
        ("temperature=-1:2:log", "cannot begin at -1"),
        ("temperature=1:8:log:step=1", "does not go with log"),
        ("batch-size=8:1.5", "is not a whole number"),
        ("optimizer=rmsprop,adam", "'adam', 'adamw' or 'sgd'"),
        ("epochs=1:5", "'epochs' cannot be searched"),
        ("seed=1:5", "'seed' cannot be searched"),
        ("method=kd,nothing", "There is no method 'nothing'"),
        ("method=kd,dkd dkd-gamma=1:2", "'dkd-gamma' cannot be searched"),
        ("method=kd,dkd dkd-beta=-5:2", "greater than or equal to 0"),
        ("method=kd,dkd dkd-beta=2", "has one value and belongs to one of several methods"),
        ("method=pkt,crd alpha=0.1:0.9", "none of the methods pkt, crd has a --alpha"),
        ("temperature=4 alpha=0.7 learning_rate=0.001", "at least one range"),
    ],
)
def test_what_cannot_be_searched(search, sentence):
    with pytest.raises(InputError) as caught:
        resolved(search=search)
    assert sentence in str(caught.value)
