"""Curves reach a real store whatever becomes of the server: none lost, none twice."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter, download, history, read_json, read_run
from kd_mlflow.tracking.spool import Spool, _Box, _check_room, send_left
from tests.conftest import ROOT
from tests.tracking.helpers import CLASSES, SIZE
from tests.tracking.test_server import free_port, served

EPOCHS = 12


@pytest.fixture
def run(client) -> tuple[MlflowClient, str]:
    return client, client.create_run(client.create_experiment("spool")).info.run_id


def points(client: MlflowClient, run_id: str, name: str = "val/loss") -> list[tuple[int, float, int]]:
    return [(one.step, one.value, one.timestamp) for one in client.get_metric_history(run_id, name)]


def expected(epochs: int) -> list[tuple[int, float, int]]:
    return [(epoch, 1 / epoch, 1000 + epoch) for epoch in range(1, epochs + 1)]


def test_all_points_arrive_and_nothing_is_left_on_disk(run, tmp_path):
    client, run_id = run
    spool = Spool(client, run_id, tmp_path / "spool")
    for epoch, value, moment in expected(30):
        spool.metrics({"val/loss": value, "strange": math.nan if epoch == 2 else math.inf}, epoch, moment)
    assert spool.close(60)
    assert points(client, run_id) == expected(30)
    strange = [value for _, value, _ in points(client, run_id, "strange")]
    assert math.isnan(strange[1])
    assert strange[0] > 1e308
    assert list((tmp_path / "spool").iterdir()) == []


def test_points_that_are_sent_again_are_there_once(run, tmp_path):
    client, run_id = run
    for _ in range(3):
        spool = Spool(client, run_id, tmp_path / "spool")
        for epoch, value, moment in expected(5):
            spool.metrics({"val/loss": value}, epoch, moment)
        assert spool.close(60)
    assert points(client, run_id) == expected(5)


@pytest.mark.fault("SIGKILL with curves that were not sent", "the next command sends them")
def test_what_a_killed_process_left_is_sent_by_the_next(run, tmp_path):
    client, run_id = run
    script = f"""
import os, signal
from kd_mlflow.tracking.spool import Spool
class Away:
    def log_batch(self, *_, **__): raise OSError("away")
spool = Spool(Away(), "{run_id}", __import__("pathlib").Path("spool"))
for epoch in range(1, 8):
    spool.metrics({{"val/loss": 1 / epoch}}, epoch, 1000 + epoch)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    assert points(client, run_id) == []
    (sent,) = send_left(client, tmp_path / "spool")
    assert (sent.run_id, sent.records, sent.error) == (run_id, 7, "")
    assert points(client, run_id) == expected(7)
    assert send_left(client, tmp_path / "spool") == []


def test_a_journal_of_a_process_that_lives_is_left_to_it(run, tmp_path):
    client, run_id = run
    spool = Spool(client, run_id, tmp_path / "spool")
    spool.metrics({"val/loss": 1.0}, 1, 1001)
    assert send_left(client, tmp_path / "spool") == []
    assert spool.close(60)


def test_a_run_that_the_store_does_not_have_keeps_its_journal(client, tmp_path):
    spool = Spool(client, "0" * 32, tmp_path / "spool")
    spool.metrics({"val/loss": 1.0}, 1, 1001)
    assert not spool.close(1)
    (left,) = send_left(client, tmp_path / "spool")
    assert left.error
    assert (tmp_path / "spool" / f"{'0' * 32}.journal").is_file()


