"""Which code a run was made with: commit, whether it was changed since, and how."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DIFF_LIMIT = 1_000_000
SECONDS = 20


@dataclass(frozen=True)
class CodeState:
    """The work tree that a package's code lies in.

    Attributes
    ----------
    commit:
        The commit's hash; empty in a repository without commits.
    dirty:
        Whether tracked files differ from it or new files stand beside them.
    diff:
        The difference as text, cut at about a million characters, with the names of new files at the end.
    """

    commit: str
    dirty: bool
    diff: str


def code_state(package: Path = PACKAGE) -> CodeState | None:
    """The state of the work tree, or None when the code does not belong to one."""
    top = _git(package, "rev-parse", "--show-toplevel")
    # An installed copy may lie below somebody else's repository, in a folder which that one ignores.
    if top is None or _git(package, "check-ignore", "-q", str(package)) is not None:
        return None
    root = Path(top.strip())
    commit = (_git(root, "rev-parse", "--verify", "-q", "HEAD") or "").strip()
    status = _git(root, "status", "--porcelain") or ""
    if not status:
        return CodeState(commit, False, "")
    against = ["HEAD"] if commit else ["--cached"]
    diff = _git(root, "diff", "--no-color", "--no-ext-diff", "--no-textconv", *against) or ""
    if len(diff) > DIFF_LIMIT:
        diff = diff[:DIFF_LIMIT] + f"\n# cut here: the whole difference has {len(diff)} characters\n"
    new = [line[3:] for line in status.splitlines() if line.startswith("??")]
    if new:
        diff += "".join(f"# new, not in git: {name}\n" for name in new[:1000])
    return CodeState(commit, True, diff)


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git, or None if it failed or is not installed."""
    # Inside a hook these name another repository than the one the code lies in.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
