"""A study: what it searches, its trials, and how a worker claims one and gives it back."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState, create_trial

from kd_mlflow.config import SearchConfig
from kd_mlflow.errors import InputError
from kd_mlflow.search.claim import Claim
from kd_mlflow.search.ledger import Ledger, slot_of
from kd_mlflow.search.objectives import Constraint, Objective
from kd_mlflow.search.samplers import grid_points, make_pruner, make_sampler
from kd_mlflow.search.settings import PLACE, Settings
from kd_mlflow.search.space import Space
from kd_mlflow.search.storage import SILENT_BEATS, Outage, StudyLock, open_storage, patiently, shown_url

SETTINGS, TOTAL, STOP, DEADLINE = "kd_settings", "kd_trials", "kd_stop", "kd_deadline"
RUN, TEACHER, EXPERIMENT = "kd_run_id", "kd_teacher", "kd_experiment"


@dataclass
class SearchStudy:
    """An open study.

    Attributes
    ----------
    study:
        Optuna's own object; only tables and figures should need it.
    """

    name: str
    url: str
    storage: RDBStorage
    study: optuna.Study
    settings: Settings
    config: SearchConfig
    space: Space = field(init=False)
    objectives: tuple[Objective, ...] = field(init=False)
    constraints: tuple[Constraint, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.space = Space.from_json(self.settings.space)
        self.objectives = tuple(Objective(**one) for one in self.settings.objectives)
        self.constraints = tuple(Constraint(**one) for one in self.settings.constraints)
        self.lock = StudyLock(self.storage, self.url, self.name)
        self.report_inside = self.space.holds(self.settings.report)
        self.points = grid_points(self.config, self.space, self.settings.report)

    @classmethod
    def create(cls, url: str, name: str, settings: Settings, heartbeat: int) -> SearchStudy:
        """The study of this name, made now if it is new.

        Raises
        ------
        InputError
            The storage cannot be used, or holds a study of this name that searches something else.
        """
        storage = open_storage(url, heartbeat)
        objectives = [Objective(**one) for one in settings.objectives]
        config = SearchConfig(**settings.config)
        try:
            study = optuna.create_study(
                storage=storage,
                study_name=name,
                directions=[one.direction for one in objectives],
                pruner=make_pruner(config, objectives),
            )
            study.set_metric_names([one.name for one in objectives])
            study.set_user_attr(SETTINGS, asdict(settings))
        except DuplicatedStudyError:
            found = cls.load(url, name, heartbeat)
            found.settings.require_same(settings, name)
            places = {option: settings.config[option] for option in PLACE & settings.config.keys()}
            found.config = SearchConfig(**{**found.settings.config, **places})
            return found
        return cls(name, url, storage, study, settings, config)

    @classmethod
    def load(cls, url: str, name: str, heartbeat: int | None = None) -> SearchStudy:
        """An existing study; ``heartbeat`` is the study's own if it is left out.

        Raises
        ------
        InputError
            The storage cannot be used, or has no such study.
        """
        storage = open_storage(url, heartbeat or 30)
        try:
            study = optuna.load_study(storage=storage, study_name=name)
        except KeyError:
            raise InputError(f"The storage {shown_url(url)} has no study '{name}'{_others(storage)}.") from None
        known = study.user_attrs.get(SETTINGS)
        if known is None:
            raise InputError(f"The study '{name}' was not made by `kd-mlflow search`; choose another --study.")
        settings = Settings(**{one.name: known[one.name] for one in fields(Settings)})
        if heartbeat is None and settings.config["heartbeat"] != 30:
            return cls.load(url, name, settings.config["heartbeat"])
        config = SearchConfig(**settings.config)
        study.pruner = make_pruner(config, [Objective(**one) for one in settings.objectives])
        return cls(name, url, storage, study, settings, config)

    @property
    def total(self) -> int:
        """How many finished trials the study shall have."""
        asked = patiently(lambda: self.study.user_attrs).get(TOTAL, self.config.trials)
        return min(asked, len(self.points)) if self.points else asked

    @property
    def reports_epochs(self) -> bool:
        """Whether trials tell the study their value after every epoch."""
        single = len(self.objectives) == 1 and self.objectives[0].measured_every_epoch
        return single and self.config.pruner != "wilcoxon"

    @property
    def wanted(self) -> list[str]:
        """Every metric that a trial must have."""
        return [one.name for one in (*self.objectives, *self.constraints)]

    def note(self, values: Mapping[str, Any]) -> None:
        """Keep something with the study."""
        for key, value in values.items():
            patiently(lambda key=key, value=value: self.study.set_user_attr(key, value))

    def noted(self, key: str) -> Any:
        """What :meth:`note` kept, or None."""
        return patiently(lambda: self.study.user_attrs).get(key)

    def ending(self) -> str | None:
        """``stopped`` or ``timeout`` when no trial shall go on."""
        noted = patiently(lambda: self.study.user_attrs)
        if noted.get(STOP):
            return "stopped"
        return "timeout" if noted.get(DEADLINE) and time.time() > noted[DEADLINE] else None

    def ledger(self) -> Ledger:
        """The trials as they stand now."""
        return Ledger(patiently(lambda: self.study.get_trials(deepcopy=False)))

    def claim(self, worker: str) -> Claim | None:
        """The next trial for this worker; None when all slots are taken or done."""
        return patiently(lambda: self._claim(worker))

    def _claim(self, worker: str) -> Claim | None:
        """Everything under the study's lock: who dies in the middle leaves nothing that the next does not mend."""
        with self.lock.held() as still_ours:
            # After an outage everybody was silent, and is given the time to be heard again.
            if not Outage.is_recent(SILENT_BEATS * self.config.heartbeat):
                fail_stale_trials(self.study)
            for trial in self.ledger().half_claimed:
                self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            if not self._queue_one():
                return None
            slot = slot_of(self.ledger().waiting[0])
            objectives = len(self.objectives)
            self.study.sampler = make_sampler(self.config, self.space, objectives, slot, self.report_inside)
            trial = self.study.ask()
            values = trial.user_attrs.get("values")
            if values is None:
                values = self.space.suggest(trial, self.config.method)
                trial.set_user_attr("values", values)
            trial.set_user_attr("host", platform.node())
            trial.set_user_attr("pid", os.getpid())
            self.storage.record_heartbeat(trial._trial_id)
            claim = Claim(self, trial, values)
            still_ours()
            # Last: from here on only this worker gives it back.
            trial.set_user_attr("claimed", worker)
            return claim

    def give_back(self, worker: str) -> None:
        """Let others have what this worker claimed and never began."""
        with self.lock.held():
            for trial in self.ledger().running:
                if trial.user_attrs.get("claimed") == worker:
                    self.storage.set_trial_user_attr(trial._trial_id, "claimed", "")
                    self.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _queue_one(self) -> bool:
        """See to it that a trial waits: a paused one, one whose worker died, or a new one."""
        ledger = self.ledger()
        if len(ledger.finished) + len(ledger.running) >= self.total:
            return False
        if ledger.waiting:
            return True
        again = ledger.open_again()
        if again:
            self.study.add_trial(_another_attempt(again[0]))
            return True
        slot = ledger.next_slot(self.total)
        if slot is None:
            return False
        self.study.add_trial(self._new_trial(slot))
        return True

    def _new_trial(self, slot: int) -> FrozenTrial:
        attributes: dict[str, Any] = {"slot": slot, "attempt": 1}
        fixed: dict[str, Any] = {}
        if slot == 0 and self.report_inside:
            fixed = self.settings.report
        elif slot == 0:
            attributes["values"] = self.settings.report
        elif self.points:
            fixed = self.points[slot]
        return create_trial(
            state=TrialState.WAITING, user_attrs=attributes, system_attrs={"fixed_params": fixed} if fixed else {}
        )


