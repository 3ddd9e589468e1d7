"""What the loop tells the world; the loop does not know who listens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from kd_mlflow.training.checkpoint import EpochRow


class Observer(Protocol):
    """Told what happens in a training, in order."""

    def on_start(self, epochs: int, done: int) -> None:
        """The loop starts; ``done`` epochs came from a checkpoint."""

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        """Step ``step`` of ``steps`` of an epoch is queued. Must be cheap and must not wait."""

    def on_epoch(self, row: EpochRow) -> None:
        """An epoch is over and its checkpoint written. After a resume, told again of the earlier ones."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint was written."""

    def on_end(self, best_epoch: int) -> None:
        """The loop is done."""


class Silent:
    """An observer that does nothing; a base for those that care for one thing."""

    def on_start(self, epochs: int, done: int) -> None: ...
    def on_step(self, epoch: int, step: int, steps: int) -> None: ...
    def on_epoch(self, row: EpochRow) -> None: ...
    def on_checkpoint(self, path: Path) -> None: ...
    def on_end(self, best_epoch: int) -> None: ...


class Several(Silent):
    """Passes everything on to several observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = tuple(observers)

    def on_start(self, epochs: int, done: int) -> None:
        for observer in self.observers:
            observer.on_start(epochs, done)

    def on_step(self, epoch: int, step: int, steps: int) -> None:
        for observer in self.observers:
            observer.on_step(epoch, step, steps)

    def on_epoch(self, row: EpochRow) -> None:
        for observer in self.observers:
            observer.on_epoch(row)

    def on_checkpoint(self, path: Path) -> None:
        for observer in self.observers:
            observer.on_checkpoint(path)

    def on_end(self, best_epoch: int) -> None:
        for observer in self.observers:
            observer.on_end(best_epoch)
