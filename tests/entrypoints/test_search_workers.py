"""Many workers: real processes, a real Postgres, killed and restarted in the middle of a study."""

from __future__ import annotations

import json
import os
import signal
import time
from functools import cache

import pytest

from kd_mlflow.errors import InputError
from kd_mlflow.search.study import SearchStudy
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import find_runs, history
from tests.conftest import QUICK
from tests.search.postgres import Postgres


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    yield server
    server.close()


@cache  # each has connections of its own, and a server's are counted
def study_of(url: str, name: str) -> SearchStudy:
    return SearchStudy.load(url, name)


def wait_for(condition, process, seconds: float = 200):
    until = time.monotonic() + seconds
    while True:
        if process.poll() is not None:
            pytest.fail(process.communicate()[1])
        assert time.monotonic() < until
        try:
            if found := condition():
                return found
        except InputError:
            pass
        time.sleep(0.1)


def options(photos, url: str, name: str, trials: int, workers: int, epochs: int, *more: str) -> list[str]:
    base = ["--data", str(photos), *QUICK, "--epochs", str(epochs), "--final-seeds", "0", "--heartbeat", "2"]
    return [
        "search",
        *base,
        "--storage",
        url,
        "--study",
        name,
        "--trials",
        str(trials),
        "--workers",
        str(workers),
        *more,
    ]


def check_whole(place, study: SearchStudy, total: int) -> None:
    """Exactly so many finished trials, a slot each, numbers each once, and no run that still runs."""
    ledger = study.ledger()
    assert len(ledger.finished) == total
    assert sorted(trial.user_attrs["slot"] for trial in ledger.finished) == list(range(total))
    numbers = [trial.number for trial in ledger.trials]
    assert len(numbers) == len(set(numbers)) == total + len(ledger.abandoned)
    runs = find_runs(connect(place.uri), tags={"kd.study": study.name}, role="trial")
    assert {run.status for run in runs} <= {"FINISHED", "KILLED", "FAILED"}
    assert len(runs) == len(ledger.trials)
    assert not find_runs(connect(place.uri), tags={}, status="RUNNING")


def test_workers_share_a_study_and_stop_at_exactly_its_total(place, photos, postgres):
    out = place.run(*options(photos, postgres.url, "shared", 12, 3, 3, "--json"))
    study = study_of(postgres.url, "shared")
    check_whole(place, study, 12)
    assert json.loads(out)["trials"]["finished"] == 12
    assert len({trial.user_attrs["pid"] for trial in study.ledger().finished}) > 1
    assert {trial.user_attrs["attempt"] for trial in study.ledger().trials} == {1}


@pytest.mark.fault("SIGKILL of a worker of a search", "another worker goes on with the trial from its checkpoint")
@pytest.mark.parametrize("checkpoints", [pytest.param("", marks=pytest.mark.slow), "file"])
def test_a_killed_workers_trial_goes_on_from_its_checkpoint(place, photos, checkpoints, tmp_path):
    """SIGKILL in the middle of a trial: another worker ends it, in a new run that is linked to the dead one."""
    url, more = f"sqlite:///{place.path}/optuna.db", []
    if checkpoints:
        more = ["--checkpoints", f"file://{tmp_path}/shared"]
    process = place.start(*options(photos, url, "killed", 3, 2, 40, "--pruner", "none", *more))
    victim = wait_for(
        lambda: next((t for t in study_of(url, "killed").ledger().running if len(t.intermediate_values) > 10), None),
        process,
    )
    os.kill(victim.user_attrs["pid"], signal.SIGKILL)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    study = study_of(url, "killed")
    check_whole(place, study, 3)
    dead = next(trial for trial in study.ledger().abandoned if trial.number == victim.number)
    heir = next(trial for trial in study.ledger().finished if trial.user_attrs.get("follows") == dead.number)
    assert (heir.params, heir.user_attrs["slot"]) == (dead.params, dead.user_attrs["slot"])
    found = find_runs(connect(place.uri), tags={"kd.study": "killed"}, role="trial")
    runs = {run.tags["kd.trial"]: run for run in found}
    before, after = runs[str(dead.number)], runs[str(heir.number)]
    assert (before.status, after.status) == ("KILLED", "FINISHED")
    assert after.tags["kd.follows_run_id"] == before.run_id
    curves = [history(connect(place.uri), run.run_id, ["train/seconds"])["train/seconds"] for run in (before, after)]
    # The seconds of an epoch are measured: equal ones were carried over and not trained again.
    assert len(curves[0]) > 10
    assert curves[1][: len(curves[0])] == curves[0]
    assert len(curves[1]) == 40
    # What trials leave on disk is removed; the teacher's stays.
    kept = {file.parent.name for file in (place.home / "checkpoints").glob("*/checkpoint-*")}
    assert not kept & {run.run_id for run in found}