def study_names(url: str) -> list[str]:
    """The studies of a storage, the newest last.

    Raises
    ------
    InputError
        The storage cannot be used.
    """
    storage = open_storage(url, 30)
    found = optuna.get_all_study_summaries(storage, include_best_trial=False)
    ours = [one for one in found if SETTINGS in one.user_attrs]
    return [one.study_name for one in sorted(ours, key=lambda one: one._study_id)]


def _another_attempt(dead: FrozenTrial) -> FrozenTrial:
    """The same trial once more, in a new trial that knows which it follows."""
    own = {"claimed", "host", "pid", *(key for key in dead.user_attrs if key.startswith(("run_id", "follows")))}
    kept = {key: value for key, value in dead.user_attrs.items() if key not in own}
    runs = {key: value for key, value in dead.user_attrs.items() if key.startswith("run_id")}
    follows = {key.replace("run_id", "follows_run", 1): run_id for key, run_id in runs.items()}
    follows |= {"attempt": kept.get("attempt", 1) + 1, "follows": dead.number}
    return create_trial(
        state=TrialState.WAITING,
        params=dead.params,
        distributions=dead.distributions,
        user_attrs={**kept, **follows},
        system_attrs={key: value for key, value in dead.system_attrs.items() if not key.startswith("constraint")},
    )


def _others(storage: RDBStorage) -> str:
    names = [one.study_name for one in optuna.get_all_study_summaries(storage, include_best_trial=False)]
    return f"; it has {', '.join(sorted(names))}" if names else ""
