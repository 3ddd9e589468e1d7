"""Workers of a search on a Ray cluster, handled like processes of this machine."""

from __future__ import annotations

import ctypes
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from kd_mlflow.errors import InputError

# What a worker counts as having exited with when the node or the actor under it is gone.
LOST = 1
ANSWER_SECONDS = 5.0
PATIENCE_SECONDS = 30.0
# Nothing goes through Ray's object store; it would take a third of the memory.
OBJECT_STORE_BYTES = 100 * 2**20
PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


class RayWorkers:
    """Equal workers, each a process under an actor of its own.

    Connects to the cluster that RAY_ADDRESS names, else starts one on this machine that ends with
    :meth:`close`. A worker for which the cluster has no room yet waits for it and counts as running.

    Parameters
    ----------
    command:
        What each worker runs; it must be there on every node.
    environment:
        Variables that the command gets besides those of its node.
    gpus_each, cpus_each:
        What each worker claims; may be a fraction.

    Raises
    ------
    InputError
        Ray is not installed, or no cluster answers at RAY_ADDRESS.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        count: int,
        gpus_each: float = 0,
        cpus_each: float = 1,
    ) -> None:
        self._ray = _import_ray()
        self._owns_ray = _connect(self._ray, cpus=max(1, math.ceil(count * cpus_each)))
        actor = self._ray.remote(num_cpus=cpus_each, num_gpus=gpus_each)(WorkerProcess)
        self._actors = [actor.remote(list(command), dict(environment)) for _ in range(count)]
        self._codes: list[int | None] = [None] * count
        self._asked: dict[int, Any] = {}
        self._started: set[int] = set()

    def poll(self) -> list[int | None]:
        """The exit code of each, as last heard; None while it runs. Never waits."""
        self._ask()
        self._hear(seconds=0)
        return list(self._codes)

    def interrupt(self) -> None:
        """SIGINT to each; who has not started yet never will."""
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        """SIGTERM to each; who has not started yet never will."""
        self._signal(signal.SIGTERM)

    def close(self) -> None:
        """Leave none behind: who does not end when asked is killed, and its trial done again by another."""
        try:
            if self._running():
                self.terminate()
            until = time.monotonic() + PATIENCE_SECONDS
            while None in self.poll() and time.monotonic() < until:
                time.sleep(0.1)
        finally:
            self._wait([self._actors[place].kill.remote() for place in self._running()])
            for place in self._running():
                self._dismiss(place, -signal.SIGKILL)
            if self._owns_ray:
                self._owns_ray = False
                self._ray.shutdown()

    def _running(self) -> list[int]:
        return [place for place, code in enumerate(self._codes) if code is None]

    def _ask(self) -> None:
        for place in self._running():
            if place not in self._asked:
                self._asked[place] = self._actors[place].poll.remote()

    def _hear(self, seconds: float) -> None:
        """Take in the answers that have come, after so many seconds at most."""
        if not self._asked:
            return
        asked = list(self._asked.values())
        ready, _ = self._ray.wait(asked, num_returns=len(asked), timeout=seconds)
        for place in [place for place, answer in self._asked.items() if answer in ready]:
            self._take(place, self._asked.pop(place))

    def _take(self, place: int, answer: Any) -> None:
        try:
            code = self._ray.get(answer)
        except self._ray.exceptions.ActorUnavailableError:
            return  # the network, perhaps; asked again
        except self._ray.exceptions.RayError as error:
            log.warning("Worker %d on the Ray cluster is lost: %s", place, _gist(error))
            code = LOST
        else:
            self._started.add(place)
        if code is not None:
            self._dismiss(place, code)

    def _dismiss(self, place: int, code: int) -> None:
        """Note how a worker ended; what its actor claimed is then free for one that waits."""
        self._codes[place] = code
        self._asked.pop(place, None)
        self._ray.kill(self._actors[place])

    def _signal(self, number: int) -> None:
        self._ask()
        self._hear(seconds=ANSWER_SECONDS)
        running = self._running()
        self._wait([self._actors[place].signal.remote(number) for place in running if place in self._started])
        for place in running:
            if place not in self._started:
                self._dismiss(place, -number)

    def _wait(self, calls: list[Any]) -> None:
        if calls:
            self._ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)


class WorkerProcess:
    """The actor: one process on the node where it runs."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        libc = ctypes.CDLL(None) if sys.platform == "linux" else None

        def prepare() -> None:
            # Ray blocks SIGINT in all that it starts, and a child inherits that.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if libc is not None:  # an actor that is killed does not leave its process behind
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self.process.poll()

    def signal(self, number: int) -> None:
        """Send the process a signal; nothing if it has ended."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the process and what it started, at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs Ray; install it with: pip install ray") from None
    return ray


def _connect(ray: ModuleType, cpus: int) -> bool:
    """Connect unless this process is connected; whether it was done here."""
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    here = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_port(address or "")
        ray.init(address or "local", log_to_driver=False, logging_level=logging.WARNING, **({} if address else here))
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if not address:
            raise
        raise InputError(f"RAY_ADDRESS {address} names no Ray cluster that can be used: {_gist(error)}") from None
    finally:
        _restore(before)
    return True


def _check_port(address: str) -> None:
    """Whether anyone listens at HOST:PORT; Ray would take many minutes to find out."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()


def _restore(handler: Any) -> None:
    """Ray puts a handler of its own in the place of the command's; signals can be handled by the main thread only."""
    try:
        signal.signal(signal.SIGTERM, handler)
    except (TypeError, ValueError):
        log.debug("The handler of SIGTERM was left as Ray set it.")


def _gist(error: BaseException) -> str:
    """The first and the last line of a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " … ".join(dict.fromkeys([*lines[:1], *lines[-1:]])) or type(error).__name__
