"""A worker: claims trials one after the other, stays visibly alive, and gives back what it cannot end."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from kd_mlflow.errors import GuardError
from kd_mlflow.search.claim import Claim, Lost
from kd_mlflow.search.storage import AWAY, Outage, StorageAway
from kd_mlflow.search.study import SearchStudy

log = logging.getLogger(__name__)

# After so many errors in a row that no guard foresaw, the fault is not in the trials.
FAILURES = 3
POLL_SECONDS = 1.0
Ending = Literal["done", "stopped", "timeout", "interrupted"]


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: a value for every objective, and how far each constraint is exceeded."""

    values: list[float]
    constraints: dict[str, float] = field(default_factory=dict)


class Hopeless(Exception):
    """The pruner gave the trial up."""


class Paused(Exception):
    """The search stops; the trial goes on when it does."""


TrialRunner = Callable[[Claim, Callable[[], None]], Outcome]


@dataclass
class Worker:
    """One worker of a study.

    Attributes
    ----------
    runner:
        Does a trial; calls its second argument after every epoch, which raises :class:`Paused` or
        :class:`Lost` when the trial must not go on.
    on_finished:
        Told of a trial's number when it is over.
    interrupted:
        Set from outside to stop after the epoch that is being trained.
    """

    study: SearchStudy
    runner: TrialRunner
    on_finished: Callable[[int], None] = lambda number: None
    interrupted: bool = False

    def run(self) -> Ending:
        """Do trials until the study has all it shall have, or is stopped.

        Raises
        ------
        StorageAway
            The storage stayed away; the trial is given to another when its signs of life stay away, too.
        Exception
            What ended the last of several trials in a row that failed for no reason of their own.
        """
        name, failures = uuid.uuid4().hex[:12], 0
        while True:
            if ending := self._ending():
                return ending
            try:
                claim = self.study.claim(name)
            except KeyboardInterrupt:  # it may be claimed already, and nobody would give signs of life for it
                self.study.give_back(name)
                raise
            if claim is None:
                ledger = self.study.ledger()
                if ledger.done(self.study.total) or not (ledger.running or ledger.waiting):
                    return "done"
                time.sleep(POLL_SECONDS)  # one that is running now may have to be done again
                continue
            failures = 0 if self._one(claim, failures) else failures + 1

    def _one(self, claim: Claim, failures: int) -> bool:
        """One trial; whether it ended as trials do."""
        try:
            with _alive(claim, self.study.config.heartbeat):
                outcome = self.runner(claim, lambda: self._check(claim))
            claim.complete(outcome.values, outcome.constraints)
        except Hopeless:
            claim.prune()
        except Lost:
            log.warning("Trial %d was given to another worker.", claim.number)
            return True
        except Paused:
            claim.pause()
            return True
        except StorageAway:
            raise
        except GuardError as error:
            claim.fail(f"{type(error).__name__}: {error}")
        except Exception as error:
            claim.fail(f"{type(error).__name__}: {error}")
            if failures + 1 >= FAILURES:
                raise
            log.warning("Trial %d failed: %s", claim.number, error)
            self.on_finished(claim.number)
            return False
        except BaseException:
            claim.pause()
            raise
        self.on_finished(claim.number)
        return True

    def _ending(self) -> Ending | None:
        return "interrupted" if self.interrupted else self.study.ending()

    def _check(self, claim: Claim) -> None:
        if self._ending():
            raise Paused
        if claim.is_lost():
            raise Lost


@contextmanager
def _alive(claim: Claim, seconds: float) -> Iterator[None]:
    """Signs of life from a thread, through every outage of the storage."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            try:
                claim.beat()
            except AWAY as error:
                Outage.last = time.monotonic()
                log.info("No sign of life could be given: %s", error)
            except Exception:
                log.exception("No more signs of life can be given.")
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
