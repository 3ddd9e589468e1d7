"""What to say when ``--resume`` finds nothing to go on with: the run that is most like what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from kd_mlflow.config import Options
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.tracking.encode import flat_params
from kd_mlflow.tracking.runs import RunRecord, find_runs

# Options that say where a run is written and not what is trained: they may differ when it goes on.
PLACES = ("device", "experiment", "name", "reuse", "register_model")
LISTED = 6


def nothing_to_resume(session: Session, role: str, key: tuple[str, str], config: Options) -> str:
    """Why there is no run to go on with: the finished run of these options, or in what the most similar one differs.

    Parameters
    ----------
    role, key:
        As for :func:`kd_mlflow.entrypoints.runs.open_run`.
    """
    runs = [run for run in find_runs(session.client, tags={}, role=role) if "mlflow.parentRunId" not in run.tags]
    if not runs:
        return f"--resume finds no run of role {role} to go on with, so a new one begins."
    for run in runs:
        if run.tags.get(key[0]) != key[1]:
            continue
        if run.status == "FINISHED":
            state = "is finished"
        else:
            state = f"is being written on {run.tags.get('kd.host', 'another machine')}"
        return f"--resume finds no unfinished run of these options, so a new one begins: run {run.run_id} {state}."
    asked = flat_params(config.recorded())
    closest = min(runs, key=lambda run: len(differences(session, run, asked)))
    return (
        f"--resume finds no run of these options, so a new one begins: the most similar, {closest.run_id} "
        f"({closest.status}), differs in {told(differences(session, closest, asked))}."
    )


def differences(session: Session, run: RunRecord, asked: Mapping[str, str]) -> list[str]:
    """What a run was started with instead of what is asked for now, an entry an option.

    Parameters
    ----------
    asked:
        Options as parameters ``cfg.…``.
    """
    recorded = {name: value for name, value in run.params.items() if name.startswith("cfg.")}
    names = [name for name in sorted(asked.keys() | recorded.keys()) if name.removeprefix("cfg.") not in PLACES]
    found = [
        f"{_flag(name)} ({recorded.get(name, 'not given')}, now {asked.get(name, 'not given')})"
        for name in names
        if recorded.get(name) != asked.get(name)
    ]
    if run.tags.get("kd.dataset_digest") != session.store.digest and run.role != "compare":
        found.append("the images of the data")
    return found


def told(different: list[str]) -> str:
    """Differences in a few words; where options and data are the same, what is left."""
    if not different:
        return "the code, or the content of a file that an option names"
    more = f" and {len(different) - LISTED} more" if len(different) > LISTED else ""
    return ", ".join(different[:LISTED]) + more


def _flag(name: str) -> str:
    """The option of a parameter ``cfg.some_option``."""
    plain = name.removeprefix("cfg.").removeprefix("method_options.")
    return "--" + plain.replace("_", "-").replace(".", "-")
