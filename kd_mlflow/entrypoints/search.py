"""`search`: hyper-parameters over nested distillation runs, on one machine or many, to a registered best student."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from kd_mlflow.config import Recipe, SearchConfig
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.checkpoints import Checkpoints, checkpoint_place
from kd_mlflow.entrypoints.cutting import check_parts
from kd_mlflow.entrypoints.finals import Finals, train_finals
from kd_mlflow.entrypoints.launch import Launch, render_kubernetes, render_slurm
from kd_mlflow.entrypoints.network import check
from kd_mlflow.entrypoints.record import record_setup
from kd_mlflow.entrypoints.search_record import record_search
from kd_mlflow.entrypoints.search_view import SearchView
from kd_mlflow.entrypoints.search_worker import do_trials
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.studies import new_study_note, require_runs
from kd_mlflow.entrypoints.teachers import Teacher, find_teachers, prospective_teachers, teacher_notes
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.trials import cache_note, known_metrics, recipes_to_check, sweep
from kd_mlflow.entrypoints.workers import start_workers, watch
from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.places import absolute, home_folder
from kd_mlflow.search.objectives import parse_constraints, parse_objectives
from kd_mlflow.search.samplers import check_search
from kd_mlflow.search.settings import Settings
from kd_mlflow.search.space import Space, report_values
from kd_mlflow.search.status import best_trials, describe, status
from kd_mlflow.search.storage import check_storage, shown_url, storage_url
from kd_mlflow.search.study import DEADLINE, EXPERIMENT, RUN, STOP, TEACHER, TOTAL, SearchStudy, study_names
from kd_mlflow.search.terms import resolve_space
from kd_mlflow.tracking.runs import RunWriter, adopt_run_id


@dataclass(frozen=True)
class SearchResult:
    """What `search` gives back.

    Attributes
    ----------
    ending:
        done, timeout, stopped (by --stop) or interrupted; after the last two nothing was trained again.
    best:
        The best trial; None if none was completed.
    finals:
        The best, the report's defaults and the control on fresh seeds.
    """

    run_id: str
    study: str
    ending: str
    trials: dict[str, int]
    best: dict[str, Any] | None
    finals: Finals | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        plain = {name: getattr(self, name) for name in ("run_id", "study", "ending", "trials", "best")}
        return plain | {"finals": self.finals.to_json() if self.finals else None}


def search(config: SearchConfig, *, terminal: Terminal | None = None) -> SearchResult:
    """Search the space until the study has its trials, then train the best again and register it.

    A study that is there already goes on.

    >>> from kd_mlflow.config import SearchConfig
    >>> search(SearchConfig(data="photos/", trials=50, workers=4)).best   # doctest: +SKIP

    Raises
    ------
    InputError
        The space, an objective, the storage or the data cannot be used, or the study searches something else.
    KdMlflowError
        No trial could be completed.
    """
    terminal = terminal or Terminal(quiet=True)
    if config.engine == "ray" and not config.workers:
        raise InputError("--engine ray starts the workers; give --workers 1 or more.")
    if config.workers != 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("Under torchrun a search has one worker: its processes train together; leave out --workers.")
    space, config = resolve_space(config)
    known = known_metrics()
    objectives = parse_objectives(config.objectives, known)
    constraints = parse_constraints(config.constraint, known)
    report = report_values(space, config)
    notes = check_search(config, space, objectives, report)
    url = storage_url(config.storage, config.tracking_uri)
    there = check_storage(url)
    if there and config.study in study_names(url):
        _same_search(SearchStudy.load(url, config.study), config, space, objectives, constraints, report)
    session = Session.open(config, terminal, new_run=not there)
    Checkpoints.open(session, config.checkpoints)
    if _takes_teacher(session, config, space):
        _check_all(session, config, space, prospective_teachers(session, config.trial({}, config.seed)))
    else:
        _check_all(session, config, space, [])
    settings = Settings.of(config, space, objectives, constraints, report, session.store.digest)
    name = config.study or _name_of(session, settings)
    with _only_driver(session, url, name):
        if note := new_study_note(session.client, url, name, settings):
            terminal.warn(note)
        study = SearchStudy.create(url, name, settings, config.heartbeat)
        return _drive(session, study, config, notes)


def _drive(session: Session, study: SearchStudy, config: SearchConfig, notes: list[str]) -> SearchResult:
    terminal = session.terminal
    checkpoints = Checkpoints.open(session, config.checkpoints)
    with _run_of(session, study, config) as writer:
        taught = _takes_teacher(session, config, study.space)
        teachers = _teachers(session, study, writer) if taught else []
        models = [teacher.network.model for teacher in teachers]
        _check_all(session, config, study.space, models)
        about_teachers = teacher_notes(session, writer, config, teachers)
        if models and (said := cache_note(session, config, study.space, models)):
            terminal.say(said)
        deadline = time.time() + config.timeout if config.timeout else None
        study.note({TOTAL: config.trials, STOP: None, DEADLINE: deadline})
        sweep(session, study)
        for note in notes:
            terminal.say(note)
        counts = status(study).trials
        terminal.say(f"Study {study.name}: {counts['finished']} of {counts['total']} trials are finished")
        with SearchView(study, terminal):
            if config.workers == 1 and config.engine == "processes":
                ending = do_trials(session, study, teachers, writer.run_id, checkpoints)
            else:
                ending = watch(start_workers(session, study, config), study, terminal)
        sweep(session, study)
        now, best = status(study), best_trials(study)
        if ending in ("stopped", "interrupted"):
            writer.finish("KILLED", f"Stopped after {now.trials['finished']} of {study.total} trials.")
            return SearchResult(writer.run_id, study.name, ending, now.trials, now.best, None)
        if not best:
            raise KdMlflowError(_nothing_completed(study))
        finals = train_finals(session, study, writer, teachers, best[0]) if config.final_seeds else None
        record_search(session, study, writer, teachers, best, finals, [*notes, *about_teachers])
        return SearchResult(writer.run_id, study.name, ending, now.trials, describe(study, best[0]), finals)


def find_study(config: SearchConfig) -> SearchStudy:
    """The study that was named, or the newest of the storage; makes nothing.

    Raises
    ------
    InputError
        There is no such study.
    """
    url = storage_url(config.storage, config.tracking_uri)
    names = study_names(url) if check_storage(url) else []
    if not names:
        named = f" and so none called '{config.study}'" if config.study else ""
        raise InputError(
            f"There is no study in this storage, {shown_url(url)}{named}; start one with `kd-mlflow search`, or name "
            "its --storage."
        )
    return SearchStudy.load(url, config.study or names[-1])


def look_at_study(config: SearchConfig) -> dict[str, Any]:
    """How far the study is, as plain types."""
    return status(find_study(config)).to_json()


def stop_study(config: SearchConfig) -> dict[str, str]:
    """Ask every worker to stop at its next epoch; nothing of a study that has all its trials."""
    study = find_study(config)
    if status(study).state != "finished":
        study.note({STOP: True})
    return {"study": study.name, "state": status(study).state}


def launch_file(config: SearchConfig, scheduler: str) -> str:
    """What a scheduler starts --workers workers of the study with.

    Raises
    ------
    InputError
        There is no such study, or other machines could not reach what the options name.
    """
    launch = Launch(
        study=config.study or find_study(config).name,
        storage=storage_url(config.storage, config.tracking_uri),
        tracking_uri=config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", ""),
        checkpoints=checkpoint_place(config.checkpoints),
        data=absolute(config.data),
        workers=config.workers,
    )
    return render_slurm(launch) if scheduler == "slurm" else render_kubernetes(launch)


def _same_search(study: SearchStudy, config: SearchConfig, *asked: Any) -> None:
    """Whether a study that is there searches the same, before any data is touched."""
    settings = Settings.of(config, *asked, study.settings.dataset_digest)
    study.settings.require_same(settings, study.name)


def _name_of(session: Session, settings: Settings) -> str:
    """A name of its own for every search: the same command goes on with the same study."""
    content = json.dumps([settings.identity, session.store.digest], sort_keys=True)
    return f"{session.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


@contextmanager
def _only_driver(session: Session, url: str, name: str) -> Iterator[None]:
    """One `search` a study on this machine; more workers are `search-worker`'s."""
    place = home_folder("studies")
    lock = FileLock(place / f"{hashlib.sha256(f'{url} {name}'.encode()).hexdigest()[:16]}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"Another `search` drives the study '{name}' on this machine; add workers with "
            f"`kd-mlflow search-worker --study {name}`."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _takes_teacher(session: Session, config: SearchConfig, space: Space) -> bool:
    return any(method_class(plan.method).teacher_count[1] for plan in recipes_to_check(session, config, space))


def _check_all(session: Session, config: SearchConfig, space: Space, teachers: Sequence[Classifier] | None) -> None:
    """Every pair of method and student in the space must be possible."""
    for plan in recipes_to_check(session, config, space):
        taught = method_class(plan.method).teacher_count[1]
        try:
            for variant in _hardest(plan, space):
                check_parts(variant)
            check(session, variant, teachers if taught or teachers is None else ())
        except InputError as error:
            raise InputError(f"Method {plan.method} with student {plan.architecture}: {error}") from None


def _hardest(plan: Recipe, space: Space) -> list[Recipe]:
    """The recipe with the smallest batch of the space: with each choice of an option of its method, and as it is."""
    for one in space.parameters:
        if one.name == "batch_size":
            plan = plan.model_copy(update={"batch_size": int(min(one.choices or (one.low,)))})
    own = {
        one.name.removeprefix(f"{plan.method}-").replace("-", "_"): one.choices
        for one in space.parameters
        if one.method == plan.method
    }
    chosen = [plan.method_options | {name: choice} for name, choices in own.items() for choice in choices]
    return [*(plan.model_copy(update={"method_options": options}) for options in chosen), plan]


@contextmanager
def _run_of(session: Session, study: SearchStudy, config: SearchConfig) -> Iterator[RunWriter]:
    """The search's run: the study's, or a new one; that of `mlflow run` is adopted, or says where to look.

    Raises
    ------
    InputError
        The study has a run that the tracking store does not.
    """
    require_runs(session.client, study)
    made_by_mlflow, known = adopt_run_id(), study.noted(RUN)
    if known and made_by_mlflow and known != made_by_mlflow:
        session.client.set_tag(made_by_mlflow, "kd.continued_run_id", known)
    writer = RunWriter.open(
        session.client,
        role="search",
        experiment=session.experiment,
        run_name=f"search {study.name}",
        tags={"kd.study": study.name, "kd.storage": "sqlite" if study.url.startswith("sqlite") else "postgresql"},
        run_id=known or made_by_mlflow,
    )
    with writer:
        session.experiment = writer.experiment
        if not known:
            record_setup(session, writer, config)
        study.note({RUN: writer.run_id, EXPERIMENT: session.experiment})
        yield writer


def _teachers(session: Session, study: SearchStudy, writer: RunWriter) -> list[Teacher]:
    """The study's teachers: found or trained once, the same for every trial and worker."""
    config = study.config.trial({}, study.config.seed)
    teachers = find_teachers(session, config, resume="newest", fixed=study.noted(TEACHER) or "")
    study.note({TEACHER: ",".join(teacher.uri for teacher in teachers)})
    writer.tags({"kd.teacher": ",".join(teacher.uri for teacher in teachers)})
    return teachers


def _nothing_completed(study: SearchStudy) -> str:
    ledger = study.ledger()
    reason = "none was completed."
    if ledger.complete:
        reason = f"none keeps to {' and '.join(map(str, study.constraints))}."
    elif ledger.failed:
        reason = ledger.failed[-1].user_attrs.get("error", "its worker died.")
    return f"No trial of the study '{study.name}' can be used: {reason}"
