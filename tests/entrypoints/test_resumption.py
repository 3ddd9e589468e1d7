"""`--resume` without a run to go on with says so, and which run comes next and in what it differs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kd_mlflow.config import CompareConfig, DistillConfig, StudentConfig, resolve
from kd_mlflow.entrypoints.resumption import nothing_to_resume
from kd_mlflow.entrypoints.runs import open_run
from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter, find_runs

KEY = ("kd.request", "asked")
OPTIONS = {"data": "photos", "image_size": 32, "epochs": 3, "tracking_uri": "sqlite:///somewhere.db"}


@pytest.fixture
def session(place, monkeypatch):
    """As much of a session as the opening of a run looks at."""
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(place.path)
    said: list[str] = []
    return SimpleNamespace(
        client=connect(place.uri),
        store=SimpleNamespace(digest="pixels"),
        terminal=SimpleNamespace(warn=said.append, say=said.append),
        said=said,
        experiment="photos",
        checkpoint_root=place.home / "checkpoints",
        checkpoints=lambda run_id: place.home / "checkpoints" / run_id,
    )


def make_run(session, role, config, status="FINISHED", key="other", **tags):
    writer = RunWriter.open(session.client, role=role, experiment="photos", run_name="r",
                            tags={KEY[0]: key, "kd.dataset_digest": "pixels", **tags})  # fmt: skip
    writer.params(config.recorded())
    writer.finish(status)
    return writer.run_id


@pytest.mark.parametrize(
    ("role", "model"), [("student", DistillConfig), ("control", StudentConfig), ("compare", CompareConfig)]
)
def test_the_most_similar_run_is_named_with_what_differs(session, role, model):
    asked = resolve(model, OPTIONS)
    assert nothing_to_resume(session, role, KEY, asked) == (
        f"--resume finds no run of role {role} to go on with, so a new one begins."
    )
    make_run(session, role, resolve(model, {**OPTIONS, "epochs": 9, "seed": 5, "learning_rate": 0.5}))
    near = make_run(session, role, resolve(model, {**OPTIONS, "epochs": 2, "experiment": "elsewhere"}), "KILLED")
    make_run(session, role, asked, **{"mlflow.parentRunId": near})
    assert nothing_to_resume(session, role, KEY, asked) == (
        f"--resume finds no run of these options, so a new one begins: the most similar, {near} (KILLED), differs in "
        "--epochs (2, now 3)."
    )
    same = make_run(session, role, asked, key=KEY[1])
    assert nothing_to_resume(session, role, KEY, asked) == (
        f"--resume finds no unfinished run of these options, so a new one begins: run {same} is finished."
    )


def test_other_images_other_code_and_options_of_a_method_are_told(session):
    asked = resolve(DistillConfig, {**OPTIONS, "method": "dkd", "method_options": {"beta": 2.0}})
    old = make_run(
        session, "student", resolve(DistillConfig, {**OPTIONS, "method": "dkd"}), **{"kd.dataset_digest": "x"}
    )
    said = nothing_to_resume(session, "student", KEY, asked)
    assert f"{old} (FINISHED), differs in " in said
    assert "--beta (not given, now 2.0)" in said
    assert "the images of the data" in said
    make_run(session, "student", asked)
    assert nothing_to_resume(session, "student", KEY, asked).endswith("differs in the code, or the content of a file "
                                                                      "that an option names.")  # fmt: skip


def test_only_the_run_of_the_command_says_that_nothing_was_resumed(session):
    config = resolve(DistillConfig, OPTIONS)
    for owner, said in ((False, 0), (True, 1)):
        with open_run(session, "student", KEY, resume="newest", owner=owner, name="s", config=config) as writer:
            writer.tags({KEY[0]: "another"})
        assert len(session.said) == said
    with open_run(session, "student", KEY, resume=None, owner=True, name="s", config=config):
        assert len(session.said) == 1


def test_a_run_of_other_options_is_refused_with_what_differs(session):
    asked = resolve(DistillConfig, OPTIONS)
    run_id = make_run(session, "student", resolve(DistillConfig, {**OPTIONS, "epochs": 7}), "KILLED")
    for role, said in (
        ("student", r"differs in --epochs \(7, now 3\)"),
        ("compare", "is of role student, and this command writes one of role compare"),
    ):
        run = open_run(session, role, KEY, resume=run_id, owner=True, name="s", config=asked)
        with pytest.raises(InputError, match=f"Run {run_id} .*{said}"), run:
            pass
    (run,) = find_runs(session.client, tags={})
    assert run.status == "KILLED"
