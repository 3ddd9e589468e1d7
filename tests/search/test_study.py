"""Claims and slots: exact totals, nothing lost, the same values however often a study is taken up."""

from __future__ import annotations

import threading
import time

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from kd_mlflow.config import SearchConfig
from kd_mlflow.entrypoints.show import study_status
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.search.claim import Lost
from kd_mlflow.search.objectives import Objective
from kd_mlflow.search.settings import Settings
from kd_mlflow.search.space import report_values
from kd_mlflow.search.status import best_trials, status
from kd_mlflow.search.storage import Outage, StorageAway, check_storage, patiently, storage_url
from kd_mlflow.search.study import STOP, TOTAL, SearchStudy, study_names
from kd_mlflow.search.terms import resolve_space
from kd_mlflow.search.worker import Hopeless, Outcome, Worker
from tests.search.postgres import Postgres


def opened(folder, name="one", total=6, **given) -> SearchStudy:
    space, config = resolve_space(SearchConfig(**{"heartbeat": 1, "trials": total, "epochs": 9, **given}))
    objectives = (Objective("val/accuracy", "maximize"),)
    settings = Settings.of(config, space, objectives, (), report_values(space, config), "digest")
    study = SearchStudy.create(f"sqlite:///{folder}/optuna.db", name, settings, config.heartbeat)
    study.note({TOTAL: total})
    return study


def judge(claim, check) -> Outcome:
    """A value that follows from the trial's own values, epoch by epoch."""
    for epoch in range(1, 10):
        claim.report(epoch, claim.values["alpha"] * epoch / 9)
        check()
        if epoch < 9 and claim.is_hopeless():
            raise Hopeless
    return Outcome([claim.values["alpha"]])


def contents(study: SearchStudy):
    return [(t.number, t.state, t.params, t.values, t.intermediate_values) for t in study.ledger().trials]


def test_two_workers_share_exactly_the_total(tmp_path):
    studies = [opened(tmp_path, total=20), opened(tmp_path, total=20)]
    threads = [threading.Thread(target=Worker(study, judge).run) for study in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = studies[0].ledger()
    assert sorted(trial.user_attrs["slot"] for trial in ledger.finished) == list(range(20))
    assert len(ledger.trials) == 20
    assert ledger.pruned
    assert best_trials(studies[0])[0].value == max(trial.value for trial in ledger.complete)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "qmc", "gp", "cmaes"])
def test_a_study_taken_up_trial_by_trial_is_the_same(tmp_path, sampler):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = opened(tmp_path / "whole", total=14, sampler=sampler)
    Worker(whole, judge).run()
    for total in range(1, 15):
        part = opened(tmp_path / "parts", total=total, sampler=sampler)
        Worker(part, judge).run()
    assert contents(part) == contents(whole)
    assert len(contents(whole)) == 14
    values = {tuple(trial.params.values()) for trial in whole.ledger().trials}
    assert len(values) == 14


def test_a_paused_trial_goes_on_under_its_number(tmp_path):
    study = opened(tmp_path, total=2)
    claim = study.claim("first")
    claim.report(1, 0.1)
    claim.note(run_id="r1")
    claim.pause()
    assert status(study).trials["waiting"] == 1
    again = study.claim("second")
    assert (again.number, again.values, again.noted["run_id"], again.reported) == (0, claim.values, "r1", {1})


@pytest.mark.fault("workers die on one trial again and again", "it is tried three times, then failed")
def test_a_dead_workers_slot_is_taken_by_another_and_given_up_after_three(tmp_path):
    study = opened(tmp_path, total=1)
    numbers = []
    for _ in range(3):
        claim = study.claim("dies")
        claim.note(run_id=f"r{claim.number}")
        numbers.append(claim.number)
        assert claim.noted.get("follows") == (numbers[-2] if len(numbers) > 1 else None)
        # The last sign of life was long ago.
        study.storage.engine.dispose()
        _age_heartbeats(study)
    assert study.claim("late") is None
    ledger = study.ledger()
    assert numbers == [0, 1, 2]
    assert {tuple(trial.params.items()) for trial in ledger.trials} == {tuple(claim.values.items())}
    assert [len(ledger.abandoned), len(ledger.failed), ledger.done(1)] == [2, 1, True]
    assert ledger.trials[2].user_attrs["follows_run"] == "r1"


def _age_heartbeats(study: SearchStudy) -> None:
    from sqlalchemy import text

    with study.storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'"))


