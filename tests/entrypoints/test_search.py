"""`search`: real trials on real images; what the study and the store of runs hold afterwards."""

from __future__ import annotations

import csv
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kd_mlflow.config import SearchConfig, WorkerConfig, resolve
from kd_mlflow.entrypoints.search import search, stop_study
from kd_mlflow.entrypoints.search_worker import work
from kd_mlflow.entrypoints.show import study_stopped
from kd_mlflow.entrypoints.studies import new_study_note
from kd_mlflow.entrypoints.trials import _EveryEpoch
from kd_mlflow.errors import InputError
from kd_mlflow.search.study import TOTAL, SearchStudy
from kd_mlflow.search.worker import Hopeless
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.records import download
from kd_mlflow.tracking.runs import find_runs, history, read_json, read_run
from kd_mlflow.training.checkpoint import EpochRow
from tests.conftest import QUICK, TINY, Place, make_place

OPTIONS = {"teacher_arch": TINY, "student": TINY, "image_size": 32, "batch_size": 8, "epochs": 2, "final_seeds": 0}


def configured(place: Place, photos: Path, **given) -> SearchConfig:
    places = {"data": str(photos), "tracking_uri": place.uri, "storage": f"sqlite:///{place.path}/optuna.db"}
    return resolve(SearchConfig, {**places, **OPTIONS, **given})


