"""A file of options of any content gives options or one sentence; options that hold come back from their YAML."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from kd_mlflow.config import COMMANDS, CompareConfig, DistillConfig, resolve, to_yaml
from kd_mlflow.errors import InputError
from tests.fuzz.sentences import one_sentence

NAMES = some.sampled_from(sorted(DistillConfig.model_fields)) | some.text(max_size=6)
SCALARS = (
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=9) | some.dates()
    | some.binary(max_size=4)
)  # fmt: skip
VALUES = some.recursive(SCALARS, lambda inner: some.lists(inner) | some.dictionaries(SCALARS, inner), max_leaves=6)


def read(content: str | bytes, command: str = "distill"):
    with TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        try:
            return resolve(COMMANDS[command], {}, None, file)
        except InputError as error:
            one_sentence(error)
            return None


@pytest.mark.fault("a configuration of any content", "options, or one sentence")
@given(content=some.dictionaries(NAMES, VALUES, max_size=4), command=some.sampled_from(sorted(COMMANDS)))
def test_any_values_are_options_or_one_sentence(content, command):
    config = read(yaml.dump(content, allow_unicode=True), command)
    # Without the places, which are not written down.
    assert config is None or read(to_yaml(config), command).recorded() == config.recorded()


@given(some.text(max_size=60) | some.binary(max_size=60))
def test_any_text_is_options_or_one_sentence(content):
    config = read(content)
    assert config is None or read(to_yaml(config)) == config


@given(
    some.fixed_dictionaries(
        {},
        optional={
            "data": some.text(min_size=1, max_size=20),
            "epochs": some.integers(1, 10**6),
            "learning_rate": some.floats(1e-30, 1e30),
            "temperature": some.floats(1e-6, 1e6),
            "milestones": some.tuples(some.integers(0, 100)),
            "flip": some.booleans(),
            "teacher_epochs": some.none() | some.integers(1, 9),
            "student": some.text(max_size=20),
            "method_options": some.dictionaries(some.text(max_size=5), some.integers(-9, 9) | some.text(max_size=5)),
        },
    )
)
def test_options_that_hold_come_back_from_their_yaml(given_options):
    config = resolve(DistillConfig, given_options, "paper")
    assert read(to_yaml(config)) == config


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(12)
)


@pytest.mark.fault("YAML that runs code, unfolds without end or is nested without end", "refused in a sentence")
@pytest.mark.parametrize(
    "content",
    [
        BOMB + "epochs: *m\n",
        "epochs: &e [*e]\n",
        "[" * 50_000,
        "a: " * 50_000,
        "epochs: 2001-99-99",
        "epochs: !!timestamp x",
        "method_options: {when: 2001-01-01}",
        "epochs: 0x" + "f" * 9000,
        "epochs: " + "9" * 9000,
        'data: "\\ud800"',
        "method: [kd]\ntemperature: 3",
        "method_options: [1]",
        "x" * 2**19,
        "data: !!python/object/apply:os.system [echo]",
        "data: !!python/name:os.system",
    ],
    ids=lambda content: content[:25],
)
def test_what_no_person_writes_is_refused_in_one_sentence(content, tmp_path):
    for model in (DistillConfig, CompareConfig):
        (tmp_path / "options.yaml").write_text(content)
        with pytest.raises(InputError) as caught:
            resolve(model, {}, None, tmp_path / "options.yaml")
        one_sentence(caught.value)
        assert len(str(caught.value)) < 1000


def test_a_value_that_stands_twice_by_reference_is_read(tmp_path):
    (tmp_path / "options.yaml").write_text("epochs: &n 3\nteacher-epochs: *n\n")
    config = resolve(DistillConfig, {}, None, tmp_path / "options.yaml")
    assert (config.epochs, config.teacher_epochs) == (3, 3)
