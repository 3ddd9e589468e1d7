"""The processes that train one network together: started here or by torchrun, told what to train, ended.

The command is process 0. The others run :mod:`kd_mlflow.entrypoints.rank`, know nothing, and are sent all they need:
options as JSON, weights as safetensors.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from kd_mlflow.config import Recipe
from kd_mlflow.entrypoints.cutting import is_relational
from kd_mlflow.entrypoints.parent import STOP_WITH
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import GuardError, InputError, KdMlflowError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.training.checkpoint import CheckpointFolder
from kd_mlflow.training.group import Group
from kd_mlflow.training.state import smallest_part

# Between two steps the leader may have to wait for its servers.
PATIENCE = timedelta(hours=2)
MEETING_SECONDS = 180
ANSWER_BYTES = 512
# What a process ends with whose device has too little memory.
MEMORY = 4
MEETING = "KD_MLFLOW_MEETING"


class ProcessDied(KdMlflowError):
    """A process of the training ended in the middle of it."""


@dataclass
class Processes:
    """A group that is up, as its leader sees it; without children it is torchrun's.

    Attributes
    ----------
    threads:
        For the leader's arithmetic while it shares the cores; 0 if it shares none.
    folder:
        Where the processes met.
    """

    size: int
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)
    threads: int = 0
    folder: str = ""

    def tell(self, job: dict[str, Any] | None, tensors: dict[str, Tensor] | None = None) -> None:
        """Give all processes something to train; None ends them."""
        share_bytes(b"" if job is None else json.dumps(job).encode())
        if job is not None:
            share_bytes(save({name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}))

    def died(self) -> int | None:
        """The exit code of a process that ended, once it has; None if none did."""
        until = time.monotonic() + (10 if self.children else 0)
        while time.monotonic() < until:
            codes = [code for child in self.children if (code := child.poll()) is not None]
            if codes:
                return MEMORY if MEMORY in codes else min(codes)  # who was killed comes before whoever missed it
            time.sleep(0.05)
        return None

    def close(self, *, orderly: bool) -> None:
        """End all of them; in the middle of a training they are not asked."""
        _open.clear()
        if orderly:
            with suppress(RuntimeError):
                self.tell(None)
        else:
            for child in self.children:
                child.send_signal(signal.SIGTERM)
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


_open: list[Processes] = []


@contextmanager
def together(
    session: Session, recipe: Recipe, student: Classifier, teachers: Sequence[Classifier], folder: CheckpointFolder
) -> Iterator[Group]:
    """The group that trains by the recipe, all its processes ready to begin; with one device a process alone.

    Raises
    ------
    InputError
        There are not so many devices, or a process cannot train this.
    ProcessDied
        In the middle of the training; the group is closed, and the next one starts a new one.
    torch.OutOfMemoryError
        In whichever process.
    """
    if _open and _open[0].size != recipe.devices:
        if not _open[0].children:
            raise InputError(f"torchrun started {_open[0].size} processes; give --devices {_open[0].size}.")
        _open[0].close(orderly=True)
    if recipe.devices == 1:
        yield Group()
        return
    group = Group(0, recipe.devices)
    group.check(min(recipe.batch_size, len(session.store.splits["train"])), smallest_part(student))
    processes = _open[0] if _open else _start(recipe.devices, session.device)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(processes.threads or threads)
        job, tensors = _job(session, recipe, student, teachers, folder)
        processes.tell(job, tensors)
        said = [answer for answer in answers("") if answer]
        if said:
            group.agreed = True
            raise InputError(said[0])
        yield group
    except BaseException as error:
        if group.agreed:
            raise
        code = processes.died() if is_loss(error) else None
        processes.close(orderly=False)
        if isinstance(error, torch.OutOfMemoryError) and not processes.children:
            way = "a smaller --batch-size" if is_relational(recipe) else "--accumulate 2"
            raise GuardError(f"The device's memory does not hold a step; under torchrun give {way}.") from None
        if code == MEMORY:
            raise torch.OutOfMemoryError("in another process of the training") from None
        if code is not None and code < 0:
            raise ProcessDied(f"A process of the training ended with code {code}.") from None
        if code is not None:
            raise KdMlflowError(
                f"A process of the training ended with code {code}; its last words stand above."
            ) from None
        raise
    finally:
        torch.set_num_threads(threads)


def is_loss(error: BaseException) -> bool:
    """Whether it is what a process sees of the loss of another one."""
    named = any(backend in str(error).lower() for backend in ("gloo", "nccl"))
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and named)


def check_devices(size: int, device: torch.device) -> None:
    """Raise an InputError unless there are so many devices from this one on, or the cores are shared."""
    if device.type == "cuda" and (device.index or 0) + size > torch.cuda.device_count():
        raise InputError(f"--devices {size} from {device} on: PyTorch sees {torch.cuda.device_count()} CUDA devices.")


def join_torchrun() -> None:
    """Lead the processes that torchrun started, from the command's beginning to its end."""
    _open.append(Processes(int(os.environ["WORLD_SIZE"])))
    meet(0, _open[0].size)
    atexit.register(_close_open)