@pytest.fixture
def config(place, photos, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    return lambda **given: configured(place, photos, **given)


def trials_of(place: Place, study: str):
    return SearchStudy.load(f"sqlite:///{place.path}/optuna.db", study).ledger().trials


def runs_of(place: Place, study: str):
    return find_runs(connect(place.uri), tags={"kd.study": study}, role="trial")


@pytest.fixture(scope="module")
def searched(tmp_path_factory, photos):
    """A whole search on the command line: six trials, then two fresh seeds."""
    place = make_place(tmp_path_factory.mktemp("search") / "place")
    options = ["--data", str(photos), *QUICK, "--epochs", "4", "--trials", "6", "--final-seeds", "2", "--json"]
    return place, json.loads(place.run("search", *options, "--search", "batch-size=8,16"))


def test_every_trial_is_a_run_below_the_run_of_the_search(searched):
    place, result = searched
    client = connect(place.uri)
    parent = read_run(client, result["run_id"])
    assert (parent.role, parent.status, result["ending"]) == ("search", "FINISHED", "done")
    runs = runs_of(place, result["study"])
    assert {run.tags["mlflow.parentRunId"] for run in runs} == {result["run_id"]}
    assert sorted(int(run.tags["kd.trial"]) for run in runs) == list(range(6))
    states = {trial.number: trial.state.name for trial in trials_of(place, result["study"])}
    for run in runs:
        state = states[int(run.tags["kd.trial"])]
        assert run.status == {"COMPLETE": "FINISHED", "PRUNED": "KILLED"}[state]
        if state == "PRUNED":
            epochs = len(history(client, run.run_id, ["val/accuracy"])["val/accuracy"])
            assert int(run.tags["kd.pruned_epoch"]) == epochs < 4
            assert run.tags["kd.reason"].startswith(f"pruned after epoch {epochs} at ")
        else:
            assert run.metrics["best/accuracy"] == max(v for _, v in history(client, run.run_id)["val/accuracy"])
            assert not any(name.startswith("test/") for name in run.metrics)


def test_the_first_trial_has_the_values_of_the_source_report(searched):
    place, result = searched
    first = trials_of(place, result["study"])[0]
    assert first.params == {"temperature": 4.0, "alpha": 0.7, "learning_rate": 1e-3, "batch_size": 8}
    run = next(run for run in runs_of(place, result["study"]) if run.tags["kd.trial"] == "0")
    assert (run.params["cfg.temperature"], run.params["cfg.alpha"]) == ("4.0", "0.7")
    assert run.params["cfg.learning_rate"] == "0.001"


def test_the_best_is_trained_again_on_fresh_seeds_and_registered(searched):
    place, result = searched
    finals = result["finals"]
    assert {run["seed"] for run in finals["runs"]} == {1, 2}
    assert {run["candidate"] for run in finals["runs"]} >= {"control", "defaults"}
    client = connect(place.uri)
    for run in finals["runs"]:
        assert read_run(client, run["run_id"]).metrics["test/accuracy"] == run["test/accuracy"]
    winner = finals["winner"]
    assert finals["means"][winner] == max(finals["means"].values())
    own = [run for run in finals["runs"] if run["candidate"] == winner]
    version = client.get_model_version_by_alias("photos-student", "champion")
    assert version.run_id == max(own, key=lambda run: (run["val/accuracy"], -run["seed"]))["run_id"]


def test_the_record_of_the_search_is_whole(searched, tmp_path):
    place, result = searched
    client = connect(place.uri)
    folder = download(client, result["run_id"], "", tmp_path)
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["number"] for row in rows] == list("012345")
    assert {"temperature", "alpha", "learning_rate", "batch_size", "val/accuracy", "run"} <= rows[0].keys()
    for name in ("optimisation_history", "slice", "timeline", "parallel_coordinates", "intermediate_values"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 3000, name
    page = (folder / "figures" / "study.html").read_text()
    assert page.lower().count("<html") == 1
    assert 'src="http' not in page
    report = (folder / "report.html").read_text()
    assert result["finals"]["verdict"].split(":")[0].replace("'", "&#x27;") in report
    assert read_json(client, result["run_id"], "search.json")["status"]["trials"]["finished"] == 6


def test_the_best_configuration_repeats_the_registered_student(searched, tmp_path):
    place, result = searched
    client = connect(place.uri)
    file = download(client, result["run_id"], "best.yaml", tmp_path)
    repeated = json.loads(place.run("distill", "--config", str(file), "--no-control", "--no-register-model", "--json"))
    version = client.get_model_version_by_alias("photos-student", "champion")
    registered = read_run(client, version.run_id)
    again = read_run(client, repeated["run_id"])
    assert again.tags["kd.weights_digest"] == registered.tags["kd.weights_digest"]


def test_a_study_is_widened_under_the_same_run(config, place):
    first = search(config(trials=2))
    assert first.trials["finished"] == 2
    wider = search(config(trials=4))
    assert (wider.study, wider.run_id) == (first.study, first.run_id)
    assert [trial.number for trial in trials_of(place, first.study)] == [0, 1, 2, 3]
    again = search(config(trials=4))
    assert again.trials["finished"] == 4
    assert len(runs_of(place, first.study)) == 4
    assert read_run(connect(place.uri), first.run_id).status == "FINISHED"
    fewer = search(config(trials=3))
    assert (fewer.run_id, fewer.trials["finished"], fewer.trials["total"]) == (first.run_id, 4, 4)
    assert stop_study(config()) == {"study": first.study, "state": "finished"}
    assert study_stopped(stop_study(config())).endswith("there is nothing to stop.")


def test_equal_trials_are_trained_once(config, place):
    result = search(config(trials=5, sampler="random", search="temperature=4 alpha=0.7 learning_rate=0.001,0.01"))
    runs = runs_of(place, result.study)
    assert len(runs) == 5
    reused = [run for run in runs if "kd.reused_run_id" in run.tags]
    assert len(reused) == 3
    for run in reused:
        origin = read_run(connect(place.uri), run.tags["kd.reused_run_id"])
        assert origin.params["cfg.learning_rate"] == run.params["cfg.learning_rate"]
        assert run.metrics["best/accuracy"] == origin.metrics["best/accuracy"]


def test_a_grid_is_done_once_and_ends(config, place):
    result = search(
        config(trials=50, sampler="grid", pruner="none", search="temperature=2,4 alpha=0.5,0.7 learning_rate=0.001")
    )
    found = {(t.params["temperature"], t.params["alpha"]) for t in trials_of(place, result.study)}
    assert result.trials["total"] == len(trials_of(place, result.study)) == 4
    assert found == {(2.0, 0.5), (2.0, 0.7), (4.0, 0.5), (4.0, 0.7)}


def test_a_searched_augmentation_is_what_the_trial_sees(config, place):
    space = "temperature=4 alpha=0.7 learning_rate=0.001 augmentation=none,strong"
    result = search(config(trials=2, sampler="grid", pruner="none", search=space))
    losses = {run.params["cfg.augmentation"]: run.metrics["train/loss"] for run in runs_of(place, result.study)}
    assert len(losses) == len(set(losses.values())) == 2


def test_seeds_are_averaged_and_each_has_a_run_below_the_trial(config, place):
    result = search(config(trials=2, seeds=2))
    client = connect(place.uri)
    for trial in trials_of(place, result.study):
        above = read_run(client, trial.user_attrs["run_id"])
        below = [r for r in runs_of(place, result.study) if r.tags["mlflow.parentRunId"] == above.run_id]
        assert {run.tags["kd.seed"] for run in below} <= {"0", "1"}
        if trial.state.name == "COMPLETE":
            assert trial.value == pytest.approx(sum(run.metrics["best/accuracy"] for run in below) / 2)
            assert above.metrics["best/accuracy"] == pytest.approx(trial.value)


def test_two_objectives_give_a_pareto_set_without_pruning(config, place):
    result = search(
        config(
            trials=4,
            objectives="val/accuracy,efficiency/parameters_total",
            search="method=kd,dkd student=shufflenet_v2_x0_5,shufflenet_v2_x1_0",
            constraint="efficiency/latency_ms_b1_median<10000",
            method="kd",
            epochs=1,
        )
    )
    trials = trials_of(place, result.study)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert all(len(trial.values) == 2 for trial in trials)
    assert all(next(iter(trial.constraints.values())) < 0 for trial in trials)
    parameters = {trial.user_attrs["values"]["student"]: trial.values[1] for trial in trials}
    assert all(
        size == {"shufflenet_v2_x0_5": 344867, "shufflenet_v2_x1_0": 1256679, TINY: 267}[name]
        for name, size in parameters.items()
    )
    assert result.best["values"].keys() == {"val/accuracy", "efficiency/parameters_total"}


def test_a_trial_that_fails_counts_and_says_why(config, place):
    result = search(config(trials=3, search="learning_rate=1e25,1e26 temperature=4 alpha=0.5,0.6", sampler="random"))
    failed = [trial for trial in trials_of(place, result.study) if trial.state.name == "FAIL"]
    assert result.trials == {**result.trials, "finished": 3, "failed": 2, "complete": 1}
    for trial in failed:
        assert "The loss became" in trial.user_attrs["error"]
        run = read_run(connect(place.uri), trial.user_attrs["run_id"])
        assert run.status == "FAILED"
        assert "The loss became" in run.tags["kd.reason"]


@pytest.mark.slow
def test_the_search_is_the_same_however_often_it_is_stopped(photos, tmp_path):
    """Interrupted in the middle of trials, and taken up by the same command: the same numbers, values, results."""
    options = [*QUICK, "--data", str(photos), "--epochs", "20", "--trials", "6", "--final-seeds", "0", "--study", "one"]
    whole, stopped = make_place(tmp_path / "whole"), make_place(tmp_path / "stopped")
    for number in (signal.SIGINT, signal.SIGTERM):
        _stop_in_the_middle(stopped, options, number)
    results = []
    for place in (whole, stopped):
        place.run("search", *options)
        results.append(
            [
                (trial.number, trial.state, trial.params, trial.value, trial.intermediate_values)
                for trial in trials_of(place, "one")
            ]
        )
        assert {run.status for run in runs_of(place, "one")} <= {"FINISHED", "KILLED"}
    assert results[0] == results[1]


def _stop_in_the_middle(place: Place, options: list[str], number: signal.Signals) -> None:
    process = place.start("search", *options)
    before = _finished(place)
    _wait(lambda: _steps_of_running(place) > 3 and _finished(place) > before, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert not [run for run in runs_of(place, "one") if run.status == "RUNNING"]


def _finished(place: Place) -> int:
    return len([t for t in _known(place) if t.state.is_finished()])


def _steps_of_running(place: Place) -> int:
    return max((len(t.intermediate_values) for t in _known(place) if t.state.name == "RUNNING"), default=0)


def _known(place: Place):
    try:
        return trials_of(place, "one")
    except InputError:
        return []


def _wait(condition, process, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"search": "temperature=20:1"}, "must go up"),
        ({"search": "warmth=1:2"}, "'warmth' cannot be searched"),
        ({"search": "temperature"}, "write it as"),
        ({"search": "alpha=0:2"}, "less than or equal to 1"),
        ({"search": "dkd-beta=1:2"}, "the methods searched are kd"),
        ({"space": "nowhere.yaml"}, "Cannot read the space"),
        ({"objectives": "val/beauty"}, "there is no such metric"),
        ({"objectives": "test/accuracy"}, "nothing is chosen by the test split"),
        ({"constraint": "efficiency/flops"}, "write it as"),
        ({"storage": "postgresql://kd:secret@127.0.0.1:1/none"}, "cannot be used"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "there is no folder"),
        ({"storage": "mysql://host/x"}, "give sqlite:///FILE or postgresql"),
        ({"sampler": "cmaes", "search": "batch-size=8,16"}, "--sampler cmaes"),
        ({"sampler": "qmc", "search": "temperature=5:9"}, "without the report's temperature 4.0"),
        ({"pruner": "wilcoxon"}, "--seeds 5 or more"),
        ({"search": "method=kd,ofd", "student": "convnext_tiny"}, "OFD"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence_and_leaves_nothing(config, place, given, sentence):
    with pytest.raises(InputError) as caught:
        search(config(**given))
    assert sentence.lower() in str(caught.value).lower()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (place.path / "optuna.db").exists()
    assert not find_runs(connect(place.uri), tags={})


def test_a_study_with_another_space_is_refused(config, place):
    search(config(trials=1, study="mine"))
    before = len(find_runs(connect(place.uri), tags={}))
    with pytest.raises(InputError, match=r"another space .*temperature=2:8.* not temperature=1:20:log"):
        search(config(trials=2, study="mine", search="temperature=2:8"))
    with pytest.raises(InputError, match="--epochs 3, not 2"):
        search(config(trials=2, study="mine", epochs=3))
    assert len(find_runs(connect(place.uri), tags={})) == before


def test_what_may_change_is_taken_from_the_command_that_goes_on(place, config, photos):
    first = search(config(study="one", trials=2))
    assert first.finals is None
    again = search(config(study="one", trials=2, final_seeds=1, register_model=False))
    assert again.run_id == first.run_id
    assert {cell.seed for cell in again.finals.cells} == {1}
    assert again.finals.registered is None


def test_who_keeps_to_the_constraints_goes_before_who_is_better(place, config, photos):
    """The default student is too large: it is not registered, however good it is."""
    given = {"search": f"student=shufflenet_v2_x0_5,{TINY}", "sampler": "random", "student": "shufflenet_v2_x0_5"}
    result = search(config(**given, trials=5, final_seeds=1, constraint="efficiency/parameters_total<1000"))
    finals = result.finals
    assert (finals.winner, finals.config.student) == ("best", TINY)
    assert finals.broken == {"defaults": ["efficiency/parameters_total<1000"]}
    assert (
        "Not kept on fresh seeds by the source report's defaults: efficiency/parameters_total<1000." in finals.verdict
    )
    assert finals.registered.version == 1


def test_seeds_that_were_trained_before_are_averaged_with_those_that_were_not(place, config, photos):
    search(config(study="one", trials=2))
    search(config(study="two", trials=2, seeds=2))
    assert [trial.state.name for trial in trials_of(place, "two")] == ["COMPLETE", "COMPLETE"]
    below = [run for run in runs_of(place, "two") if "kd.seed" in run.tags]
    assert sorted((run.tags["kd.trial"], run.tags["kd.seed"], "kd.reused_run_id" in run.tags) for run in below) == [
        ("0", "0", True), ("0", "1", False), ("1", "0", True), ("1", "1", False)]  # fmt: skip


@pytest.mark.slow
def test_a_trial_of_several_seeds_goes_on_after_those_it_has(place, photos):
    options = ["--data", str(photos), *QUICK, "--epochs", "30", "--trials", "1", "--final-seeds", "0", "--seeds", "2"]
    process = place.start("search", *options, "--study", "one", "--pruner", "none")
    _wait(lambda: any("kd.seed" in run.tags and run.status == "FINISHED" for run in runs_of(place, "one")), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    place.run("search", *options, "--study", "one", "--pruner", "none")
    client = connect(place.uri)
    seeds = {run.tags["kd.seed"]: run for run in runs_of(place, "one") if "kd.seed" in run.tags}
    assert {seed: run.status for seed, run in seeds.items()} == {"0": "FINISHED", "1": "FINISHED"}
    for run in seeds.values():
        assert [step for step, _ in history(client, run.run_id, ["val/loss"])["val/loss"]] == list(range(1, 31))
    assert len(seeds) == len([run for run in runs_of(place, "one") if "kd.seed" in run.tags])


def test_the_epoch_before_a_cut_is_judged_when_the_trial_goes_on():
    """A stop between report and judgement must not let a hopeless trial go on."""
    study = SimpleNamespace(
        config=SimpleNamespace(epochs=9, seeds=1),
        objectives=[SimpleNamespace(name="val/accuracy")],
        reports_epochs=True,
    )
    judged, tags = [], {}
    claim = SimpleNamespace(
        report=lambda step, value: None, is_hopeless=lambda: judged.append(1) is None and len(judged) == 1
    )
    observer = _EveryEpoch(
        SimpleNamespace(study=study), claim, lambda: None, SimpleNamespace(tags=lambda found: tags.update(found)), 0
    )
    rows = [EpochRow(epoch, 0, {"val/accuracy": 0.1 * epoch}) for epoch in (1, 2, 3)]
    observer.on_start(9, 3)
    for row in rows[:2]:
        observer.on_epoch(row)
    assert not judged
    with pytest.raises(Hopeless):
        observer.on_epoch(rows[2])
    assert tags["kd.pruned_epoch"] == "3"


@pytest.mark.fault(
    "the tracking store or the storage of a search is gone, the other is kept",
    "one sentence that names study, storage and the ways out; nothing is trained",
)
def test_a_study_without_its_runs_and_runs_without_their_study_are_named(searched, photos, tmp_path, monkeypatch):
    place, result = searched
    other = make_place(tmp_path / "other")
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    study = SearchStudy.load(f"sqlite:///{place.path}/optuna.db", result["study"])
    named = rf"The study '{study.name}' in .*/optuna\.db belongs to run {result['run_id']}.*--study NAME.*`optuna"
    config = study.config.model_copy(update={"tracking_uri": other.uri, "storage": study.url})
    with pytest.raises(InputError, match=named):
        search(config)
    worker = WorkerConfig(study=study.name, storage=study.url, tracking_uri=other.uri, data=str(photos), device="cpu")
    with pytest.raises(InputError, match=named):
        work(worker)
    assert find_runs(connect(other.uri), tags={}) == []

    elsewhere = f"sqlite:///{tmp_path}/optuna.db"
    note = new_study_note(connect(place.uri), elsewhere, study.name, study.settings)
    assert note.startswith(
        f"The search of run {result['run_id']} had a study '{study.name}' that {elsewhere} does not "
    )
    assert new_study_note(connect(other.uri), elsewhere, study.name, study.settings) == ""
    assert new_study_note(connect(place.uri), study.url, study.name, study.settings) == ""
    study.note({TOTAL: 60})
    try:
        asked = replace(study.settings, config={**study.settings.config, "epochs": 9}, dataset_digest="other pixels")
        note = new_study_note(connect(place.uri), study.url, "new", asked)
    finally:
        study.note({TOTAL: 6})
    assert f"the unfinished study '{study.name}' in " in note
    assert note.endswith("this search has other data, --epochs 9, not 4.")
