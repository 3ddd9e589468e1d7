"""What a person sees of a search while it runs: a line a finished trial, and a bar on a terminal."""

from __future__ import annotations

import logging
import threading
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.search.status import best_trials, describe, status
from kd_mlflow.search.study import SearchStudy

log = logging.getLogger(__name__)
SECONDS = 2.0


class SearchView:
    """Looks at the study every two seconds, whoever does its trials."""

    def __init__(self, study: SearchStudy, terminal: Terminal) -> None:
        self.study, self.terminal = study, terminal
        self.seen = {trial.number for trial in study.ledger().finished}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="search-view", daemon=True)
        self.progress: Progress | None = None

    def __enter__(self) -> Self:
        if self.terminal.live:
            columns = (TextColumn("Searching"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self.progress = Progress(*columns, console=self.terminal.console, transient=True)
            self.bar = self.progress.add_task("trials", total=self.study.total, text="")
            self.progress.start()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(timeout=10)
        if self.progress:
            self.progress.stop()

    def _watch(self) -> None:
        while True:
            ended = self.over.wait(SECONDS)
            try:
                self._show()
            except Exception as error:  # a look that fails is no reason to end a search
                log.info("The study could not be looked at: %s", error)
            if ended:
                return

    def _show(self) -> None:
        ledger, best = self.study.ledger(), best_trials(self.study)
        for trial in ledger.finished:
            if trial.number not in self.seen:
                self.seen.add(trial.number)
                standing = f"{len(self.seen)}/{self.study.total}"
                self.terminal.say(f"{standing} {trial_line(describe(self.study, trial))}")
        if self.progress:
            now = status(self.study)
            text = f"{now.trials['running']} running"
            if best:
                text += f", best {number(best[0].values[0])} (trial {best[0].number})"
            if now.seconds_left:
                text += f", about {duration(now.seconds_left)} left"
            self.progress.update(self.bar, completed=now.trials["finished"], total=now.trials["total"], text=text)


def trial_line(trial: dict[str, Any]) -> str:
    """A finished trial on one line."""
    params = ", ".join(f"{name} {number(value)}" for name, value in trial["params"].items())
    match trial["state"]:
        case "complete":
            said = ", ".join(f"{name} {number(value)}" for name, value in trial["values"].items())
        case "pruned":
            said = f"pruned at step {trial['steps']} with {number(trial['last_value'])}"
        case "fail":
            said = f"failed: {trial['error'] or 'its worker died'}"
        case state:
            said = state if trial["last_value"] is None else f"{state}, step {trial['steps']}"
            said += "" if trial["last_value"] is None else f" at {number(trial['last_value'])}"
    return f"trial {trial['number']}: {said} ({params})"


def number(value: Any) -> str:
    """Four significant digits; names as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """As a person says it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
