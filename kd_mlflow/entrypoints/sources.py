"""Where the teachers of a training are asked: live, or in their cache."""

from __future__ import annotations

from collections.abc import Sequence

from kd_mlflow.config import AugmentationOptions, Recipe
from kd_mlflow.data.loading import samples_per_epoch, training_view
from kd_mlflow.distillers.base import Distiller, TeacherSource
from kd_mlflow.entrypoints.fingerprint import view_code_digest
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.taps import Tapped
from kd_mlflow.places import TEACHER_OUTPUTS
from kd_mlflow.training.cache import CacheFolder, weights_digest
from kd_mlflow.training.records import Codec
from kd_mlflow.training.teachers import CachedTeacher, LiveTeacher, why_live


def teacher_sources(
    session: Session, recipe: Recipe, distiller: Distiller, teachers: Sequence[Classifier]
) -> list[TeacherSource]:
    """A source for each teacher.

    Raises
    ------
    InputError
        The cache was asked for, and the method cannot use one.
    """
    needs = distiller.needs if distiller.teacher_needs is None else distiller.teacher_needs
    live = [LiveTeacher(teacher, needs, session.device, recipe.teacher_backend) for teacher in teachers]
    reason = why_live(distiller)
    if recipe.label_share < 1 and not distiller.learns_unlabeled:
        reason = reason or "sees its labeled images several times an epoch"
    if recipe.teacher_cache == "off" or (recipe.teacher_cache == "auto" and reason):
        return live
    if reason and live:
        raise InputError(f"The method '{recipe.method}' {reason}, which no cache holds; leave out --teacher-cache.")
    return [_cached(session, recipe, teacher) for teacher in live]


def cache_sentence(session: Session, recipe: Recipe, sources: Sequence[TeacherSource]) -> str:
    """What the caches of a training will hold; empty if it uses none."""
    cached = [source for source in sources if isinstance(source, CachedTeacher)]
    if not cached:
        return ""
    records = len(cached[0].places)
    size = sum(_codec(recipe, source.live.tapped).dtype.itemsize for source in cached) * records
    return (
        f"Teacher cache: {records} records an epoch, {_in_words(size)}, over {recipe.epochs} epochs "
        f"{_in_words(size * recipe.epochs)}, in {session.home / TEACHER_OUTPUTS}"
    )


def _cached(session: Session, recipe: Recipe, live: LiveTeacher) -> CachedTeacher:
    store, config = session.store, session.config
    places = store.splits["train"]

    def folder() -> CacheFolder:
        augmentation = {name: getattr(recipe, name) for name in AugmentationOptions.model_fields}
        facts = {
            "teacher": weights_digest(live.tapped.model),
            "teacher_architecture": live.tapped.model.spec.architecture,
            "teacher_backend": recipe.teacher_backend,
            "teacher_precision": recipe.precision,
            "data": store.digest,
            "image_size": store.image_size,
            "split": session.config.split_seed,
            "augmentation": augmentation,
            "seed": recipe.seed,
            "code": view_code_digest(),
        }
        limit = int(config.cache_gb * 1e9)
        return CacheFolder.of(session.home / TEACHER_OUTPUTS, facts, _codec(recipe, live.tapped), len(places), limit)

    # Of several processes each sees a share: they read what is there and leave the filling to one that sees all.
    samples = samples_per_epoch(store, recipe.batch_size) if recipe.devices == 1 else None

    def view(chosen, epoch):
        return training_view(store, recipe, chosen, seed=recipe.seed, epoch=epoch, device=session.device)

    return CachedTeacher(live, folder, places, samples, view)


def _codec(recipe: Recipe, teacher: Tapped) -> Codec:
    pooled = teacher.widths.pooled if "pooled" in teacher.needs else 0
    return Codec(teacher.model.num_classes, pooled, recipe.cache_precision)


def _in_words(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