@pytest.mark.fault("the tracking server is killed and comes back", "training does not wait; every point is there once")
def test_a_server_that_is_killed_and_comes_back_has_every_point_once(empty_store: Path, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="kd_mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    port = free_port()
    options = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1"]
    arguments = ["server", *options, "--port", str(port), "--workers", "1"]
    told = expected(EPOCHS)
    with served(arguments, port, "/health", tmp_path) as url:
        client = connect(url)
        run_id = client.create_run(client.create_experiment("spool")).info.run_id
        spool = Spool(client, run_id, tmp_path / "spool")
        for epoch, value, moment in told[:4]:
            spool.metrics({"val/loss": value}, epoch, moment)
        assert spool.flush(60)
    for epoch, value, moment in told[4:]:
        spool.metrics({"val/loss": value}, epoch, moment)
    assert not spool.flush(1)  # nobody waited for the server
    assert "kept on disk" in caplog.text
    with served(arguments, port, "/health", tmp_path):
        assert spool.close(120)
        assert points(connect(url), run_id) == told


def write_all(writer: RunWriter, model: Path, epochs: range) -> None:
    """A record of every kind."""
    writer.params({"epochs": 3, "nested": {"temperature": 4.0}})
    writer.tags({"kd.note": "said"})
    writer.dataset("photos", "abc", {"train": 10}, "photos/", "training")
    for epoch, value, moment in expected(epochs.stop - 1)[epochs.start - 1 :]:
        writer.metrics({"val/loss": value}, epoch, moment)
    writer.json("evaluation.json", {"classes": list(CLASSES)})
    writer.table("tables/wrong", [{"path": "a.jpg", "class": "cat"}])
    writer.final_metrics({"test/accuracy": 0.5})
    writer.model(model, CLASSES, SIZE, {"test/accuracy": 0.5})


def check_all(client: MlflowClient, run_id: str, tmp_path: Path, epochs: int) -> None:
    """The store holds all of it, once."""
    run = read_run(client, run_id)
    assert (run.params["cfg.epochs"], run.params["cfg.nested.temperature"], run.tags["kd.note"]) == ("3", "4.0", "said")
    assert points(client, run_id) == expected(epochs)
    assert history(client, run_id)["test/accuracy"] == [(0, 0.5)]
    assert len(client.get_metric_history(run_id, "test/accuracy")) == 1
    assert read_json(client, run_id, "evaluation.json") == {"classes": list(CLASSES)}
    assert download(client, run_id, "tables/wrong.csv", tmp_path / "down").read_text() == "path,class\na.jpg,cat\n"
    assert json.loads(run.tags["mlflow.loggedArtifacts"]) == [{"path": "tables/wrong.json", "type": "table"}]
    found = client.get_run(run_id)
    assert [one.dataset.digest for one in found.inputs.dataset_inputs] == ["abc"]
    (model,) = found.outputs.model_outputs
    assert client.get_logged_model(model.model_id).status == "READY"


def server_arguments(empty_store: Path, folder: Path, port: int) -> list[str]:
    """A server of its own store, which ``served`` starts."""
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    return [
        "server", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip


@pytest.mark.fault(
    "the tracking server dies while every kind of record is written", "the run goes on; all of it is there once"
)
def test_a_whole_run_outlives_its_server(empty_store: Path, tmp_path, monkeypatch, trained):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("KD_MLFLOW_HOME", str(tmp_path / "kd-home"))
    port = free_port()
    arguments = server_arguments(empty_store, tmp_path, port)
    with served(arguments, port, "/health", tmp_path) as url:
        client = connect(url)
        writer = RunWriter.open(client, role="student", experiment="outage", run_name="kd", tags={})
        writer.settle(60)
    write_all(writer, trained[0], range(1, 8))
    with pytest.raises(KdMlflowError, match="kept on disk"):
        writer.settle(1)
    with served(arguments, port, "/health", tmp_path):
        writer.finish("FINISHED")
        check_all(connect(url), writer.run_id, tmp_path, 7)
        assert read_run(connect(url), writer.run_id).status == "FINISHED"
    assert list((tmp_path / "kd-home" / "spool").iterdir()) == []


@contextmanager
def hanging(port: int) -> Iterator[None]:
    """A server that takes calls and does not answer; what it was asked it does later."""
    (server,) = [one for one in psutil.Process().children() if str(port) in one.cmdline()]
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


@pytest.mark.fault("the tracking server hangs, and answers late", "the run goes on; all of it is there once")
@pytest.mark.slow
def test_a_whole_run_outlives_a_server_that_hangs(empty_store: Path, tmp_path, monkeypatch, trained):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("KD_MLFLOW_HOME", str(tmp_path / "kd-home"))
    port = free_port()
    with served(server_arguments(empty_store, tmp_path, port), port, "/health", tmp_path) as url:
        client = connect(url)
        writer = RunWriter.open(client, role="student", experiment="hang", run_name="kd", tags={})
        writer.settle(60)
        for epochs in (range(1, 4), range(4, 8)):
            with hanging(port):
                write_all(writer, trained[0], epochs)
                with pytest.raises(KdMlflowError, match="kept on disk"):
                    writer.settle(7)
            writer.settle(60)
        writer.finish("FINISHED")
        check_all(client, writer.run_id, tmp_path, 7)


@pytest.mark.fault("SIGKILL before anything of a run was sent", "the next command sends it, its end too")
def test_what_a_killed_process_left_of_a_whole_run_is_sent(client, tmp_path, trained):
    script = f"""
import os, pathlib, signal, sys
sys.path.insert(0, "{ROOT}")
from kd_mlflow.tracking import spool
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import RunWriter
from tests.tracking.test_spool import write_all
def away(*_, **__): raise OSError("away")
spool.send = away
writer = RunWriter.open(connect("{client.tracking_uri}"), role="student", experiment="e", run_name="r", tags={{}})
write_all(writer, pathlib.Path("{trained[0]}"), range(1, 5))
writer.spool.put({{"end": "FINISHED", "at": 1700000000000}})
print(writer.run_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    run_id = child.stdout.strip()
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert points(client, run_id) == []
    (sent,) = send_left(client, tmp_path / "kd-home" / "spool")
    assert (sent.run_id, sent.error) == (run_id, "")
    check_all(client, run_id, tmp_path, 4)
    assert (read_run(client, run_id).status, read_run(client, run_id).end_time) == ("FINISHED", 1700000000000)
    assert list((tmp_path / "kd-home" / "spool").iterdir()) == []


def test_what_was_sent_and_not_noted_is_sent_again_without_harm(client, tmp_path, trained):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    write_all(writer, trained[0], range(1, 5))
    kept = tmp_path / "copy"
    shutil.copytree(writer.spool.folder, kept)
    writer.finish("FINISHED")
    (kept / f"{writer.run_id}.sent").unlink(missing_ok=True)
    assert all(sent.error == "" for sent in send_left(client, kept))
    check_all(client, writer.run_id, tmp_path, 4)


@pytest.mark.fault("how far was sent cannot be noted", "it is sent all the same; sent once more it is there once")
def test_a_disk_that_takes_no_note_of_what_was_sent_costs_nothing(client, tmp_path, trained):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    writer.settle(60)
    note = writer.spool.box.place.read_bytes()
    writer.spool.box.place.unlink()
    writer.spool.box.place.mkdir()  # no note can be written there
    write_all(writer, trained[0], range(1, 5))
    writer.settle(60)
    check_all(client, writer.run_id, tmp_path, 4)
    kept = tmp_path / "copy"
    writer.spool.box.place.rmdir()
    writer.spool.box.place.write_bytes(note)
    shutil.copytree(writer.spool.folder, kept)
    assert [sent.error for sent in send_left(client, kept)] == [""]
    check_all(client, writer.run_id, tmp_path, 4)
    writer.finish("FINISHED")


@pytest.mark.fault("death while a journal that was sent is removed", "what is left is sent again, or is nothing")
@pytest.mark.parametrize("step", range(4))
def test_a_spool_that_was_removed_by_half_asks_for_no_file_that_is_gone(client, tmp_path, trained, monkeypatch, step):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    write_all(writer, trained[0], range(1, 3))
    kept = tmp_path / "copy"
    shutil.copytree(writer.spool.folder, kept)
    writer.finish("FINISHED")
    (kept / f"{writer.run_id}.sent").unlink(missing_ok=True)
    removals = iter(range(5))

    def dying(real):
        def removal(*arguments, **options):
            if next(removals) == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return removal

    with monkeypatch.context() as patch:
        patch.setattr(_Box, "mark", lambda *_: None)  # a disk that takes no note of what was sent
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            send_left(client, kept)
    assert [sent.error for sent in send_left(client, kept)] == ([""] if step < 2 else [])
    check_all(client, writer.run_id, tmp_path, 2)
    assert not list(kept.glob("*.journal"))


def test_a_note_takes_no_more_room_than_it_has(client, tmp_path):
    """What a full disk takes, and what a power cut leaves whole: the same bytes of the same file."""
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    place = writer.spool.box.place
    before = place.stat()
    writer.metrics({"val/loss": 1.0}, 1, 1001)
    writer.settle(60)
    assert (place.stat().st_ino, place.stat().st_size) == (before.st_ino, before.st_size)
    assert int(place.read_text()) == writer.spool.journal.end
    writer.finish("FINISHED")


@pytest.mark.fault("other runs' files go while the room is measured", "nobody is told of a full disk")
def test_room_is_measured_while_others_take_their_files_away(tmp_path):
    over, rounds = threading.Event(), []

    def churn(number: int) -> None:
        while not over.is_set():
            rounds.append(number)
            folder = tmp_path / f"{number}.files" / "000000000000" / "deep"
            folder.mkdir(parents=True)
            for name in range(5):
                (folder / str(name)).write_bytes(b"x")
            shutil.rmtree(tmp_path / f"{number}.files")

    threads = [threading.Thread(target=churn, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            _check_room(tmp_path)
        assert set(rounds) == {0, 1, 2}  # all of them made and took away files meanwhile
        (tmp_path / "large").write_bytes(b"")
        os.truncate(tmp_path / "large", 10**11)
        with pytest.raises(OSError, match="more than KD_MLFLOW_SPOOL_GB"):
            _check_room(tmp_path)
    finally:
        over.set()
        for thread in threads:
            thread.join()


@pytest.mark.fault("a file that waits is altered", "it is not sent, and the run says why")
def test_a_file_that_was_altered_while_it_waited_is_not_sent(client, tmp_path):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    kept = tmp_path / "copy"
    writer.settle(60)
    writer.text("evaluation.json", "{}")
    shutil.copytree(writer.spool.folder, kept)
    writer.finish("FINISHED")
    (file,) = kept.rglob("evaluation.json")
    file.write_text("[]")
    (left,) = send_left(client, kept)
    assert "are not those that were recorded" in left.error
    assert file.is_file()


@pytest.mark.fault("the store refuses a record for good", "training goes on; the end says what was refused")
def test_a_refusal_does_not_end_the_training_and_is_said_at_its_end(client):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    writer.settle(60)
    client.delete_run(writer.run_id)
    writer.metrics({"val/loss": 1.0}, 1, 1001)
    writer.metrics({"val/loss": 0.5}, 2, 1002)
    with pytest.raises(KdMlflowError, match="refuses"):
        writer.finish("FINISHED")


@pytest.mark.fault("what waits takes more room than is allowed", "one sentence; what was given before is kept")
def test_what_waits_is_bounded_on_disk(client, monkeypatch, tmp_path):
    writer = RunWriter.open(client, role="student", experiment="e", run_name="r", tags={})
    writer.settle(60)
    monkeypatch.setenv("KD_MLFLOW_SPOOL_GB", "0.00001")
    writer.metrics({"val/loss": 1.0}, 1, 1001)
    with pytest.raises(KdMlflowError, match="KD_MLFLOW_SPOOL_GB"):
        writer.text("big.txt", "x" * 20_000)
    writer.finish("KILLED")
    assert points(client, writer.run_id) == [(1, 1.0, 1001)]


def test_a_living_writer_has_a_heartbeat(client, monkeypatch):
    monkeypatch.setattr("kd_mlflow.tracking.spool.HEARTBEAT_SECONDS", 0.2)
    with RunWriter.open(client, role="student", experiment="e", run_name="r", tags={}) as writer:
        first = read_run(client, writer.run_id).tags["kd.heartbeat"]
        until = time.monotonic() + 30
        while (now := read_run(client, writer.run_id).tags["kd.heartbeat"]) == first:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert int(now) > int(first)
