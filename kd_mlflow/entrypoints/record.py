"""Writing a trained network into its run, and reading runs back for a comparison."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kd_mlflow.config import Options, Recipe, to_yaml
from kd_mlflow.entrypoints.judge import Judged
from kd_mlflow.entrypoints.machine import INFERENCE, TAG, watched
from kd_mlflow.entrypoints.network import Network, Trained
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import InputError
from kd_mlflow.measures.efficiency import measure
from kd_mlflow.measures.in_turn import Sitting
from kd_mlflow.places import absolute
from kd_mlflow.reports import figures
from kd_mlflow.reports.data import Predictions, RunView
from kd_mlflow.reports.html import render
from kd_mlflow.reports.tables import efficiency_table, quality_table
from kd_mlflow.tracking.artifacts import ArtifactsGone
from kd_mlflow.tracking.client import redact
from kd_mlflow.tracking.runs import RunWriter, history, read_json, read_run

THROUGHPUT_BATCH = 64
MISCLASSIFIED_ROWS = 1000
SAMPLES = 12
# What a report takes from evaluation.json.
EVALUATED = {"missing", "split", "per_class", "confusion", "reliability"}


def record_setup(session: Session, writer: RunWriter, config: Options, context: str = "training") -> None:
    """What is known before training: options, data, code and machine."""
    record_options(writer, config)
    store = session.store
    record_data(session, writer, context)
    writer.tags(
        {
            "kd.dataset": store.name,
            "kd.dataset_digest": store.digest,
            "kd.image_size": str(store.image_size),
            "kd.device": str(session.device),
            "kd.precision": session.precision,
        }
    )
    if store.bad:
        writer.table("tables/bad_files", [{"path": bad.path, "reason": bad.reason} for bad in store.bad])
    if store.warnings:
        writer.text("data_warnings.txt", "\n".join(store.warnings) + "\n")


def record_options(writer: RunWriter, config: Options) -> None:
    """Options and the environment."""
    writer.params(config.recorded())
    writer.text("config.yaml", to_yaml(config))
    writer.environment()


def data_source(session: Session) -> str:
    """Where the data of this command came from: an absolute path, a URL without credentials, or a built-in name."""
    return redact(absolute(str(session.config.data)))


def record_data(session: Session, writer: RunWriter, context: str) -> None:
    """The data as an input of the run, and as tags what this run alone knows of it.

    MLflow keeps one data set for a name and a digest, with the source and the profile that the first run of the
    experiment gave it: later runs show those.
    """
    store = session.store
    source = data_source(session)
    profile = {
        "classes": len(store.classes),
        "image_size": store.image_size,
        "bad_files": len(store.bad),
        **{split: len(index) for split, index in store.splits.items()},
    }
    writer.dataset(store.name, store.digest, profile, source, context)
    counts = ", ".join(f"{split} {len(index)}" for split, index in store.splits.items())
    writer.tags({"kd.data_source": source, "kd.data_splits": counts, "kd.data_bad_files": str(len(store.bad))})


def record_network(session: Session, writer: RunWriter, recipe: Recipe, trained: Trained) -> None:
    """Final figures, tables and the model of a network that was just trained."""
    verdict, fit, network = trained.verdict, trained.fit, trained.network
    writer.final_metrics(
        {
            "best/epoch": fit.best_epoch,
            "train_eval/accuracy": verdict.train_accuracy,
            "generalisation_gap": verdict.generalisation_gap,
            "efficiency/training_seconds": fit.training_seconds,
            "efficiency/training_seconds_per_batch": fit.seconds_per_batch,
            "efficiency/extra_parameters": trained.extra_parameters,
            **trained.others,
            **{f"efficiency/training_{name}": value for name, value in trained.training.metrics.items()},
        }
    )
    writer.tags({"kd.evidence": trained.evidence})
    writer.artifact(trained.last_folder, "checkpoints/last")
    record_evaluation(
        session,
        writer,
        network,
        {"val": verdict.val, "test": verdict.test},
        {f"training_{name}": reason for name, reason in trained.training.missing.items()},
    )
    metrics = {f"val/{name}": value for name, value in verdict.val.metrics.items()}
    metrics |= {f"test/{name}": value for name, value in verdict.test.metrics.items()}
    writer.model(network.folder, session.store.classes, recipe.image_size, metrics)


def record_evaluation(
    session: Session, writer: RunWriter, network: Network, judged: dict[str, Judged], missing: dict[str, str]
) -> None:
    """Quality on each split, cost of use, and the tables of the last split."""
    with watched(session, writer, INFERENCE):
        use = measure(
            network.model,
            image_size=session.store.image_size,
            device=session.device,
            batch_size=THROUGHPUT_BATCH,
            file=network.folder / "model.safetensors",
        )
    # val/… holds the curve over epochs; the selected epoch's figures stand beside it under best/….
    final = {
        f"{'best' if split == 'val' else split}/{name}": value
        for split, one in judged.items()
        for name, value in one.metrics.items()
    }
    writer.final_metrics(final | {f"efficiency/{name}": value for name, value in use.metrics.items()})
    writer.tags({"kd.weights_digest": network.digest})
    last = judged[list(judged)[-1]]
    writer.json(
        "evaluation.json",
        {
            "split": list(judged)[-1],
            "classes": list(session.store.classes),
            "missing": missing | use.missing,
            "per_class": last.quality.per_class,
            "confusion": last.quality.confusion.tolist(),
            "reliability": last.quality.reliability,
        },
    )
    writer.json("predictions.json", {split: _predictions(one) for split, one in judged.items()})
    writer.table("tables/per_class", last.quality.per_class)
    if wrong := _misclassified(session, last):
        writer.table("tables/misclassified", wrong)


def _predictions(judged: Judged) -> dict[str, list[int]]:
    """What was said of every image: a later comparison is paired by it."""
    return {
        "index": judged.index.tolist(),
        "label": judged.labels.tolist(),
        "predicted": judged.logits.argmax(dim=1).tolist(),
    }


def _misclassified(session: Session, judged: Judged) -> list[dict[str, Any]]:
    """The test images that were named wrongly, the surest mistakes first."""
    classes = session.store.classes
    probabilities = judged.logits.softmax(dim=1)
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != judged.labels).nonzero().flatten().tolist()
    wrong.sort(key=lambda place: -float(confidence[place]))
    rows = []
    for place in wrong[:MISCLASSIFIED_ROWS]:
        row = {
            "path": session.store.path_of(int(judged.index[place])),
            "class": classes[judged.labels[place]],
            "predicted": classes[predicted[place]],
            "probability": float(confidence[place]),
        }
        if judged.teacher_logits is not None:
            row["teacher_predicted"] = classes[judged.teacher_logits[place].argmax()]
        rows.append(row)
    return rows


def view_of(client: Any, run_id: str) -> RunView:
    """A finished run as the reports want it, read back from the store.

    Raises
    ------
    ArtifactsGone
        The store has no evaluation of it any more.
    """
    run = read_run(client, run_id)
    evaluation = read_json(client, run_id, "evaluation.json")
    if not isinstance(evaluation, dict) or EVALUATED - evaluation.keys():
        fact = f"The artifact evaluation.json of run {run_id} lacks figures, so it was damaged in the store"
        raise ArtifactsGone(fact, "restore it, or name another run")
    final = {
        name: value
        for name, value in run.metrics.items()
        if name.startswith(("test/", "efficiency/", "train_eval/")) or name == "generalisation_gap"
    }
    final |= {name.replace("best/", "val/", 1): v for name, v in run.metrics.items() if name.startswith("best/")}
    params = {name.removeprefix("cfg."): value for name, value in run.params.items() if name.startswith("cfg.")}
    return RunView(
        role=run.role,
        run_id=run_id,
        name=run.name,
        architecture=run.tags.get("kd.architecture", ""),
        params=params,
        history=history(client, run_id),
        metrics=final,
        missing=evaluation["missing"],
        split=evaluation["split"],
        per_class=evaluation["per_class"],
        confusion=evaluation["confusion"],
        reliability=evaluation["reliability"],
        predictions=_predicted(client, run_id),
        shared={tag.removeprefix(f"{TAG}."): load for tag, load in run.tags.items() if tag.startswith(f"{TAG}.")},
    )


def _predicted(client: Any, run_id: str) -> dict[str, Predictions]:
    """What a run said of each image, by split; empty for a run that did not keep it, or whose file is damaged."""
    try:
        recorded = read_json(client, run_id, "predictions.json")
        return {split: Predictions.of(lists) for split, lists in recorded.items()}
    except (InputError, AttributeError, KeyError, TypeError, ValueError, IndexError):
        return {}


def summary(view: RunView) -> dict[str, Any]:
    """A run in a command's JSON: what is printed for teacher, control and student alike."""
    parts: dict[str, Any] = {"run_id": view.run_id, "architecture": view.architecture}
    for prefix in ("val", "test", "efficiency"):
        parts[prefix] = {
            name.removeprefix(f"{prefix}/"): value
            for name, value in sorted(view.metrics.items())
            if name.startswith(f"{prefix}/")
        }
    return parts | {"shared_machine": dict(view.shared)}