def _kill_and_restart(place, photos, postgres, total: int, workers: int, epochs: int) -> None:
    name = f"hit{total}"
    process = place.start(*options(photos, postgres.url, name, total, workers, epochs))

    def begun():
        return next((one for one in study_of(postgres.url, name).ledger().running if one.intermediate_values), None)

    victim = wait_for(begun, process)
    os.kill(victim.user_attrs["pid"], signal.SIGKILL)
    wait_for(lambda: len(study_of(postgres.url, name).ledger().finished) > 2, process)
    postgres.restart(3)
    _, said = process.communicate(timeout=550)
    assert process.returncode == 0, said
    study = study_of(postgres.url, name)
    check_whole(place, study, total)
    assert not study.ledger().failed
    assert [trial.number for trial in study.ledger().abandoned] in ([], [victim.number])


@pytest.mark.fault(
    "SIGKILL of a worker, and Postgres restarted",
    "exactly the trials that were asked for; none RUNNING",
)
def test_a_killed_worker_and_a_restarted_postgres_cost_no_trial(place, photos, postgres):
    _kill_and_restart(place, photos, postgres, 9, 3, 20)


@pytest.mark.slow
def test_forty_trials_by_four_workers(place, photos, postgres):
    place.run(*options(photos, postgres.url, "forty", 40, 4, 3))
    check_whole(place, study_of(postgres.url, "forty"), 40)


@pytest.mark.slow
def test_forty_trials_by_four_workers_with_a_kill_and_a_restart(place, photos, postgres):
    _kill_and_restart(place, photos, postgres, 40, 4, 20)


def test_search_stop_and_status(place, photos):
    url = f"sqlite:///{place.path}/optuna.db"
    process = place.start(*options(photos, url, "stopped", 50, 2, 60, "--pruner", "none"))
    wait_for(lambda: study_of(url, "stopped").ledger().running, process)
    now = json.loads(place.run("search", "--storage", url, "--status", "--json"))
    assert (now["study"], now["state"], now["trials"]["total"]) == ("stopped", "running", 50)
    assert now["running"]
    place.run("search", "--storage", url, "--stop")
    out, said = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert "The same command goes on with it" in out
    study = study_of(url, "stopped")
    assert not study.ledger().running
    assert not find_runs(connect(place.uri), tags={}, status="RUNNING")
    assert json.loads(place.run("search", "--storage", url, "--status", "--json"))["state"] == "stopped"


def test_a_worker_needs_a_study_and_its_data(place, photos, tmp_path):
    url = f"sqlite:///{place.path}/optuna.db"
    assert "--study" in place.run("search-worker", code=2)
    assert "no study yet" in place.run("search-worker", "--study", "none", "--storage", url, code=2)
    place.run(*options(photos, url, "one", 1, 1, 1))
    assert "has no study 'two'; it has one" in place.run("search-worker", "--study", "two", "--storage", url, code=2)
    said = place.run("search-worker", "--study", "one", "--storage", url, "--data", "digits", code=2)
    assert "is not the data of the study" in said
