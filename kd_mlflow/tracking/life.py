"""Whether the process that writes a run still lives."""

from __future__ import annotations

import os
import platform
import time
from functools import lru_cache
from pathlib import Path

import psutil

# The tag that a living writer sets anew every minute: milliseconds since 1970.
HEARTBEAT, HEARTBEAT_SECONDS = "kd.heartbeat", 60.0


def heartbeat() -> str:
    """The value of the tag now."""
    return str(time.time_ns() // 1_000_000)


def silent_seconds(mark: str) -> float:
    """How long ago a heartbeat was; 0 for what is none, since nothing is known then."""
    return time.time() - int(mark) / 1000 if mark.isdecimal() else 0.0


def process_mark() -> str:
    """This process, told apart from every other one: machine, process number, start; for the tag ``kd.process``."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}"


def is_dead(mark: str) -> bool:
    """Whether the process of this mark was one of this machine and is gone; False where that cannot be known.

    Of what ran before the machine was started again see :func:`is_of_an_earlier_start`.
    """
    machine, _, rest = mark.partition(" ")
    number, _, started = rest.partition(" ")
    if machine != _machine() or not number.isdecimal() or not started:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it lives, and is somebody else's
        return False
    now = _started(int(number))
    return now != "" and now != started


def is_of_an_earlier_start(mark: str) -> bool:
    """Whether the process was one of a machine of this one's name that was started at another time.

    That may be this machine before its power was cut, or another one with the same name.
    """
    node, boot, _ = _machine().rsplit("/", 2)
    its_node, slash, rest = mark.partition(" ")[0].rpartition("/")[0].rpartition("/")
    return bool(slash) and its_node == node and rest != boot


def _started(number: int) -> str:
    """When a process began, on a clock that nobody sets; ``zombie`` for one that is over; empty if unknown."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "zombie" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        pass
    try:
        return f"{psutil.Process(number).create_time():.0f}"
    except psutil.Error:
        return ""


@lru_cache
def _machine() -> str:
    """The host, since when it runs, and the space that its process numbers are of: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot, space = f"{psutil.boot_time():.0f}", 0
    return f"{platform.node()}/{boot}/{space}"
