"""One logged model that loads every way: pytorch, pyfunc, REST, and as files to train on.

Its folder holds ``data/`` (the model's files as they were written), ``code/`` (the loader) and MLflow's
own description. Nothing in it is a pickle, and its requirements never name this package.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.pyfunc
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.time import get_current_time_millis

from kd_mlflow.data import depth
from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking import loader
from kd_mlflow.tracking.client import one_line
from kd_mlflow.tracking.encode import name_of
from kd_mlflow.tracking.records import get_run

MODEL_FILES = ("model.json", "model.safetensors", "model.pt2")
DIGEST = "kd.digest."
REQUIREMENTS = ("mlflow", "torch", "torchvision", "numpy", "pandas", "pillow")


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each of the model's files in a folder, as tags ``kd.digest.<file>``."""
    digests = {}
    for name in MODEL_FILES:
        if (folder / name).is_file():
            with (folder / name).open("rb") as handle:
                digests[DIGEST + name] = hashlib.file_digest(handle, "sha256").hexdigest()
    return digests


def log_model(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    classes: Sequence[str],
    image_size: int,
    metrics: Mapping[str, float],
) -> str:
    """Log a model folder under a run, with its figures and data set; returns the model's id, READY.

    A model with the very same files that the run has already is not logged again.

    Raises
    ------
    InputError
        The folder lacks one of the model's files.
    KdMlflowError
        The files could not be stored; the logged model is then deleted.
    """
    check_model_folder(folder)
    digests = file_digests(folder)
    found = newest_model(client, run_id)
    if found is None or any(found.tags.get(name) != value for name, value in digests.items()):
        found = _create(client, run_id, folder, classes, image_size, digests)
    _link_metrics(client, run_id, found.model_id, metrics)
    return found.model_id


def check_model_folder(folder: Path) -> None:
    """Raise an InputError for a folder that lacks one of a model's files."""
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"The model folder {folder} lacks {', '.join(missing)}; write it with save_model.")


def newest_model(client: MlflowClient, run_id: str) -> LoggedModel | None:
    """The latest logged model of a run that is whole, or None."""
    outputs = get_run(client, run_id).outputs
    found = [_logged_model(client, output.model_id) for output in (outputs.model_outputs if outputs else [])]
    ready = [model for model in found if model is not None and model.status == LoggedModelStatus.READY]
    return max(ready, key=lambda model: model.creation_timestamp, default=None)


def _logged_model(client: MlflowClient, model_id: str) -> LoggedModel | None:
    """A logged model; None for one that was deleted."""
    try:
        return client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def check_code(copy: Path) -> None:
    """Refuse a stored copy whose code is not what :func:`write_flavor` writes: MLflow runs it to load the model.

    Raises
    ------
    InputError
        Names what differs.
    """
    module, source = _loader()
    try:
        flavors = yaml.safe_load((copy / "MLmodel").read_text(encoding="utf-8"))["flavors"]
        python, network = flavors["python_function"], flavors["pytorch"]
        leads = (python["loader_module"], python["data"], python["code"], network["model_data"], network["code"])
        files = [str(file.relative_to(copy)) for file in copy.rglob("*.py")]
        same = (copy / "code" / f"{module}.py").read_bytes() == source
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RecursionError):
        raise InputError("the stored model has no description that can be read.") from None
    if leads != (module, "data", "code", "data", None) or files != [f"code/{module}.py"] or not same:
        raise InputError("the stored model carries other code than was written; it was altered in the store.")


def write_flavor(target: Path, folder: Path, description: Model) -> None:
    """A model folder in MLflow's layout, to which ``description`` then leads."""
    module, source = _loader()
    for part in ("data", "code"):
        (target / part).mkdir(parents=True)
    for name in MODEL_FILES:
        shutil.copyfile(folder / name, target / "data" / name)
    (target / "code" / f"{module}.py").write_bytes(source)
    _write_environment(target)
    description.add_flavor("pytorch", model_data="data", pytorch_version=str(torch.__version__), code=None)
    mlflow.pyfunc.add_to_model(
        description,
        loader_module=module,
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    description.save(str(target / "MLmodel"))


def _loader() -> tuple[str, bytes]:
    """The name and the source of the module that answers for a model: the loader, after what it imports from here."""
    imported, answering = (Path(part.__file__).read_bytes() for part in (depth, loader))
    needless = (f"from {depth.__name__} import ".encode(), b"from __future__ import ")
    source = imported + b"".join(line for line in answering.splitlines(True) if not line.startswith(needless))
    # Named by its content: one process may load two models that carry different loaders.
    return f"kd_mlflow_loader_{hashlib.sha256(source).hexdigest()[:12]}", source


def _create(
    client: MlflowClient, run_id: str, folder: Path, classes: Sequence[str], image_size: int, digests: dict[str, str]
) -> LoggedModel:
    run = get_run(client, run_id)
    params = {"classes": str(len(classes)), "image_size": str(image_size)}
    created = client.create_logged_model(
        run.info.experiment_id,
        name="model",
        source_run_id=run_id,
        tags=digests,
        params=params,
        model_type="image-classifier",
    )
    try:
        with TemporaryDirectory() as scratch:
            description = Model(
                artifact_path=created.artifact_location,
                run_id=run_id,
                model_id=created.model_id,
                model_uuid=created.model_id,
            )
            write_flavor(Path(scratch) / "model", folder, description)
            client.log_model_artifacts(created.model_id, str(Path(scratch) / "model"))
        client.log_outputs(run_id, [LoggedModelOutput(created.model_id, step=0)])
        return client.finalize_logged_model(created.model_id, LoggedModelStatus.READY)
    except Exception as error:
        with suppress(Exception):  # where the store is away, too, a model is left that is not READY
            client.finalize_logged_model(created.model_id, LoggedModelStatus.FAILED)
            client.delete_logged_model(created.model_id)
        raise KdMlflowError(f"The model of run {run_id} could not be stored: {one_line(error)}") from error


def _link_metrics(client: MlflowClient, run_id: str, model_id: str, metrics: Mapping[str, float]) -> None:
    """Say which of the run's figures are this model's, and on which data they were measured.

    MLflow writes a linked point into the run as well. A point that the run has already is sent again
    as it stands, which adds nothing there; only a figure without a curve of its own is a new point.
    """
    inputs = get_run(client, run_id).inputs
    dataset = inputs.dataset_inputs[0].dataset if inputs and inputs.dataset_inputs else None
    name, digest = (dataset.name, dataset.digest) if dataset else (None, None)
    now = get_current_time_millis()
    points = []
    for key, value in ((name_of(key), value) for key, value in metrics.items()):
        curve = client.get_metric_history(run_id, key)
        same = [point for point in curve if abs(point.value - value) <= 1e-6 * max(1.0, abs(value))]
        if same:
            last = max(same, key=lambda point: (point.step, point.timestamp))
            points.append(Metric(key, last.value, last.timestamp, last.step, model_id, name, digest, run_id))
        elif not curve:
            points.append(Metric(key, float(value), now, 0, model_id, name, digest, run_id))
    for first in range(0, len(points), 1000):
        client.log_batch(run_id, metrics=points[first : first + 1000])


def _write_environment(target: Path) -> None:
    pinned = [f"{name}=={version(name).split('+')[0]}" for name in REQUIREMENTS]
    (target / "requirements.txt").write_text("\n".join(pinned) + "\n", encoding="utf-8")
    python = platform.python_version()
    plain = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (target / "python_env.yaml").write_text(yaml.safe_dump(plain, sort_keys=False), encoding="utf-8")
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pinned}],
    }
    (target / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False), encoding="utf-8")
