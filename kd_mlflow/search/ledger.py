"""What the trials of a study amount to: which slots are done, taken, or open again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optuna.trial import FrozenTrial, TrialState

__all__ = ["ATTEMPTS", "FrozenTrial", "Ledger", "failed_by_error", "is_feasible", "slot_of"]

# A trial whose worker died so often is given up.
ATTEMPTS = 3


@dataclass(frozen=True)
class Ledger:
    """A study's trials by what became of them.

    A slot is one of the trials that were asked for, from 0. It is done with a trial that is complete,
    pruned or failed by an error. An attempt that was cut off by the death of its worker leaves the slot
    open, and another attempt takes it.
    """

    trials: Sequence[FrozenTrial]

    @property
    def complete(self) -> list[FrozenTrial]:
        """Trials with a value."""
        return self._in(TrialState.COMPLETE)

    @property
    def pruned(self) -> list[FrozenTrial]:
        """Trials that were given up as hopeless."""
        return self._in(TrialState.PRUNED)

    @property
    def failed(self) -> list[FrozenTrial]:
        """Trials that ended with an error, or took their worker with them too often."""
        return [trial for trial in self._in(TrialState.FAIL) if failed_by_error(trial)]

    @property
    def abandoned(self) -> list[FrozenTrial]:
        """Attempts whose worker died."""
        return [trial for trial in self._in(TrialState.FAIL) if not failed_by_error(trial)]

    @property
    def finished(self) -> list[FrozenTrial]:
        """What counts against the total."""
        return sorted([*self.complete, *self.pruned, *self.failed], key=lambda trial: trial.number)

    @property
    def running(self) -> list[FrozenTrial]:
        """Trials that a worker is at."""
        return [trial for trial in self._in(TrialState.RUNNING) if trial.user_attrs.get("claimed")]

    @property
    def half_claimed(self) -> list[FrozenTrial]:
        """Trials whose claim was cut off before anything was trained."""
        return [trial for trial in self._in(TrialState.RUNNING) if not trial.user_attrs.get("claimed")]

    @property
    def waiting(self) -> list[FrozenTrial]:
        """Trials that wait for a worker, those that were paused among them."""
        return self._in(TrialState.WAITING)

    def open_again(self) -> list[FrozenTrial]:
        """The last attempts of slots whose worker died and which nobody has taken since."""
        taken = {slot_of(trial) for trial in (*self.finished, *self.running, *self.waiting)}
        last = {slot_of(trial): trial for trial in self.abandoned if slot_of(trial) is not None}
        return [trial for slot, trial in sorted(last.items()) if slot not in taken]

    def next_slot(self, total: int) -> int | None:
        """The first slot that nobody has had yet, if the total has room for it."""
        had = {slot_of(trial) for trial in self.trials}
        return next((slot for slot in range(total) if slot not in had), None)

    def done(self, total: int) -> bool:
        """Whether the study has all its trials."""
        return len(self.finished) >= total

    def _in(self, state: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.trials if trial.state == state]


def slot_of(trial: FrozenTrial) -> int | None:
    """The slot a trial was made for."""
    return trial.user_attrs.get("slot")


def failed_by_error(trial: FrozenTrial) -> bool:
    """Whether a failed trial counts, rather than being tried again."""
    return "error" in trial.user_attrs or trial.user_attrs.get("attempt", 1) >= ATTEMPTS


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the trial keeps to every constraint."""
    return all(value <= 0 for value in trial.constraints.values())
