"""What an earlier run made, taken over while the store still has it whole; deleted runs never count."""

from __future__ import annotations

from kd_mlflow.entrypoints.evaluate import find_network
from kd_mlflow.entrypoints.network import Network, load_network
from kd_mlflow.entrypoints.record import view_of
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.places import checkpointed_model
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.fetch import holds
from kd_mlflow.tracking.records import is_deleted
from kd_mlflow.tracking.registry import check_model, resolve
from kd_mlflow.tracking.runs import read_json


def whole_view(session: Session, run_id: str, *, model: bool = False) -> RunView:
    """A finished run with all that reports, comparisons and the registry read of it.

    Parameters
    ----------
    model:
        Whether the model must be in the store, too, as the registry wants it.

    Raises
    ------
    ArtifactsGone
        The run was deleted, or some of that is missing or damaged.
    """
    if is_deleted(session.client, run_id):
        raise ArtifactsGone(f"Run {run_id} was deleted", "name another run")
    view = view_of(session.client, run_id)
    predictions = read_json(session.client, run_id, "predictions.json")
    try:
        lengths = {len(predictions["test"][name]) for name in ("label", "predicted")}
    except (KeyError, TypeError):
        lengths = set()
    if len(lengths) != 1:
        fact = f"The artifact predictions.json of run {run_id} lacks predictions, so it was damaged in the store"
        raise ArtifactsGone(fact, "restore it, or name another run")
    if model:
        check_model(session.client, run_id)
    return view


def chosen_network(session: Session, uri: str) -> Network:
    """A network that was found and not named, by its exact URI.

    Where the store has lost it, the checkpoints of this machine do if their digests are those that were recorded.

    Raises
    ------
    ArtifactsGone
        Neither has it.
    """
    try:
        return find_network(session.client, uri)
    except ArtifactsGone as gone:
        if not uri.startswith("models:/"):
            raise
        version = resolve(session.client, uri)
        folder = checkpointed_model(version.run_id)
        if not holds(folder, version.tags):
            raise
        session.terminal.warn(f"{gone.fact}; the same weights are taken from {folder}.")
        return load_network(folder)
