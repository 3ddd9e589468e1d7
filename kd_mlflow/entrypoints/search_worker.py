"""`search-worker`: does trials of a study until it has all it shall have; knows nothing but its URLs and the data."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kd_mlflow.config import SearchConfig, WorkerConfig
from kd_mlflow.entrypoints.checkpoints import Checkpoints
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.studies import require_runs
from kd_mlflow.entrypoints.teachers import Teacher, find_teachers
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.trials import TrialRunner, sweep
from kd_mlflow.errors import InputError
from kd_mlflow.search.storage import check_storage, shown_url, storage_url
from kd_mlflow.search.study import EXPERIMENT, RUN, TEACHER, SearchStudy
from kd_mlflow.search.worker import Ending, Worker


def work(config: WorkerConfig, *, terminal: Terminal | None = None) -> Ending:
    """Do trials of an existing study; several workers share it.

    Raises
    ------
    InputError
        There is no such study, it was not started by `search`, or the data here is other data.
    """
    terminal = terminal or Terminal(quiet=True)
    url = storage_url(config.storage, config.tracking_uri)
    if not config.study:
        raise InputError("search-worker needs --study, the name that `kd-mlflow search` printed.")
    if not check_storage(url):
        raise InputError(
            f"The storage {shown_url(url)} holds no study yet, so none called '{config.study}': start it with "
            f"`kd-mlflow search --study {config.study}`, or name the storage that has it with --storage."
        )
    study = SearchStudy.load(url, config.study)
    parent, teacher = study.noted(RUN), study.noted(TEACHER)
    if parent is None:
        raise InputError(f"The study '{study.name}' has no run yet; wait until `kd-mlflow search` has started it.")
    own = _config_here(study.config, config)
    session = Session.open(own.model_copy(update={"experiment": study.noted(EXPERIMENT)}), terminal)
    require_runs(session.client, study)
    if session.store.digest != study.settings.dataset_digest:
        raise InputError(f"--data {own.data} is not the data of the study '{study.name}'; give the same images here.")
    teachers = find_teachers(session, own.trial({}, own.seed), resume=None, fixed=teacher) if teacher else []
    terminal.say(f"Working on the study {study.name}")
    ending = do_trials(session, study, teachers, parent, Checkpoints.open(session, config.checkpoints))
    terminal.say(f"{study.name}: {ending}")
    return ending


def do_trials(
    session: Session, study: SearchStudy, teachers: Sequence[Teacher], parent_run_id: str, checkpoints: Checkpoints
) -> Ending:
    """Trials in this process, one after the other; Ctrl-C stops after the epoch, a second one at once."""
    quiet = Terminal(quiet=True)
    lean = Session(**{**vars(session), "terminal": quiet})
    runner = TrialRunner(lean, study, teachers, parent_run_id, checkpoints)

    def over(number: int) -> None:
        sweep(lean, study)
        gc.collect()

    worker = Worker(study, runner, on_finished=over)
    # What is loaded by now stays: without this every look for the garbage of a trial goes through all of it.
    gc.freeze()
    try:
        with _stopping(worker, session.terminal):
            return worker.run()
    finally:
        gc.unfreeze()


@contextmanager
def _stopping(worker: Worker, terminal: Terminal) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        if worker.interrupted:
            raise KeyboardInterrupt
        worker.interrupted = True
        terminal.say("Stopping after this epoch; Ctrl-C once more stops at once.")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _config_here(config: SearchConfig, here: WorkerConfig) -> SearchConfig:
    """The study's options with this machine's places."""
    places: dict[str, Any] = {"device": here.device, "tracking_uri": here.tracking_uri}
    if here.data:
        places["data"] = here.data
    if here.follow_links is not None:
        places["follow_links"] = here.follow_links
    return config.model_copy(update=places)