@pytest.mark.fault("a process dies in the middle of a claim", "the next one mends it; no slot is lost or done twice")
def test_a_claim_that_was_cut_off_is_taken_up_as_it_is(tmp_path, monkeypatch):
    """A worker that dies between asking and its first sign of life costs neither a trial nor a number."""
    study = opened(tmp_path, total=3)

    def die(trial_id):
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(study.storage, "record_heartbeat", die)
        with pytest.raises(SystemExit):
            study.claim("dies")
    assert len(study.ledger().half_claimed) == 1
    Worker(study, judge).run()
    assert [(trial.number, trial.user_attrs["attempt"]) for trial in study.ledger().trials] == [(0, 1), (1, 1), (2, 1)]


@pytest.mark.fault("a signal right after a claim", "the trial is given back at once, under its number")
def test_a_signal_right_after_a_claim_gives_the_trial_back(tmp_path, monkeypatch):
    study = opened(tmp_path)
    claim = SearchStudy.claim

    def interrupted(self, worker):
        assert claim(self, worker).number == 0
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchStudy, "claim", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Worker(study, lambda claim, check: Outcome([1.0])).run()
    monkeypatch.undo()
    assert [trial.state for trial in study.ledger().trials] == [TrialState.WAITING]
    assert study.claim("next").number == 0


def test_an_error_counts_and_three_in_a_row_of_no_trials_fault_end_the_worker(tmp_path):
    study = opened(tmp_path, total=9)
    done = []

    def fails(claim, check):
        done.append(claim.number)
        raise GuardError("too hot") if claim.number < 4 else RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Worker(study, fails).run()
    assert done == [0, 1, 2, 3, 4, 5, 6]
    assert {trial.user_attrs["error"] for trial in study.ledger().failed} == {
        "GuardError: too hot",
        "RuntimeError: broken",
    }


def test_stop_pauses_the_trial_and_ends_the_worker(tmp_path):
    study = opened(tmp_path, total=5)

    def stops(claim, check):
        if claim.number == 2:
            study.note({STOP: True})
        return judge(claim, check)

    assert Worker(study, stops).run() == "stopped"
    assert [trial.state for trial in study.ledger().trials] == [
        *[trial.state for trial in study.ledger().trials[:2]],
        TrialState.WAITING,
    ]
    study.note({STOP: None})
    assert Worker(study, judge).run() == "done"
    assert len(study.ledger().trials) == 5


def test_another_search_of_the_same_name_is_refused(tmp_path):
    opened(tmp_path)
    with pytest.raises(InputError, match="another space"):
        opened(tmp_path, search="temperature=2:3")
    with pytest.raises(InputError, match="--batch-size 8, not 64"):
        opened(tmp_path, batch_size=8)
    opened(tmp_path, total=50, heartbeat=7)
    assert study_names(f"sqlite:///{tmp_path}/optuna.db") == ["one"]


def test_the_default_storage_lies_beside_the_tracking_store(tmp_path, monkeypatch):
    for variable in ("KD_MLFLOW_STORAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    assert storage_url("") == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("", "http://127.0.0.1:5000") == f"sqlite:///{tmp_path}/optuna.db"
    assert storage_url("", "sqlite:///far/mlflow.db") == f"sqlite:///{tmp_path}/far/optuna.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere/mlflow.db")
    assert storage_url("") == "sqlite:////elsewhere/optuna.db"
    monkeypatch.setenv("KD_MLFLOW_STORAGE", "sqlite:///own.db")
    assert storage_url("") == f"sqlite:///{tmp_path}/own.db"
    assert storage_url("postgresql://db/optuna") == "postgresql://db/optuna"


def test_a_study_without_trials_is_shown_as_that(tmp_path):
    study = opened(tmp_path)
    (line,) = study_status(status(study).to_json()).renderables
    assert line.plain == f"Study {study.name}: paused, 0 of {study.total} trials"


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_sqlite_on_a_network_disk_is_refused(tmp_path, monkeypatch, kind):
    from types import SimpleNamespace

    import psutil

    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    with pytest.raises(InputError, match="network disk"):
        check_storage(f"sqlite:///{tmp_path}/optuna.db")


def test_patience_is_for_the_storage_alone():
    def slip():
        raise UnboundLocalError("our own")

    with pytest.raises(UnboundLocalError):
        patiently(slip, seconds=5)


