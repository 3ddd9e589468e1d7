"""What a person sees while a command works: bars on a terminal, plain lines elsewhere, all on stderr."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from kd_mlflow.errors import harmless
from kd_mlflow.training.checkpoint import EpochRow
from kd_mlflow.training.observer import Silent


class Terminal:
    """Messages and progress; ``quiet`` says nothing at all."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, markup=False)
        self.live = self.console.is_terminal and not quiet
        self._warned: set[str] = set()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(harmless(text), soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that should not be missed."""
        self.console.print(f"Warning: {harmless(text)}", style="yellow", soft_wrap=True)

    def warn_once(self, topic: str, text: str) -> None:
        """A warning of which one a command is enough, whatever it says the next time."""
        if topic not in self._warned:
            self._warned.add(topic)
            self.warn(text)

    def training(self, label: str) -> EpochLines:
        """An observer that shows one training."""
        return EpochLines(self, label)

    def preparing(self, label: str) -> PreparationBar:
        """A callback ``(done, total)`` that shows the preparation of a store."""
        return PreparationBar(self, label)


class _Bar:
    """A progress bar that exists only on a terminal."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.terminal = terminal
        self.label = label

    def update(self, done: int, total: int, text: str = "") -> None:
        if not self.terminal.live:
            return
        if self.progress is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=self.terminal.console, transient=True)
            self.progress.start()
            self.task = self.progress.add_task(self.label, total=total, text=text)
        self.progress.update(self.task, completed=done, total=total, text=text)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None


class _Closing:
    """Takes its bar off the terminal when the block ends, however it ends."""

    bar: _Bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()


class PreparationBar(_Closing):
    """Files done so far."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        self.bar = _Bar(terminal, label)

    def __call__(self, done: int, total: int) -> None:
        self.bar.update(done, total, f"{done}/{total} images")


class EpochLines(_Closing, Silent):
    """A bar over all steps, and a line for every epoch."""

    def __init__(self, terminal: Terminal, label: str) -> None:
        self.terminal = terminal
        self.label = label
        self.bar = _Bar(terminal, label)
        self.epochs = 0
        self.done = 0
        self.drawn = 0.0

    def on_start(self, epochs: int, done: int) -> None:
        self.epochs, self.done = epochs, done
        if done:
            self.terminal.say(f"{self.label}: taken up after epoch {done} of {epochs}")

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        now = time.monotonic()
        if now - self.drawn > 0.2:
            self.drawn = now
            self.bar.update((epoch - 1) * steps + step, self.epochs * steps, f"epoch {epoch}/{self.epochs}")

    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch <= self.done:
            return
        metrics = row.metrics
        self.terminal.say(
            f"{self.label}: epoch {row.epoch}/{self.epochs}  loss {metrics['train/loss']:.4f}  "
            f"val accuracy {metrics['val/accuracy']:.4f}  val loss {metrics['val/loss']:.4f}  "
            f"{metrics['train/images_per_s']:.0f} images/s"
        )

    def on_end(self, best_epoch: int) -> None:
        self.terminal.say(f"{self.label}: best epoch {best_epoch}")