def meet(rank: int, size: int) -> None:
    """Come together with the other processes."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    place = os.environ.get(MEETING)
    if place is None:
        dist.init_process_group(backend, timeout=PATIENCE)
        return
    store = dist.FileStore(place, size)
    store.set_timeout(timedelta(seconds=MEETING_SECONDS))
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)


def share_bytes(content: bytes = b"") -> bytes:
    """What process 0 gives, in all processes."""
    length = torch.tensor([len(content)])
    dist.broadcast(length, src=0)
    whole = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else None
    if not int(length):
        return b""
    if dist.get_rank() != 0:
        whole = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(whole, src=0)
    return whole.numpy().tobytes()


def next_job() -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What the leader tells; None at the end."""
    job = share_bytes()
    return (json.loads(job), load(share_bytes())) if job else None


def answers(own: str) -> list[str]:
    """What every process says, in the order of their ranks."""
    content = own.encode()[:ANSWER_BYTES]
    row = torch.zeros(1, ANSWER_BYTES, dtype=torch.uint8)
    row[0, : len(content)] = torch.tensor(list(content), dtype=torch.uint8)
    rows = Group(dist.get_rank(), dist.get_world_size()).rows(row)
    return [bytes(one.tolist()).rstrip(b"\0").decode(errors="ignore") for one in rows]


def _job(
    session: Session, recipe: Recipe, student: Classifier, teachers: Sequence[Classifier], folder: CheckpointFolder
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    found = folder.load()
    state, meta = found if found else ({}, None)
    networks = {"student": student, **{f"teacher{place}": one for place, one in enumerate(teachers)}}
    job = {
        "command": type(session.config).__name__,
        "config": session.config.recorded(),
        "recipe": recipe.model_dump(mode="json"),
        "digest": session.store.digest,
        "device": str(session.device),
        "networks": {name: model.spec.model_dump(mode="json") for name, model in networks.items()},
        "meta": asdict(meta) if meta else None,
    }
    tensors = {f"checkpoint:{name}": value for name, value in state.items()}
    for name, model in networks.items():
        # Cloned: safetensors takes no two names for one tensor, and a person's network may share weights.
        tensors |= {f"{name}:{key}": value.clone() for key, value in model.state_dict().items()}
    return job, tensors


def _start(size: int, device: torch.device) -> Processes:
    """Processes on this machine, a GPU each or a share of the cores."""
    check_devices(size, device)
    # Only for this user: who meets here is sent the weights.
    folder = tempfile.mkdtemp(prefix="kd-mlflow-")
    place = Path(folder) / "meeting"
    cores = max(1, (os.cpu_count() or 1) // size)
    environment = {MEETING: str(place), "WORLD_SIZE": str(size), STOP_WITH: str(os.getpid())}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(cores)
    # A session of its own: Ctrl-C is for the leader.
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "kd_mlflow"],
            env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,
        )
        for rank in range(1, size)
    ]
    own = int(os.environ.get("OMP_NUM_THREADS", cores)) if device.type == "cpu" else 0
    processes = Processes(size, children, own, folder)
    _open.append(processes)
    atexit.register(_close_open)
    before = {name: os.environ.get(name) for name in (MEETING, "GLOO_SOCKET_IFNAME")}
    os.environ |= {name: environment[name] for name in before if name in environment}
    try:
        meet(0, size)
    except BaseException as error:
        codes = [child.poll() for child in children]
        processes.close(orderly=False)
        if isinstance(error, RuntimeError):
            raise KdMlflowError(f"The processes of the training did not come up (exit codes {codes}).") from None
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return processes


def _close_open() -> None:
    if _open:
        _open[0].close(orderly=True)
