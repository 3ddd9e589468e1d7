"""Runs whose process was killed, told apart from those that live."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.life import is_dead, process_mark
from kd_mlflow.tracking.reaper import delete_runs, reap
from kd_mlflow.tracking.runs import RunWriter, find_runs, history, read_run
from tests.conftest import QUICK


def test_a_mark_knows_its_process():
    assert not is_dead(process_mark())
    script = "from kd_mlflow.tracking.life import process_mark; print(process_mark())"
    gone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert is_dead(gone)
    # The same number, given to a later process.
    machine, number, started = process_mark().split(" ")
    assert is_dead(f"{machine} {number} {int(started) - 1000}")
    for unknown in ("", "other/machine/1 1 0.00", "nonsense", f"{machine} x 1", f"{machine} {number} "):
        assert not is_dead(unknown), unknown


@pytest.mark.fault("SIGKILL leaves a run RUNNING", "reap ends it and no other, and says how to go on")
def test_reap_ends_what_a_killed_command_left_and_nothing_else(place, photos):
    client = connect(place.uri)
    alive = RunWriter.open(client, role="teacher", experiment="e", run_name="alive", tags={})
    elsewhere = RunWriter.open(
        client, role="search", experiment="e", run_name="far", tags={"kd.process": "far/b/1 1 0.00"}
    )
    process = place.start("student", "--data", str(photos), *QUICK[2:], "--epochs", "80")
    until = time.monotonic() + 120
    while not list(place.home.glob("checkpoints/*/checkpoint-0000[2-9].json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.communicate()
    (left,) = find_runs(client, tags={}, role="control", status="RUNNING")
    looked = json.loads(place.run("reap", "--dry-run", "--json"))
    assert [one["run_id"] for one in looked["runs"]] == [left.run_id]
    assert read_run(client, left.run_id).status == "RUNNING"
    (found,) = json.loads(place.run("reap", "--json"))["runs"]
    assert found["epochs"] >= 2
    assert found["resume"] == f"kd-mlflow resume {left.run_id}"
    ended = read_run(client, left.run_id)
    assert (ended.status, "process is gone" in ended.tags["kd.reason"]) == ("KILLED", True)
    place.run("resume", left.run_id)
    assert read_run(client, left.run_id).status == "FINISHED"
    assert len(history(client, left.run_id, ["val/accuracy"])["val/accuracy"]) == 80
    assert "goes on with its search" in place.run("resume", elsewhere.run_id, code=2)
    assert {read_run(client, one.run_id).status for one in (alive, elsewhere)} == {"RUNNING"}
    for one in (alive, elsewhere):
        one.finish("FINISHED")


def test_delete_takes_all_below_and_nothing_that_is_being_written(place):
    client = connect(place.uri)

    def opened(name, parent=None):
        return RunWriter.open(client, role="trial", experiment="e", run_name=name, tags={}, parent_run_id=parent)

    top, other = opened("top"), opened("other")
    middle = opened("middle", top.run_id)
    low = opened("low", middle.run_id)
    for one in (top, middle, other):
        one.finish("FINISHED")
    with pytest.raises(InputError, match=f"Run {low.run_id} is RUNNING"):
        delete_runs(client, top.run_id)
    assert len(find_runs(client, tags={})) == 4
    low.finish("KILLED")
    assert {run.run_id for run in delete_runs(client, top.run_id)} == {top.run_id, middle.run_id, low.run_id}
    assert [run.run_id for run in find_runs(client, tags={})] == [other.run_id]


@pytest.mark.fault("the machine's power is cut", "after its start the next command ends the runs it had")
def test_runs_from_before_the_machine_was_started_again_are_ended(place, monkeypatch):
    client = connect(place.uri)
    node, boot, space = process_mark().split(" ")[0].rsplit("/", 2)
    before = f"{node}/{boot[::-1]}/{space} 1 100"
    long_ago, now = str(int(time.time() * 1000) - 3_600_000), str(int(time.time() * 1000))
    cut, silent, far, fresh = (
        client.create_run("0", tags={"kd.role": "student", "kd.process": mark, "kd.heartbeat": beat}).info.run_id
        for mark, beat in ((before, long_ago), ("far/b/1 1 1", long_ago), ("far/b/1 1 1", now), (before, now))
    )
    assert [run.run_id for run in reap(client)] == [cut]
    assert [run.run_id for run in reap(client, silence=1800)] == [silent]
    assert {read_run(client, run_id).status for run_id in (far, fresh)} == {"RUNNING"}