def record_report(
    session: Session,
    writer: RunWriter,
    config: Options,
    views: list[RunView],
    test: Judged,
    notes: list[str],
    sitting: Sitting | None = None,
) -> None:
    """Figures and the self-contained report of a run; ``views[-1]`` is the run's own."""
    own, classes = views[-1], session.store.classes
    drawn = {
        "accuracy": figures.accuracy_curves(views),
        "loss": figures.loss_curves(views),
        "confusion": figures.confusion(own, classes, normalised=False),
        "confusion_normalised": figures.confusion(own, classes, normalised=True),
        "per_class_f1": figures.per_class_f1(views, classes),
        "reliability": figures.reliability(own),
        "samples": _samples(session, test),
    }
    pngs = {name: figures.to_png(figure) for name, figure in drawn.items()}
    title = f"{session.store.name}: {own.role} {own.architecture}"
    page = render(title, views, classes, pngs, to_yaml(config), notes, sitting)
    with TemporaryDirectory() as scratch:
        (Path(scratch) / "figures").mkdir()
        for name, png in pngs.items():
            (Path(scratch) / "figures" / f"{name}.png").write_bytes(png)
        (Path(scratch) / "tables").mkdir()
        for name, table in (("quality", quality_table(views)), ("efficiency", efficiency_table(views))):
            (Path(scratch) / "tables" / f"{name}.csv").write_text(table.to_csv(), encoding="utf-8")
        (Path(scratch) / "report.html").write_text(page, encoding="utf-8")
        writer.artifact(Path(scratch))


def _samples(session: Session, test: Judged) -> Any:
    """Some test images, half of them mistakes where there are enough, with what each network says."""
    classes, size = session.store.classes, session.store.image_size
    predicted = test.logits.argmax(dim=1)
    wrong = (predicted != test.labels).nonzero().flatten().numpy()
    right = (predicted == test.labels).nonzero().flatten().numpy()
    spread = np.random.default_rng(0)
    few = min(len(wrong), SAMPLES // 2)
    chosen = np.concatenate([spread.permutation(wrong)[:few], spread.permutation(right)[: SAMPLES - few]])
    margin = (session.store.side - size) // 2
    images = session.store.images[test.index.numpy()[chosen]][:, :, margin : margin + size, margin : margin + size]

    def says(logits: Any) -> tuple[list[str], list[float]]:
        sure, named = logits.softmax(dim=1).max(dim=1)
        return [classes[k] for k in named], sure.tolist()

    teacher = says(test.teacher_logits[chosen]) if test.teacher_logits is not None else (None, None)
    truth = [classes[k] for k in test.labels[chosen]]
    return figures.samples(images, truth, *teacher, *says(test.logits[chosen]))
