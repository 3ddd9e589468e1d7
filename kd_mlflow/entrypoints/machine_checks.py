"""What `doctor` looks at on the machine itself: folders, disks, shared memory, limits, proxies. Changes nothing."""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kd_mlflow.places import home_path
from kd_mlflow.tracking.client import chosen_uri
from kd_mlflow.tracking.proxies import proxy_of, proxy_variables
from kd_mlflow.tracking.server import is_server

# A prepared ImageNet subset, a teacher's outputs and checkpoints soon fill less.
ROOM_GIB = 5.0
# Figures, tables and models pass through the temporary folder on their way to the store.
SCRATCH_GIB = 1.0
# Containers get 64 MiB by default; batches that processes hand each other are larger.
SHARED_MEMORY_GIB = 1.0
SHARED_MEMORY = Path("/dev/shm")  # nosec B108
FILES = 1024
HOME_ADVICE = "set KD_MLFLOW_HOME to a folder that can be written"
HOME_FOLDERS = ("checkpoints", "downloads", "models", "offline", "spool", "stores", "studies", "teacher-outputs")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    state:
        ok, note (works, with less) or problem.
    advice:
        What to do; never empty for a note or a problem.
    """

    name: str
    state: Literal["ok", "note", "problem"]
    found: str
    advice: str = ""

    def __post_init__(self) -> None:
        if self.state != "ok" and not self.advice:
            raise ValueError(f"{self.name} is a {self.state} without advice")


def home_folders() -> Finding:
    """Whether stores, checkpoints and caches can be written.

    Each folder that is there below the home is tried, since any of them may be a link or a disk of its own.
    """
    home = home_path()
    below = sorted(path for path in home.iterdir() if path.name in HOME_FOLDERS) if home.is_dir() else []
    for folder in (home, *below):
        if reason := _not_writable(folder):
            return Finding("home", "problem", f"{folder} cannot be written ({reason})", HOME_ADVICE)
    made = "" if home.is_dir() else "; the first command makes it"
    return Finding("home", "ok", f"{home} can be written{made}")


def disk() -> Finding:
    """Room for stores, checkpoints and caches."""
    home = home_path()
    free = _free_gib(home)
    if free < ROOM_GIB:
        advice = "free some, or set KD_MLFLOW_HOME to a folder on another disk"
        return Finding("disk", "problem", f"{free:.1f} GiB free in {home}", advice)
    return Finding("disk", "ok", f"{free:.0f} GiB free in {home}")


def working_directory() -> Finding:
    """Where a store without --tracking-uri and a study's database are made."""
    here = Path.cwd()
    if reason := _not_writable(here):
        return Finding(
            "working directory",
            "note",
            f"{here} cannot be written ({reason})",
            "name a tracking store with --tracking-uri or MLFLOW_TRACKING_URI, or change to a folder of your own",
        )
    return Finding("working directory", "ok", f"{here} can be written")


def temporary_folder() -> Finding:
    """Where files lie on their way to the store."""
    advice = "set TMPDIR to a folder with room that can be written"
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        return Finding("temporary folder", "problem", str(error), advice)
    if reason := _not_writable(folder):
        return Finding("temporary folder", "problem", f"{folder} cannot be written ({reason})", advice)
    free = _free_gib(folder)
    if free < SCRATCH_GIB:
        return Finding("temporary folder", "problem", f"{free * 1024:.0f} MiB free in {folder}", advice)
    return Finding("temporary folder", "ok", f"{folder} can be written, {free:.0f} GiB free")


def shared_memory() -> Finding:
    """The memory through which processes hand each other batches; a container has little of it by default."""
    if not SHARED_MEMORY.is_dir():
        return Finding("shared memory", "ok", "this system has no /dev/shm")
    free = _free_gib(SHARED_MEMORY)
    if free < SHARED_MEMORY_GIB:
        return Finding(
            "shared memory",
            "note",
            f"{free * 1024:.0f} MiB free in {SHARED_MEMORY}",
            "start the container with --shm-size=2g (Compose: shm_size; Kubernetes: an emptyDir of medium Memory at "
            "/dev/shm), or train with --devices 1",
        )
    return Finding("shared memory", "ok", f"{free:.1f} GiB free in {SHARED_MEMORY}")


def file_handles() -> Finding:
    """How many files and connections a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES:
        allowed = "without limit" if soft == resource.RLIM_INFINITY else str(soft)
        return Finding("file handles", "ok", f"{allowed} (ulimit -n)")
    if hard == resource.RLIM_INFINITY or hard >= FILES:
        advice = f"run `ulimit -n {FILES}` in this shell first"
    else:
        advice = (
            f"the system allows {hard} at most: raise it in /etc/security/limits.conf, by LimitNOFILE of a service, or "
            f"start the container with --ulimit nofile={FILES}"
        )
    return Finding("file handles", "note", f"{soft} (ulimit -n)", advice)


def proxy(tracking_uri: str) -> Finding:
    """What the environment puts between this machine and the tracking server."""
    variables = ", ".join(f"{name}={value}" for name, value in proxy_variables().items())
    uri = chosen_uri(tracking_uri)
    between = proxy_of(uri) if is_server(uri) else None
    if between is None:
        return Finding("proxy", "ok", variables or "none")
    found = f"the tracking server is asked through {between}"
    return Finding("proxy", "note", f"{found}; {variables}" if variables else found, between.way_round)


def machine_looks(tracking_uri: str) -> tuple[tuple[str, Callable[[], Finding], str], ...]:
    """Name, look, and what to do should the look itself fail."""
    return (
        ("home", home_folders, HOME_ADVICE),
        ("disk", disk, HOME_ADVICE),
        ("working directory", working_directory, "change to a folder that is there and yours"),
        ("temporary folder", temporary_folder, "set TMPDIR to a folder with room that can be written"),
        ("shared memory", shared_memory, "start the container with --shm-size=2g"),
        ("file handles", file_handles, f"run `ulimit -n {FILES}` in this shell first"),
        ("proxy", lambda: proxy(tracking_uri), "correct HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY"),
    )


def _not_writable(folder: Path) -> str:
    """Why no file can be written into a folder, or into the one above in which it would be made; empty if it can."""
    try:
        while not folder.exists():
            if folder.is_symlink():
                return "it is a link to nothing"
            folder = folder.parent
        # It has no name, and is gone when it is closed.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _free_gib(folder: Path) -> float:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**30
