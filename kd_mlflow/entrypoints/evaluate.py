"""`evaluate`: an existing model measured on a split, in a run of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd_mlflow.config import EvaluateConfig
from kd_mlflow.data.naming import twin_of, twins_sentence
from kd_mlflow.entrypoints.judge import Judged, judge_split
from kd_mlflow.entrypoints.network import Network, load_network
from kd_mlflow.entrypoints.record import record_evaluation, record_report, record_setup, summary, view_of
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError
from kd_mlflow.places import checkpointed_model, home
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.fetch import verify
from kd_mlflow.tracking.registry import pull, resolve, run_model
from kd_mlflow.tracking.runs import RunWriter, adopt_run_id, read_run
from kd_mlflow.training.checkpoint import file_sha256


@dataclass(frozen=True)
class EvaluateResult:
    """The figures of ``split`` and of use."""

    run_id: str
    model: str
    split: str
    metrics: dict[str, float]
    efficiency: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return asdict(self)


def evaluate(config: EvaluateConfig, *, terminal: Terminal | None = None) -> EvaluateResult:
    """Measure a registered model, a run's model or a pulled folder on a split, and record it.

    >>> from kd_mlflow.config import EvaluateConfig
    >>> evaluate(EvaluateConfig(data="photos/", model="models:/photos-student@champion"))   # doctest: +SKIP

    Raises
    ------
    InputError
        The model cannot be found, or its classes are not those of the data.
    """
    if not config.model:
        raise InputError("evaluate needs --model: models:/NAME@ALIAS, a run id, or a pulled folder.")
    uri = exact(connect(config.tracking_uri), config.model)
    network = find_network(connect(config.tracking_uri), uri)
    size = config.image_size or network.model.spec.image_size
    session = Session.open(
        config.model_copy(update={"image_size": size, "model": uri}),
        terminal or Terminal(quiet=True),
        network.model.spec.value_range,
        new_run=True,
    )
    same_classes(session, network, uri)
    view = evaluate_network(session, network, (config.split,), uri, owner=True)
    parts = summary(view)
    return EvaluateResult(view.run_id, uri, config.split, parts[config.split], parts["efficiency"])


def exact(client: Any, asked: str) -> str:
    """A registry URI with its version for one with an alias; anything else as it is."""
    if not asked.startswith("models:/"):
        return asked
    version = resolve(client, asked)
    return f"models:/{version.name}/{version.version}"


def find_network(client: Any, asked: str) -> Network:
    """A model by registry URI, run id or folder.

    Raises
    ------
    InputError
        It is none of these.
    """
    if asked.startswith("models:/"):
        file_name = re.sub(r"[^A-Za-z0-9._-]+", "-", asked.removeprefix("models:/"))
        return load_network(pull(client, asked, home() / "models" / file_name))
    if re.fullmatch(r"[0-9a-f]{32}", asked):
        return network_of_run(client, asked)
    if Path(asked).is_dir():
        return load_network(Path(asked), own=False)
    raise InputError(f"{asked} is no registered model (models:/NAME@ALIAS), run id or model folder.")


def network_of_run(client: Any, run_id: str) -> Network:
    """The model of a run, from this machine if it was trained here and is undamaged, else from the store."""
    folder = checkpointed_model(run_id)
    if not _is_model_of(client, run_id, folder):
        folder = run_model(client, run_id, home() / "models" / run_id)
    return load_network(folder)


def _is_model_of(client: Any, run_id: str, folder: Path) -> bool:
    """Whether a folder holds the very weights that the run recorded, and the run was not deleted."""
    if not (folder / "model.json").is_file():
        return False
    try:
        verify(folder, {}, f"the checkpoint of run {run_id}")
        run = read_run(client, run_id)
    except ArtifactsGone:
        return False
    except InputError:  # a run of another store: the folder's own digests are all there is
        return True
    recorded = run.tags.get("kd.weights_digest")
    return not run.deleted and recorded in (None, file_sha256(folder / "model.safetensors"))


def evaluate_network(session: Session, network: Network, splits: Sequence[str], uri: str, *, owner: bool) -> RunView:
    """Measure a network on splits, in a run of role evaluate."""
    spec = network.model.spec
    with RunWriter.open(
        session.client,
        role="evaluate",
        experiment=session.experiment,
        run_name=f"evaluate {spec.architecture}",
        tags={"kd.evaluated_run_id": network.run_id, "kd.architecture": spec.architecture},
        run_id=adopt_run_id() if owner else None,
    ) as writer:
        known = {name: getattr(session.config, name, None) for name in EvaluateConfig.model_fields}
        given = {name: value for name, value in known.items() if value is not None}
        own = EvaluateConfig(**given | {"model": uri, "split": splits[-1]})
        record_setup(session, writer, own, "evaluation")
        judged: dict[str, Judged] = {
            split: judge_split(session, network.model, split, session.config.batch_size) for split in splits
        }
        record_evaluation(session, writer, network, judged, {})
        writer.settle()
        view = view_of(session.client, writer.run_id)
        record_report(session, writer, own, [view], judged[splits[-1]], [])
    return view


def same_classes(session: Session, network: Network, asked: str) -> None:
    """Refuse a model whose class list is not the data's; warn of another size or scale of the images.

    Raises
    ------
    InputError
        The lists differ; says in what.
    """
    size = network.model.spec.image_size
    if size != session.store.image_size:
        session.terminal.warn(f"{asked} was trained at {size} px and is used at {session.store.image_size} px.")
    taught, given = network.model.spec.value_range, session.store.value_range
    if given not in (None, taught):
        session.terminal.warn(
            f"{asked} was trained with images of more than 8 bits scaled from {taught[0]} to {taught[1]}, and is given "
            f"the data's, scaled from {given[0]} to {given[1]}: its answers may be worse than they could be."
        )
    theirs, ours = tuple(network.model.spec.classes), tuple(session.store.classes)
    if theirs != ours:
        differ = sorted(set(theirs) ^ set(ours)) or ["their order"]
        twin = twin_of(differ[0], differ)
        if twin is not None and all(twin_of(name, differ) for name in differ):
            raise InputError(
                f"The model {asked} and the data spell their classes in different ways: "
                f"{twins_sentence(differ[0], twin)}; rename the folders of the data as the model has them."
            )
        raise InputError(
            f"The model {asked} knows {len(theirs)} classes, the data has {len(ours)}; they differ in "
            f"{', '.join(differ[:5])}. Choose a model that was trained on these classes."
        )