def _taken_for_dead(study: SearchStudy):
    """A claim whose worker was silent for too long, and which another one has taken."""
    claim = study.claim("silent")
    _age_heartbeats(study)
    assert study.claim("other").noted["follows"] == claim.number
    return claim


@pytest.mark.fault(
    "a worker is silent for so long that it is taken for dead",
    "it finds its trial lost and writes nothing into another's",
)
def test_whoever_was_taken_for_dead_finds_its_trial_lost_whatever_it_writes(tmp_path):
    claim = _taken_for_dead(opened(tmp_path, total=3))
    for write in (lambda: claim.report(1, 0.5), lambda: claim.note(a=1), lambda: claim.complete([1.0], {"a<1": 0.0})):
        with pytest.raises(Lost):
            write()
    claim.fail("an error of its own")
    claim.pause()
    assert claim.is_lost()


def test_a_worker_that_lost_its_trial_goes_on_with_the_next(tmp_path):
    study = opened(tmp_path, total=3)
    heard = []

    def loses(claim, check):
        if claim.number == 0:
            _age_heartbeats(study)
            heard.append(study.claim("other"))
        return judge(claim, check)

    worker = Worker(study, loses)

    def stop_after_two():  # the trial that the other one has would be waited for
        while len(study.ledger().finished) < 2:
            time.sleep(0.05)
        worker.interrupted = True

    threading.Thread(target=stop_after_two, daemon=True).start()
    assert worker.run() in ("interrupted", "done")
    assert [trial.state for trial in study.ledger().abandoned] == [TrialState.FAIL]
    assert len(study.ledger().finished) == 2


@pytest.mark.fault("the storage of a study was away for all", "nobody is taken for dead before it could be heard")
def test_after_an_outage_nobody_is_taken_for_dead_before_it_could_be_heard(tmp_path, monkeypatch):
    study = opened(tmp_path, total=3)
    claim = study.claim("silent")
    _age_heartbeats(study)
    monkeypatch.setattr(Outage, "last", time.monotonic())
    assert study.claim("other").number == 1
    assert not claim.is_lost()
    monkeypatch.setattr(Outage, "last", -1e9)
    assert study.claim("other").noted["follows"] == 0


@pytest.mark.fault("the storage stays away", "the worker ends, its trial is left to another")
def test_a_storage_that_stays_away_ends_the_worker_and_leaves_the_trial_to_another(tmp_path):
    study = opened(tmp_path, total=2)

    def away(claim, check):
        raise StorageAway("away for 900 s")

    with pytest.raises(StorageAway):
        Worker(study, away).run()
    assert [trial.number for trial in study.ledger().running] == [0]


def test_a_smaller_total_holds_for_trials_that_wait(tmp_path):
    study = opened(tmp_path, total=5)
    for claim in [study.claim("a") for _ in range(3)]:
        claim.pause()
    Worker(opened(tmp_path, total=2), judge).run()
    assert len(study.ledger().finished) == 2
    assert status(study).trials["waiting"] == 1


def test_options_of_place_are_those_of_the_command_that_goes_on(tmp_path):
    opened(tmp_path, final_seeds=0, data="here")
    again = opened(tmp_path, final_seeds=3, data="there", register_model=False)
    assert (again.config.final_seeds, again.config.data, again.config.register_model) == (3, "there", False)


def test_wilcoxon_gives_up_a_trial_that_loses_on_four_of_five_seeds(tmp_path):
    study = opened(tmp_path, total=3, pruner="wilcoxon", seeds=5)
    first, second = study.claim("a"), study.claim("b")
    for seed in range(5):
        first.report(seed, 0.9 + seed / 100)
    first.complete([0.92], {})
    told = []
    for seed in range(5):
        second.report(seed, 0.5 + seed / 90)
        told.append(second.is_hopeless())
    assert told == [False, False, False, True, True]


@pytest.mark.fault("the connection that holds the study's lock is ended", "an outage, which is waited for")
def test_a_lock_whose_connection_is_ended_is_an_outage_and_not_an_error(tmp_path):
    server = Postgres()
    try:
        study = SearchStudy.create(server.url, "one", opened(tmp_path).settings, 1)
        ended = []

        def lose(trial_id):
            if not ended:
                ended.append(server.rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"))
            return RDBStorage.record_heartbeat(study.storage, trial_id)

        study.storage.record_heartbeat = lose
        claim = study.claim("one")
        assert ended == [[(True,)]]
        assert (claim.number, [trial.number for trial in study.ledger().trials]) == (0, [0])
    finally:
        server.close()
