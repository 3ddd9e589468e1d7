"""Workers on Ray: a real cluster on this machine, with a small script in place of the real worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kd_mlflow.entrypoints.ray_engine import RayWorkers
from kd_mlflow.errors import InputError

pytestmark = pytest.mark.slow

# Notes its process id and its actor's, and each signal that comes; ends with 40 and the signal's number.
SCRIPT = """
import os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[1])

def stop(number, frame):
    (folder / f"signal-{os.getpid()}").write_text(str(number))
    if sys.argv[2] != "stubborn":
        sys.exit(40 + number)

signal.signal(signal.SIGINT, stop)
signal.signal(signal.SIGTERM, stop)
if sys.argv[2] == "quick":
    sys.exit(int(os.environ["CODE"]))
(folder / f"new-{os.getpid()}").write_text(str(os.getppid()))
(folder / f"new-{os.getpid()}").rename(folder / f"worker-{os.getpid()}")
while True:
    time.sleep(0.05)
"""


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., RayWorkers]]:
    """Starts workers, and closes them whatever happens."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    started: list[RayWorkers] = []

    def make(kind: str, count: int, environment: dict[str, str] | None = None, **claims: float) -> RayWorkers:
        command = [sys.executable, str(script), str(tmp_path), kind]
        started.append(RayWorkers(command, environment or {}, count, **{"cpus_each": 0.5, **claims}))
        return started[-1]

    yield make
    for workers in started:
        workers.close()


def until(met: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def ended(workers: RayWorkers) -> list[int | None]:
    until(lambda: None not in workers.poll())
    return workers.poll()


def running(folder: Path, workers: RayWorkers, count: int) -> dict[int, int]:
    """The process ids of so many workers, each with that of its actor."""

    def seen() -> dict[int, int]:
        workers.poll()
        return {int(file.name.removeprefix("worker-")): int(file.read_text()) for file in folder.glob("worker-*")}

    until(lambda: len(seen()) == count)
    return seen()


def signals(folder: Path) -> list[int]:
    return [int(file.read_text()) for file in folder.glob("signal-*")]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def ray_processes() -> set[int]:
    names = ("raylet", "gcs_server", "ray::")
    return {
        one.pid
        for one in psutil.Process().children(recursive=True)
        if one.status() != psutil.STATUS_ZOMBIE and any(name in " ".join(one.cmdline()[:1]) for name in names)
    }


def test_exit_codes_arrive_and_the_environment_is_given(start):
    assert ended(start("quick", 2, {"CODE": "0"})) == [0, 0]
    assert ended(start("quick", 1, {"CODE": "7"})) == [7]


def test_interrupt_and_terminate_reach_the_process_and_the_command_keeps_its_handler(start, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    workers = start("patient", 2)
    assert signal.getsignal(signal.SIGTERM) is before
    running(tmp_path, workers, 2)
    assert workers.poll() == [None, None]
    workers.interrupt()
    assert ended(workers) == [40 + signal.SIGINT] * 2
    assert signals(tmp_path) == [signal.SIGINT] * 2
    workers.interrupt()
    assert workers.poll() == [40 + signal.SIGINT] * 2
    workers.close()
    for file in tmp_path.glob("*-*"):
        file.unlink()
    workers = start("patient", 1)
    running(tmp_path, workers, 1)
    workers.terminate()
    assert ended(workers) == [40 + signal.SIGTERM]
    assert signals(tmp_path) == [signal.SIGTERM]


def test_a_killed_worker_and_one_whose_actor_died_show_as_failed_and_the_rest_go_on(start, tmp_path):
    workers = start("patient", 3)
    (killed, _), (orphan, actor), (third, _) = running(tmp_path, workers, 3).items()
    os.kill(killed, signal.SIGKILL)
    until(lambda: workers.poll().count(None) == 2)
    assert sorted(workers.poll(), key=str) == [-signal.SIGKILL, None, None]
    os.kill(actor, signal.SIGKILL)  # as when its node dies
    until(lambda: workers.poll().count(None) == 1)
    assert 0 not in workers.poll()
    until(lambda: gone(orphan))
    assert not gone(third)
    workers.close()
    assert gone(third)


def test_close_leaves_no_process_not_even_a_stubborn_one(start, tmp_path, monkeypatch):
    monkeypatch.setattr("kd_mlflow.entrypoints.ray_engine.PATIENCE_SECONDS", 1.0)
    workers = start("stubborn", 2)
    pids = running(tmp_path, workers, 2)
    assert ray_processes()
    workers.close()
    assert all(map(gone, pids))
    assert workers.poll() == [-signal.SIGKILL] * 2
    assert signals(tmp_path) == [signal.SIGTERM] * 2
    until(lambda: not ray_processes(), seconds=10)
    import ray

    assert not ray.is_initialized()
    workers.close()


def test_a_worker_without_room_waits_and_can_be_stopped(start, tmp_path):
    workers = start("patient", 2, gpus_each=1, cpus_each=0.1)  # no GPU is here
    time.sleep(2)
    assert workers.poll() == [None, None]
    workers.interrupt()
    assert workers.poll() == [-signal.SIGINT] * 2
    workers.close()
    assert list(tmp_path.glob("worker-*")) == []


def test_a_connection_of_someone_else_is_used_and_left_open(start):
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)
    try:
        # Room for one: the second starts when the first has ended, with what that one had claimed.
        workers = start("quick", 2, {"CODE": "3"}, cpus_each=1)
        assert ended(workers) == [3, 3]
        workers.close()
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_workers_run_on_the_cluster_at_ray_address_and_a_node_that_dies_shows_as_failed(start, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    plain = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **plain})
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        workers = start("patient", 1)
        (pid,) = running(tmp_path, workers, 1)
        cluster.remove_node(node, allow_graceful=False)
        assert ended(workers) == [1]
        until(lambda: gone(pid))
        workers.close()
        assert cluster.head_node.any_processes_alive()
    finally:
        cluster.shutdown()


def test_a_command_that_is_not_there_shows_as_failed(monkeypatch, caplog):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    workers = RayWorkers(["/no/such/command"], {}, 1)
    try:
        assert ended(workers) == [1]
        assert "/no/such/command" in caplog.text
    finally:
        workers.close()


def test_an_address_without_a_cluster_and_a_missing_ray_are_sentences(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"RAY_ADDRESS 127\.0\.0\.1:1"):
        RayWorkers(["true"], {}, 1)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'kd-mlflow\[ray\]'"):
        RayWorkers(["true"], {}, 1)
