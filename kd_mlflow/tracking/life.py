"""Whether the process that writes a run still lives."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from pathlib import Path

import psutil

# Between two readings of one process's start, on clocks that are set meanwhile.
SECONDS = 2.0


def process_mark() -> str:
    """This process, told apart from every other one: machine, process number, start; for the tag ``kd.process``."""
    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.2f}"


def is_dead(mark: str) -> bool:
    """Whether the process of this mark was one of this machine and is gone; False where that cannot be known."""
    machine, _, rest = mark.partition(" ")
    number, _, started = rest.partition(" ")
    if machine != _machine() or not number.isdecimal():
        return False
    try:
        process = psutil.Process(int(number))
        same = abs(process.create_time() - float(started)) < SECONDS
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, ValueError):
        return False


@lru_cache
def _machine() -> str:
    """The host, since when it runs, and the space that its process numbers are of: containers have their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        boot, space = f"{psutil.boot_time():.0f}", 0
    return f"{platform.node()}/{boot}/{space}"
