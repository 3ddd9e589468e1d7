"""A trial in one worker's hands: what it writes, how it ends, and how it is given back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from kd_mlflow.search.storage import patiently

if TYPE_CHECKING:
    from kd_mlflow.search.study import SearchStudy


class Lost(Exception):
    """This worker was silent for so long that its trial was given to another."""


class Claim:
    """A trial that one worker is at.

    Attributes
    ----------
    values:
        Options by name, as :meth:`kd_mlflow.config.SearchConfig.trial` takes them.
    """

    def __init__(self, study: SearchStudy, trial: Trial, values: dict[str, Any]) -> None:
        self.study = study
        self.trial = trial
        self.values = values
        self.number = trial.number
        self.slot = trial.user_attrs["slot"]
        self.attempt = trial.user_attrs["attempt"]
        self.noted: dict[str, Any] = dict(trial.user_attrs)
        self.reported = set(patiently(lambda: self._frozen().intermediate_values))

    def note(self, **values: Any) -> None:
        """Keep something with the trial.

        Raises
        ------
        Lost
            As from all that writes to it: the trial is over for this worker.
        """
        for key, value in values.items():
            self.noted[key] = value
            self._write(lambda key=key, value=value: self.trial.set_user_attr(key, value))

    def report(self, step: int, value: float) -> None:
        """The value at a step; one that was reported is passed over."""
        if step in self.reported:
            return
        self.reported.add(step)
        self._write(lambda: self.trial.report(value, step))

    def is_hopeless(self) -> bool:
        """What the pruner says."""
        return patiently(self.trial.should_prune)

    def is_lost(self) -> bool:
        """Whether the others took this worker for dead and the trial for theirs."""
        return patiently(lambda: self._frozen().state) != TrialState.RUNNING

    def beat(self) -> None:
        """A sign of life."""
        self.study.storage.record_heartbeat(self.trial._trial_id)

    def complete(self, values: Sequence[float], constraints: Mapping[str, float]) -> None:
        """The trial is over, with these values of the objectives."""
        for name, excess in constraints.items():
            self._write(lambda name=name, excess=excess: self.trial.set_constraint(name, excess))
        self._tell(TrialState.COMPLETE, list(values))

    def prune(self) -> None:
        """The trial is given up as hopeless."""
        self._tell(TrialState.PRUNED)

    def fail(self, reason: str) -> None:
        """The trial ended with an error and counts as finished."""
        with suppress(Lost):  # then it counts for whoever has it now
            self.note(error=reason)
            self._tell(TrialState.FAIL)

    def pause(self) -> None:
        """Give the trial back as it is: whoever comes next goes on with it, under the same number."""
        with suppress(Lost):  # it was over already, or given to another worker
            self._write(self._give_back)

    def _give_back(self) -> None:
        # Under the lock: between the two writes it looks like a claim that was cut off.
        with self.study.lock.held():
            self.trial.set_user_attr("claimed", "")
            self.study.storage.set_trial_state_values(self.trial._trial_id, TrialState.WAITING)

    def _write(self, write: Callable[[], object]) -> None:
        try:
            patiently(write)
        except UpdateFinishedTrialError:
            raise Lost from None

    def _tell(self, state: TrialState, values: list[float] | None = None) -> None:
        def tell() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.study.study.tell(self.number, values, state, skip_if_finished=True)

        patiently(tell)

    def _frozen(self) -> FrozenTrial:
        return self.study.storage.get_trial(self.trial._trial_id)
