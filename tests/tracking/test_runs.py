from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from mlflow import MlflowClient

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.journal import Journal
from kd_mlflow.tracking.runs import RunWriter, adopt_run_id, download, find_runs, history, read_json, read_run

matplotlib.use("agg")


def open_run(client: MlflowClient, **changes: object) -> RunWriter:
    options = {"role": "student", "experiment": "photos", "run_name": "kd", "tags": {"kd.fingerprint": "f1"}} | changes
    return RunWriter.open(client, **options)


def artifact(client: MlflowClient, run_id: str, path: str, tmp_path: Path) -> str:
    return download(client, run_id, path, tmp_path / "down").read_text(encoding="utf-8")


def test_new_run_carries_role_name_source_and_ends_finished(client: MlflowClient) -> None:
    with open_run(client) as run:
        assert read_run(client, run.run_id).status == "RUNNING"
        assert read_run(client, run.run_id).end_time is None
    record = read_run(client, run.run_id)
    assert (record.role, record.status, record.name) == ("student", "FINISHED", "kd")
    assert record.tags["kd.fingerprint"] == "f1"
    assert record.tags["mlflow.source.type"] == "LOCAL"
    assert record.end_time >= record.start_time
    assert client.get_experiment(record.experiment_id).name == "photos"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("bad\nthing at http://me:pw@host/x"), "FAILED", "ValueError: bad thing at http://***@host/x"),
        (KeyboardInterrupt("SIGTERM"), "KILLED", "KeyboardInterrupt: SIGTERM"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
        (GeneratorExit(), "KILLED", "GeneratorExit"),
    ],
)
def test_run_ends_as_its_block_ends(client: MlflowClient, error: BaseException, status: str, reason: str) -> None:
    with pytest.raises(type(error)), open_run(client) as run:
        raise error
    record = read_run(client, run.run_id)
    assert (record.status, record.tags["kd.reason"]) == (status, reason)


