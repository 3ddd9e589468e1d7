"""`compare`: equal conditions, nested cells, reuse, refusals, and what the store holds afterwards."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import time

import pytest

from kd_mlflow.config import CompareConfig, resolve
from kd_mlflow.distillers.names import method_names
from kd_mlflow.entrypoints import compare as compare_module
from kd_mlflow.entrypoints.compare import compare
from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import download, find_runs, read_json, read_run
from tests.conftest import QUICK, TINY, Place

OPTIONS = {"teacher_arch": TINY, "student": TINY, "image_size": 32, "batch_size": 8, "epochs": 2}


@pytest.fixture
def config(place, photos, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))

    def make(**given) -> CompareConfig:
        return resolve(CompareConfig, {"data": str(photos), "tracking_uri": place.uri, **OPTIONS, **given})

    return make


def test_methods_are_held_against_the_control_under_equal_conditions(place, config):
    result = compare(config(methods="kd,dist", seeds=2))
    client = connect(place.uri)
    assert result.rows[0]["method"] == "labels"
    assert {row["method"] for row in result.rows} == {"labels", "kd", "dist"}
    parent = read_run(client, result.run_id)
    assert (parent.role, parent.status) == ("compare", "FINISHED")
    cells = find_runs(client, tags={}, role="student")
    assert {(run.tags["kd.method"], run.params["cfg.seed"]) for run in cells} == {
        (method, seed) for method in ("kd", "dist") for seed in ("0", "1")
    }
    assert {run.tags["mlflow.parentRunId"] for run in cells} == {result.run_id}
    controls = find_runs(client, tags={}, role="control")
    assert len(controls) == 2
    assert all("mlflow.parentRunId" not in run.tags for run in controls)
    assert len(find_runs(client, tags={}, role="teacher")) == 1
    for row in result.rows:
        runs = [read_run(client, run_id) for run_id in row["runs"]]
        mean = sum(run.metrics["test/accuracy"] for run in runs) / len(runs)
        assert row["mean"]["test/accuracy"] == pytest.approx(mean)
        assert row["seeds"] == [0, 1]
    gained = next(row for row in result.rows if row["method"] == "dist")
    plain = next(row for row in result.rows if row["method"] == "labels")
    assert gained["minus_control"]["mean"] == pytest.approx(
        gained["mean"]["test/accuracy"] - plain["mean"]["test/accuracy"]
    )
    assert gained["minus_control"]["low"] <= gained["minus_control"]["mean"] <= gained["minus_control"]["high"]
    assert read_json(client, result.run_id, "comparison.json")["rows"] == json.loads(json.dumps(result.rows))
    artifacts = {item.path for item in client.list_artifacts(result.run_id, "figures")}
    assert "figures/differences.png" in artifacts
    # One architecture: a sitting of the teacher and of one student, whatever the number of cells.
    sitting = result.datasets[0]["efficiency_in_turn"]
    assert list(sitting["networks"]) == ["teacher", "student"]
    ratios = {row["mean"]["efficiency/latency_ratio_to_teacher"] for row in result.rows}
    assert ratios == {sitting["networks"]["student"]["latency_ratio"]}
    assert parent.metrics["dist/latency_ratio_to_teacher"] in ratios
    table = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert [line["method"] for line in table] == [row["method"] for row in result.rows]
    best = max(result.rows, key=lambda row: row["mean"]["val/accuracy"])
    assert result.datasets[0]["winner"] == best["method"]

    again = compare(config(methods="kd,dist", seeds=2))
    assert [row["runs"] for row in again.rows] == [row["runs"] for row in result.rows]
    assert len(find_runs(client, tags={}, role="student")) == 4
    wider = compare(config(methods="kd,dist,fnkd", seeds=1, method_options={"dist": {"beta": 2.0}}))
    assert len(find_runs(client, tags={}, role="student")) == 6
    assert {row["method"] for row in wider.rows} == {"labels", "kd", "dist", "fnkd"}


def test_a_method_that_cannot_is_refused_by_name_and_left_out_of_all(place, config):
    with pytest.raises(InputError, match="iakd"):
        compare(config(methods="kd,iakd"))
    assert find_runs(connect(place.uri), tags={}, role="teacher") == []
    with pytest.raises(InputError, match="no method 'magic'"):
        compare(config(methods="magic"))
    with pytest.raises(InputError, match="--dist-magic"):
        compare(config(methods="dist", method_options={"dist": {"magic": 1}}))


def test_several_data_sets_give_a_table_of_gains(config, photos, tmp_path):
    from tests.conftest import make_photos

    other = make_photos(tmp_path / "fewer", per_class=12)
    result = compare(config(data=f"{photos},{other}", methods="kd", epochs=1))
    assert [row["data"] for row in result.gains] == ["photos", "fewer"]
    assert {row["data"] for row in result.rows} == {"photos", "fewer"}
    assert all({"classes", "images_per_class"} <= set(row) for row in result.gains)


@pytest.mark.fault("SIGKILL of a comparison", "--resume keeps what is finished and goes on with the rest")
def test_a_killed_comparison_goes_on_where_it_stopped(place: Place, photos):
    options = ["compare", "--data", str(photos), *QUICK, "--epochs", "12", "--methods", "kd,dist", "--json"]
    process = place.start(*options)
    client = connect(place.uri)
    while not (running := find_runs(client, tags={}, role="student")) or "val/accuracy" not in running[0].metrics:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result = json.loads(place.run(*options, "--resume"))
    assert read_run(client, result["run_id"]).status == "FINISHED"
    assert len(find_runs(client, tags={}, role="compare")) == 1
    students = find_runs(client, tags={}, role="student")
    assert {run.run_id for run in running} <= {run.run_id for run in students}
    assert [run.status for run in students] == ["FINISHED", "FINISHED"]
    assert len(find_runs(client, tags={}, role="teacher")) == len(find_runs(client, tags={}, role="control")) == 1
    text = place.run(*options[:-1], "--csv")
    assert text.startswith("data,method,")


def test_a_weak_teacher_is_named_or_refused(config, place):
    weak = {"teacher_epochs": 1, "teacher_learning_rate": 1e-8}
    result = compare(config(methods="kd", epochs=6, **weak))
    client = connect(place.uri)
    tags = read_run(client, result.run_id).tags
    assert [value for name, value in tags.items() if name.startswith("kd.weak_teacher.")] == ["true"]
    report = download(client, result.run_id, "report.html", place.path).read_text()
    assert "The teacher is weak" in report
    with pytest.raises(InputError, match="The teacher is weak"):
        compare(config(methods="kd", epochs=6, require_strong_teacher=True, **weak))


def test_data_sets_of_one_name_are_told_apart_and_short_schedules_named(config, place, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    result = compare(config(data=f"{photos},{tmp_path / 'photos'}", methods="dkd"))
    assert [one["data"] for one in result.datasets] == ["photos", "photos-2"]
    tables = download(connect(place.uri), result.run_id, "tables", place.path / "out")
    assert {"photos_comparison.csv", "photos-2_comparison.csv"} <= {file.name for file in tables.iterdir()}
    report = download(connect(place.uri), result.run_id, "report.html", place.path).read_text()
    assert "full weight after 20 of 2 epochs" in report


def test_without_reuse_a_resumed_comparison_keeps_what_it_has(config, place, monkeypatch):
    real = compare_module.train_or_reuse_student
    monkeypatch.setattr(compare_module, "train_or_reuse_student", _second_is_cut_off(real))
    with pytest.raises(KeyboardInterrupt):
        compare(config(methods="kd,dist", reuse=False))
    monkeypatch.setattr(compare_module, "train_or_reuse_student", real)
    compare(config(methods="kd,dist", reuse=False), resume="newest")
    runs = find_runs(connect(place.uri), tags={}, status="FINISHED")
    assert sorted(run.tags["kd.method"] for run in runs if run.role == "student") == ["dist", "kd"]
    assert len([run for run in runs if run.role == "control"]) == 1


def _second_is_cut_off(real):
    done = []

    def train(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    return train


@pytest.mark.slow
def test_all_leaves_out_what_these_networks_do_not_allow(config):
    result = compare(config(methods="all", epochs=1))
    left_out = {one["method"]: one["reason"] for one in result.datasets[0]["left_out"]}
    done = {row["method"] for row in result.rows} - {"labels"}
    assert done | left_out.keys() == set(method_names())
    assert {"kd", "dkd", "dist"} <= done
    assert "no stages" in left_out["ofd"]
