"""What a store from strangers holds: no code of it runs, no size of it is believed, no name of it leads elsewhere."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from mlflow import MlflowClient
from torch import Tensor

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.encode import table_csv
from kd_mlflow.tracking.flavor import newest_model
from kd_mlflow.tracking.registry import champion, run_model
from tests.fuzz.sentences import one_sentence
from tests.tracking.helpers import TinyNet, log_run, register_run, write_model

ODD = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=9),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(max_size=9) | some.just("digests"), inner),
)


def stored(client: MlflowClient, run_id: str) -> Path:
    return Path(newest_model(client, run_id).artifact_location)


@pytest.fixture
def run_id(client: MlflowClient, trained: tuple[Path, TinyNet]) -> str:
    return log_run(client, trained[0])


@pytest.mark.fault("a stored model.json of any content", "one sentence, and nothing is left behind")
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=ODD | some.fixed_dictionaries({"digests": ODD}) | some.binary(max_size=30))
def test_a_description_of_any_content_is_one_sentence(client, run_id, tmp_path, content):
    file = stored(client, run_id) / "data" / "model.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError) as caught:
        run_model(client, run_id, tmp_path / "here" / "pulled")
    one_sentence(caught.value)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("content", ["[" * 100_000, '{"digests": ' * 20_000])
def test_a_description_nested_without_end_is_one_sentence(client, run_id, tmp_path, content):
    (stored(client, run_id) / "data" / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json that kd-mlflow did not write"):
        run_model(client, run_id, tmp_path / "pulled")


@pytest.mark.fault("a stored file that is larger than there is room for", "not fetched; both figures are said")
@pytest.mark.parametrize(("name", "size"), [("model.json", 2**25), ("model.safetensors", 2**42)])
def test_a_file_without_room_for_it_is_not_fetched(client, run_id, tmp_path, name, size):
    with (stored(client, run_id) / "data" / name).open("r+b") as file:
        file.truncate(size)
    with pytest.raises(InputError, match=rf"{name}.*there is room for"):
        run_model(client, run_id, tmp_path / "pulled")


TRAP = "from pathlib import Path\nPath('trap').touch()\n"


def other_loader(model: Path) -> None:
    (file,) = (model / "code").iterdir()
    file.write_text(TRAP + file.read_text())


def another_file(model: Path) -> None:
    (model / "code" / "torch.py").write_text(TRAP)


def another_module(model: Path) -> None:
    (model / "code" / "evil.py").write_text(TRAP)
    content = yaml.safe_load((model / "MLmodel").read_text())
    content["flavors"]["python_function"]["loader_module"] = "evil"
    (model / "MLmodel").write_text(yaml.safe_dump(content))


def code_of_pytorch(model: Path) -> None:
    content = yaml.safe_load((model / "MLmodel").read_text())
    content["flavors"]["pytorch"]["code"] = "data"
    (model / "MLmodel").write_text(yaml.safe_dump(content))


def yaml_that_runs(model: Path) -> None:
    (model / "MLmodel").write_text(
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [trap]]"
    )


@pytest.mark.fault("code of a logged model is altered in the artifact store", "not registered; the code is not run")
@pytest.mark.parametrize("harm", [other_loader, another_file, another_module, code_of_pytorch, yaml_that_runs])
def test_altered_code_in_the_store_is_not_run(client, run_id, trained, images: Tensor, harm):
    harm(stored(client, run_id))
    with pytest.raises(KdMlflowError, match="is not registered: the stored model"):
        register_run(client, run_id, trained, images)
    assert not Path("trap").exists()
    assert champion(client, "photos-student") is None


def _pull(uri: str, run_id: str, dest: Path) -> None:
    run_model(connect(uri), run_id, dest)


@pytest.mark.fault("two pull into one folder at once", "one of them is there whole, and nothing beside it")
def test_two_that_pull_into_one_folder_leave_one_whole(client, trained, tmp_path):
    write_model(tmp_path / "source", seed=3)
    runs = [log_run(client, trained[0]), log_run(client, tmp_path / "source")]
    context = multiprocessing.get_context("fork")
    place = tmp_path / "here" / "pulled"
    both = [context.Process(target=_pull, args=(client.tracking_uri, run_id, place)) for run_id in runs * 2]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0] * 4
    assert [path.name for path in place.parent.iterdir()] == ["pulled"]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (trained[0], tmp_path / "source")]
    digests = json.loads((place / "model.json").read_text())["digests"]
    assert (place / "model.safetensors").read_bytes() in weights
    assert set(digests) == {"model.safetensors", "model.pt2"}
    run_model(client, runs[0], place)


@pytest.mark.parametrize("cell", ["=1+1", " =1+1", "\n=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "＠x"])
def test_no_text_is_a_formula(cell):
    assert table_csv([{"class": cell}]).splitlines()[1].lstrip('"').startswith("'")
