"""Any text for --search and any file for --space gives a space or one sentence, and a space comes back from JSON."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from kd_mlflow.config import SearchConfig
from kd_mlflow.errors import InputError
from kd_mlflow.search.space import MAX_POINTS, Space
from kd_mlflow.search.terms import SEARCHED, resolve_space
from tests.fuzz.sentences import one_sentence

NAMES = some.sampled_from([*SEARCHED, "dkd-beta", "kd-temperature", "batch-size", "data"]) | some.text(max_size=5)
NUMBERS = some.integers() | some.floats() | some.booleans() | some.none() | some.text(max_size=4)
RANGES = some.fixed_dictionaries(
    {}, optional={name: NUMBERS for name in ("low", "high", "log", "step", "points", "other")}
)
SPECS = NUMBERS | RANGES | some.lists(NUMBERS, max_size=3)
PARTS = some.lists(some.sampled_from(["1", "2", "1e-5", "-1", "nan", "inf", "1e999", "kd", "log", "step=1", "step=1e-9",
                                      "points=9", "points=1e9", "", "x"]), max_size=5)  # fmt: skip


def resolved(**given) -> Space | None:
    try:
        space, config = resolve_space(SearchConfig(**given))
        grid = space.grid(config.method)
    except InputError as error:
        one_sentence(error)
        return None
    assert 1 <= len(grid) <= MAX_POINTS
    return space


def check(space: Space | None) -> None:
    if space is None:
        return
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert space.holds(space.suggest(study.ask(), "kd"))


@pytest.mark.fault("any text for --search, any file for --space", "a space or one sentence; never a grid without end")
@given(name=NAMES, parts=PARTS)
def test_any_term_is_a_space_or_one_sentence(name, parts):
    check(resolved(search=(f"{name}={':'.join(parts)}", "temperature=1:3")))
    check(resolved(search=(f"{name}={','.join(parts)}", "temperature=1:3")))


@given(some.text(max_size=30))
def test_any_text_is_a_space_or_one_sentence(text):
    check(resolved(search=text))


@given(some.dictionaries(NAMES, SPECS, max_size=3))
def test_any_file_is_a_space_or_one_sentence(content):
    with TemporaryDirectory() as folder:
        file = Path(folder) / "space.yaml"
        file.write_text(yaml.dump(content, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
        check(resolved(space=str(file)))


@pytest.mark.parametrize(
    "search",
    ["temperature=1:2:points=1000000000", "temperature=1:2:step=1e-12",
     "temperature=1:2:points=1000 alpha=0:1:points=1000 learning_rate=1e-3:1:points=1000"],
)  # fmt: skip
def test_a_grid_without_end_is_refused(search):
    def points() -> int:
        space, config = resolve_space(SearchConfig(search=search))
        return len(space.grid(config.method))

    with pytest.raises(InputError, match=f"more than {MAX_POINTS} points"):
        points()
