"""A study and the runs it wrote lie in two stores: what to say when one of the two is gone, or a new study begins."""

from __future__ import annotations

from typing import Any

from kd_mlflow.errors import InputError
from kd_mlflow.search.settings import Settings
from kd_mlflow.search.status import status
from kd_mlflow.search.storage import check_storage, shown_url
from kd_mlflow.search.study import RUN, SearchStudy, study_names
from kd_mlflow.tracking.client import redact
from kd_mlflow.tracking.records import is_deleted
from kd_mlflow.tracking.runs import find_runs

# Of the newest studies of a storage so many are looked at.
LOOKED_AT = 20


def require_runs(client: Any, study: SearchStudy) -> None:
    """Refuse a study whose own run the tracking store does not have: its trials would be nobody's.

    Raises
    ------
    InputError
        Names study, storage, store, and the ways out.
    """
    run_id = study.noted(RUN)
    if run_id is None or not is_deleted(client, run_id):
        return
    storage = shown_url(study.url)
    raise InputError(
        f"The study '{study.name}' in {storage} belongs to run {run_id}, which {redact(client.tracking_uri)} does not "
        "have or has as a deleted one: restore that store or run, name the store that has it with --tracking-uri, "
        "begin another study with --study NAME, or delete this one with "
        f"`optuna --storage '{storage}' delete-study --study-name '{study.name}'`."
    )


def new_study_note(client: Any, url: str, name: str, settings: Settings) -> str:
    """What should be known before a study begins that has the name of a lost one, or is like an unfinished one.

    Empty if neither is the case, or the study is there.
    """
    names = study_names(url) if check_storage(url) else []
    if name in names:
        return ""
    storage = shown_url(url)
    if runs := find_runs(client, tags={"kd.study": name}, role="search"):
        return (
            f"The search of run {runs[0].run_id} had a study '{name}' that {storage} does not hold, so it begins anew "
            "and takes over finished trainings; to go on with the old study restore its database or name it with "
            "--storage."
        )
    unfinished = []
    for other in reversed(names[-LOOKED_AT:]):
        study = SearchStudy.load(url, other)
        if status(study, last=0).state != "finished":
            unfinished.append((study.name, settings.difference(study.settings)))
    if not unfinished:
        return ""
    closest, different = min(unfinished, key=lambda item: item[1].count(","))
    return (
        f"The study '{name}' is new; the unfinished study '{closest}' in {storage} is another one, since this search "
        f"has {different or 'another name'}."
    )