def test_run_ended_in_its_block_keeps_that_end(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.finish("FAILED", "the loss became NaN")
    assert read_run(client, run.run_id).status == "FAILED"


def test_dropped_writer_does_not_leave_its_run_running(client: MlflowClient) -> None:
    run = open_run(client)
    run_id = run.run_id
    del run
    assert read_run(client, run_id).status == "KILLED"


@pytest.mark.fault("a process ends with runs open", "none stays RUNNING")
def test_process_that_ends_with_open_runs_leaves_none_running(client: MlflowClient) -> None:
    script = f"""
import signal
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter
def stop(number, frame): raise KeyboardInterrupt("SIGTERM")
signal.signal(signal.SIGTERM, stop)
client = connect({client.tracking_uri!r})
dropped, entered = (
    RunWriter.open(client, role="student", experiment="e", run_name="r", tags={{}}) for _ in range(2)
)
with entered:
    print(dropped.run_id, entered.run_id, flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        dropped, entered = child.stdout.readline().split()
        child.send_signal(signal.SIGTERM)
    assert read_run(client, dropped).status == "KILLED"
    assert read_run(client, entered).status == "KILLED"
    assert read_run(client, entered).tags["kd.reason"] == "KeyboardInterrupt: SIGTERM"


def test_run_of_mlflow_run_is_adopted_once_with_its_experiment(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.create_run(client.create_experiment("theirs"), tags={"mlflow.source.type": "PROJECT"})
    client.log_param(made.info.run_id, "epochs", "3")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    run_id = adopt_run_id()
    assert run_id == made.info.run_id
    assert adopt_run_id() is None
    assert "MLFLOW_RUN_ID" not in os.environ
    with open_run(client, run_id=run_id) as run:
        run.params({"epochs": 5})
    record = read_run(client, run_id)
    assert client.get_experiment(record.experiment_id).name == "theirs"
    assert (record.name, record.role, record.tags["mlflow.source.type"]) == ("kd", "student", "PROJECT")
    assert record.params == {"epochs": "3", "cfg.epochs": "5"}


def test_run_that_a_person_named_keeps_its_name(client: MlflowClient) -> None:
    made = client.create_run("0", run_name="my run")
    open_run(client, run_id=made.info.run_id).finish("FINISHED")
    assert read_run(client, made.info.run_id).name == "my run"


def test_continued_run_is_running_again_without_the_old_reason(client: MlflowClient) -> None:
    run = open_run(client)
    run.finish("KILLED", "power cut")
    again = open_run(client, run_id=run.run_id)
    record = read_run(client, run.run_id)
    assert (record.status, record.end_time) == ("RUNNING", None)
    assert "kd.reason" not in record.tags
    again.finish("FINISHED")


def test_nested_run_names_its_parent(client: MlflowClient) -> None:
    with open_run(client) as parent, open_run(client, parent_run_id=parent.run_id) as child:
        pass
    assert read_run(client, child.run_id).tags["mlflow.parentRunId"] == parent.run_id


def test_unknown_and_deleted_runs_are_refused_in_a_sentence(client: MlflowClient) -> None:
    with pytest.raises(InputError, match="There is no run 0123"):
        open_run(client, run_id="0123")
    run = open_run(client)
    run.finish("FINISHED")
    client.delete_run(run.run_id)
    with pytest.raises(InputError, match="mlflow runs restore"):
        open_run(client, run_id=run.run_id)


def test_params_are_flat_cut_and_keep_their_first_value(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.params(
            {
                "a": {"b": 1, "c": {"d": None}},
                "list": (1, 2),
                "long": "x" * 7000,
                "empty": "",
                "odd €": 1,
                "uri": "http://me:pw@host",
            }
        )
        run.params({"a": {"b": 2}, "later": True})
        run.params({f"many{number}": number for number in range(250)})
    params = read_run(client, run.run_id).params
    assert len(params["cfg.long"]) == 6000
    assert params["cfg.long"].endswith("…")
    assert (params["cfg.a.b"], params["cfg.a.c.d"], params["cfg.list"]) == ("1", "None", "[1, 2]")
    assert (params["cfg.empty"], params["cfg.later"], params["cfg.many249"]) == ("", "True", "249")
    assert (params["cfg.odd _"], params["cfg.uri"]) == ("1", "http://***@host")


def test_metrics_sent_again_change_nothing(client: MlflowClient) -> None:
    with open_run(client) as run:
        for _ in range(2):
            run.metrics({"val/accuracy": 0.5, "val/loss": math.nan}, step=1, timestamp_ms=1000)
            run.metrics({"val/accuracy": np.float32(0.75)}, step=2, timestamp_ms=2000)
    assert len(client.get_metric_history(run.run_id, "val/accuracy")) == 2
    assert len(client.get_metric_history(run.run_id, "val/loss")) == 1
    curves = history(client, run.run_id)
    assert curves["val/accuracy"] == [(1, 0.5), (2, 0.75)]
    assert math.isnan(curves["val/loss"][0][1])
    assert history(client, run.run_id, ["val/accuracy"]).keys() == {"val/accuracy"}


def test_more_metrics_than_a_batch_holds_are_all_stored(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.metrics({f"m{number}": number for number in range(1500)}, step=0, timestamp_ms=1)
    assert read_run(client, run.run_id).metrics["m1499"] == 1499


def test_infinity_is_stored_as_the_largest_float(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.metrics({"loss": math.inf}, step=1, timestamp_ms=1)
    assert read_run(client, run.run_id).metrics["loss"] == pytest.approx(1.797e308, rel=1e-3)


def test_final_metrics_of_a_resumed_run_are_not_doubled(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.final_metrics({"test/accuracy": 0.5, "test/loss": 1.0})
        run.final_metrics({"test/accuracy": 0.5, "test/loss": 2.0})
    assert len(client.get_metric_history(run.run_id, "test/accuracy")) == 1
    assert read_run(client, run.run_id).metrics == {"test/accuracy": 0.5, "test/loss": 2.0}


def test_table_is_safe_in_a_spreadsheet_and_shown_by_mlflow(client: MlflowClient, tmp_path: Path) -> None:
    rows = [
        {"path": "=1+1.jpg", "probability": -0.5, "class": 'a "b", c'},
        {"path": "@x\udc80", "probability": math.nan, "extra": [1, 2]},
    ]
    with open_run(client) as run:
        run.table("tables/wrong", rows)
        run.table("tables/wrong", rows)
    text = artifact(client, run.run_id, "tables/wrong.csv", tmp_path)
    assert list(csv.reader(text.splitlines())) == [
        ["path", "probability", "class", "extra"],
        ["'=1+1.jpg", "-0.5", 'a "b", c', ""],
        ["'@x\\udc80", "", "", "[1, 2]"],
    ]
    table = read_json(client, run.run_id, "tables/wrong.json")
    assert table["columns"] == ["path", "probability", "class", "extra"]
    assert table["data"][0] == ["=1+1.jpg", -0.5, 'a "b", c', None]
    listed = json.loads(read_run(client, run.run_id).tags["mlflow.loggedArtifacts"])
    assert listed == [{"path": "tables/wrong.json", "type": "table"}]


def test_json_holds_no_number_that_json_does_not_know(client: MlflowClient) -> None:
    content = {"a": np.arange(3), "b": np.float32(0.5), "c": [math.nan, math.inf], "d": Path("x"), 1: None}
    with open_run(client) as run:
        run.json("evaluation.json", content)
    assert read_json(client, run.run_id, "evaluation.json") == {
        "a": [0, 1, 2],
        "b": 0.5,
        "c": [None, None],
        "d": "x",
        "1": None,
    }


def test_text_and_files_land_where_asked(client: MlflowClient, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("a")
    with open_run(client) as run:
        run.text("config.yaml", "data: ü\n")
        run.artifact(folder, "checkpoints/last")
        run.artifact(folder / "sub" / "a.txt", "")
        run.environment()
    assert artifact(client, run.run_id, "config.yaml", tmp_path) == "data: ü\n"
    assert artifact(client, run.run_id, "checkpoints/last/sub/a.txt", tmp_path) == "a"
    assert artifact(client, run.run_id, "a.txt", tmp_path) == "a"
    lines = artifact(client, run.run_id, "environment.txt", tmp_path).splitlines()
    assert f"# Python {sys.version.split()[0]}" in lines[0]
    assert any(line.startswith("mlflow==") for line in lines)


def test_missing_artifact_is_refused_in_a_sentence(client: MlflowClient) -> None:
    with open_run(client) as run:
        run.text("broken.json", "{")
    with pytest.raises(InputError, match=r"has no artifact nothing.json"):
        read_json(client, run.run_id, "nothing.json")
    with pytest.raises(InputError, match=r"is not JSON"):
        read_json(client, run.run_id, "broken.json")


def test_dataset_is_an_input_of_the_run_once(client: MlflowClient) -> None:
    with open_run(client) as run:
        for _ in range(2):
            run.dataset("photos", "d" * 64, {"train": 10}, "https://me:pw@host/photos", "training")
    (found,) = client.get_run(run.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("photos", "d" * 36)
    assert json.loads(found.dataset.profile) == {"train": 10}
    assert json.loads(found.dataset.source) == {"uri": "https://***@host/photos"}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_system_metrics_are_recorded_under_the_run(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    with open_run(client) as run:
        run.start_system_metrics()
        run.start_system_metrics()
        for _ in range(100):
            if "system/cpu_utilization_percentage" in read_run(client, run.run_id).metrics:
                break
            run._monitor._shutdown_event.wait(0.1)
    assert "system/cpu_utilization_percentage" in read_run(client, run.run_id).metrics
    assert "system/cpu_utilization_percentage" not in history(client, run.run_id)
    assert run._monitor is None


def test_runs_are_found_by_tags_newest_first_over_all_experiments(client: MlflowClient) -> None:
    made = []
    for number, (experiment, role) in enumerate([("a", "teacher"), ("b", "teacher"), ("b", "control")]):
        run = open_run(client, experiment=experiment, role=role, tags={"kd.fingerprint": "it's", "kd.x": "1"})
        run.finish("FAILED" if number == 0 else "FINISHED")
        made.append(run.run_id)
    open_run(client, tags={"kd.fingerprint": "other"}).finish("FINISHED")
    found = find_runs(client, tags={"kd.fingerprint": "it's"})
    assert {run.run_id for run in found} == set(made)
    assert [run.start_time for run in found] == sorted((run.start_time for run in found), reverse=True)
    assert [run.run_id for run in find_runs(client, tags={"kd.x": "1"}, role="control")] == [made[2]]
    assert [run.run_id for run in find_runs(client, tags={"kd.x": "1"}, status="FAILED")] == [made[0]]
    client.delete_run(made[2])
    assert find_runs(client, tags={"kd.x": "1"}, role="control") == []


@pytest.mark.fault("a signal during a write to the record", "the write is whole, then the signal is acted on")
def test_a_signal_during_a_write_is_acted_on_after_it(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, lambda number, frame: (_ for _ in ()).throw(KeyboardInterrupt("SIGTERM")))
    whole = Journal.append

    def interrupted(self: Journal, record: dict) -> int:
        signal.raise_signal(signal.SIGTERM)
        return whole(self, record)

    run = open_run(client)
    monkeypatch.setattr(Journal, "append", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.metrics({"val/accuracy": 0.5}, 1, 1000)
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGTERM, before)
    run.settle()
    assert client.get_run(run.run_id).data.metrics == {"val/accuracy": 0.5}
    run.finish("KILLED")
    assert client.get_run(run.run_id).info.status == "KILLED"
