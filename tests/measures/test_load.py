"""Other work on the machine: what counts as such, and what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd_mlflow.measures.gpu import Gpu
from kd_mlflow.measures.load import LoadMeter, MachineLoad, ThisMachine, _groups, _quota, together
from tests.conftest import ROOT
from tests.measures.test_resources import FakeNvml

CPU = torch.device("cpu")


class Counters:
    """A machine on which ours and others use so many cores, by a clock that is set by hand."""

    def __init__(self, cores: float, ours: float, others: float, average: float = 0.0) -> None:
        self.cores, self.ours, self.others, self.average = cores, ours, others, average
        self.now = 0.0

    def busy(self) -> float:
        return (self.ours + self.others) * self.now

    def own(self) -> float:
        return self.ours * self.now

    def load_average(self) -> float:
        return self.average

    def pids(self) -> set[int]:
        return {10, 11}

    def clock(self) -> float:
        return self.now


def look(counters: Counters, threads: int, gpu: Gpu | None = None, seconds: float = 10) -> MachineLoad | None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        meter = LoadMeter(CPU, counters, gpu, counters.clock)
    finally:
        torch.set_num_threads(before)
    counters.now += seconds
    return meter.look()


@pytest.mark.parametrize(
    ("cores", "threads", "ours", "others", "shared"),
    [
        (2, 1, 0.4, 1.6, True),  # two others want a core each
        (2, 2, 1.3, 0.7, True),  # one other, and we want both
        (2, 1, 1.0, 1.0, False),  # one other has the core that we leave free
        (2, 2, 2.0, 0.0, False),  # we alone fill the machine
        (2, 1, 2.0, 0.0, False),  # our own worker processes beside us
        (2, 2, 1.8, 0.2, False),  # what goes on on every machine
        (64, 16, 16.0, 40.0, False),
        (64, 32, 20.0, 40.0, True),
        (0.5, 1, 0.2, 0.3, True),  # a container with half a core
    ],
)
def test_machine_is_shared_when_others_want_the_cores_that_we_use(cores, threads, ours, others, shared):
    found = look(Counters(cores, ours, others), threads)
    assert found is not None
    assert found.shared is shared
    assert found.other_cores == pytest.approx(others)


def test_load_is_named_with_the_cores_and_with_the_average_where_that_is_higher():
    assert str(look(Counters(2, 0.4, 1.6), 1)) == "load 2.6 on 2 cores"
    assert str(look(Counters(2, 0.4, 1.6, average=3.12), 1)) == "load 3.1 on 2 cores"
    # An average that our own processes made is no load of others.
    assert str(look(Counters(2, 2.0, 0.0, average=6.0), 2)) == "load 2.0 on 2 cores"


def test_time_that_is_too_short_gives_no_answer_and_goes_with_the_next():
    counters = Counters(2, 0.4, 1.6)
    meter = LoadMeter(CPU, counters, None, counters.clock)
    counters.now = 0.1
    assert meter.look() is None
    counters.now = 4.0
    assert meter.look().seconds == 4.0


class Computing(FakeNvml):
    """A card on which processes compute."""

    def __init__(self, *pids: int) -> None:
        super().__init__()
        self.pids = pids

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        if not self.pids:
            raise self.NVMLError("Not Supported")
        return [SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.mark.parametrize(
    ("pids", "count"),
    [((10,), 0), ((10, 11), 0), ((10, 99), 1), ((98, 99), 1), ((99,), 0), ((), 0)],
    ids=["ours", "our two", "one more", "numbers of the host", "one number of the host", "does not tell"],
)
def test_processes_on_the_gpu_that_are_not_ours_share_it(pids, count):
    found = look(Counters(8, 1.0, 0.0), 1, Gpu(Computing(*pids), 0))
    assert (found.gpu_processes, found.shared) == (count, count > 0)
    assert str(found).endswith("1 other process on the GPU" if count else "8 cores")


def test_training_is_shared_if_a_tenth_of_its_time_was():
    alone = MachineLoad(1.0, 2, 0.0, 0, False, 9.5)
    assert not together([alone, MachineLoad(3.0, 2, 1.9, 0, True, 0.5)]).shared
    found = together([alone, MachineLoad(3.0, 2, 1.5, 0, True, 1.0), MachineLoad(5.0, 2, 1.9, 0, True, 1.0)])
    assert found.shared
    assert (found.load, found.other_cores, found.seconds) == (4.0, pytest.approx(1.7), 11.5)
    assert together([]) is None


def test_processor_time_of_our_own_processes_is_ours_also_when_they_have_ended():
    machine = ThisMachine()
    before = machine.own()
    burn = "import time\nwhile time.process_time() < 0.4: pass"
    child = subprocess.Popen([sys.executable, "-c", burn])
    child.wait()
    assert machine.own() - before > 0.35  # the system counts in hundredths, cut off
    assert machine.busy() > 0


COMMAND = """
import subprocess, sys
burn = [sys.executable, "-c", "import time\\nwhile time.process_time() < 0.4: pass"]
look = "from kd_mlflow.measures.load import ThisMachine\\nmachine = ThisMachine()\\nbefore = machine.own()\\n"
look += "for line in __import__('sys').stdin: print(machine.own() - before, flush=True)"
worker = subprocess.Popen([sys.executable, "-c", look], stdin=subprocess.PIPE)
for line in sys.stdin:
    if line == "burn\\n":
        subprocess.run(burn)
    worker.stdin.write(b"look\\n")
    worker.stdin.flush()
"""


def test_workers_of_one_command_are_no_other_work_to_each_other_and_a_stranger_is(tmp_path: Path):
    command = tmp_path / "kd-mlflow"
    command.write_text(COMMAND)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(command)], env=environment, **pipes) as process:

        def ask(what: str) -> float:
            process.stdin.write(f"{what}\n")
            return float(process.stdout.readline())

        start = ask("look")
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.6: pass"], check=True)
        stranger = ask("look")
        sibling = ask("burn")
        process.stdin.close()
        process.kill()
    assert stranger - start < 0.3
    assert sibling - stranger > 0.35


@pytest.mark.parametrize(
    ("files", "line", "cores"),
    [
        ({"cgroup.controllers": "cpu", "a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, "0::/a/b", 1.5),
        ({"cgroup.controllers": "cpu", "cpu.max": "50000 100000"}, "0::/of/the/host", 0.5),
        ({"cgroup.controllers": "cpu", "a/cpu.max": "max 100000"}, "0::/a", 0),
        ({"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000"}, "4:cpu,cpuacct:/a", 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", 0),
        ({}, "1:memory:/", 0),
    ],
)
def test_cores_that_a_container_may_use_are_the_least_of_its_groups(tmp_path: Path, files, line, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "mine").write_text(line + "\n")
    quotas = [quota for group in _groups(tmp_path, tmp_path / "mine") if (quota := _quota(group))]
    assert min(quotas, default=0) == cores


def test_limited_container_counts_its_own_processes_alone(tmp_path: Path):
    (tmp_path / "cgroup.controllers").write_text("cpu")
    (tmp_path / "cpu.max").write_text("50000 100000")
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 2000000\n")
    (tmp_path / "mine").write_text("0::/\n")
    machine = ThisMachine(tmp_path, tmp_path / "mine")
    assert machine.cores == 0.5
    assert machine.busy() == 2.5
