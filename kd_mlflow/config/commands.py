"""The options of each command."""

from __future__ import annotations

from typing import Any, Literal

from kd_mlflow.config.fields import Options, option
from kd_mlflow.config.search_sections import SearchOptions, StudyOptions, WorkerOptions
from kd_mlflow.config.sections import (
    AugmentationOptions,
    CacheUse,
    ComparisonOptions,
    DataOptions,
    DistillationOptions,
    ImageOptions,
    MethodChoice,
    ModelOptions,
    PlaceOptions,
    RegistryOptions,
    ReuseOptions,
    SpeedOptions,
    StudentOptions,
    TeacherOptions,
    TrainingOptions,
)

# Where many trainings share a teacher, the cache pays; a single one never sees a view twice.
SHARED_CACHE = option("auto", SpeedOptions.model_fields["teacher_cache"].description, panel="Speed")


class PrepareConfig(DataOptions):
    """Options of `prepare`."""


class TeacherConfig(
    DataOptions, AugmentationOptions, TrainingOptions, ModelOptions, TeacherOptions, RegistryOptions, PlaceOptions
):
    """Options of `teacher`."""


class StudentConfig(DataOptions, AugmentationOptions, TrainingOptions, ModelOptions, StudentOptions, PlaceOptions):
    """Options of `student`, which trains with labels only."""


class DistillConfig(
    DataOptions,
    AugmentationOptions,
    TrainingOptions,
    ModelOptions,
    TeacherOptions,
    StudentOptions,
    DistillationOptions,
    MethodChoice,
    SpeedOptions,
    ReuseOptions,
    RegistryOptions,
    PlaceOptions,
):
    """Options of `distill`."""


class CompareConfig(
    ComparisonOptions,
    ImageOptions,
    AugmentationOptions,
    TrainingOptions,
    ModelOptions,
    TeacherOptions,
    StudentOptions,
    DistillationOptions,
    SpeedOptions,
    ReuseOptions,
    PlaceOptions,
):
    """Options of `compare`."""

    teacher_cache: CacheUse = SHARED_CACHE

    def cell(self, data: str, method: str, seed: int) -> DistillConfig:
        """What `distill` would be asked for to train one cell."""
        shared = {name: getattr(self, name) for name in DistillConfig.model_fields if hasattr(self, name)}
        own = {"data": data, "method": method, "seed": seed, "method_options": self.method_options.get(method, {})}
        return DistillConfig(**{**shared, **own, "register_model": False})


class SearchConfig(
    SearchOptions,
    StudyOptions,
    WorkerOptions,
    DataOptions,
    AugmentationOptions,
    TrainingOptions,
    ModelOptions,
    TeacherOptions,
    StudentOptions,
    DistillationOptions,
    MethodChoice,
    SpeedOptions,
    ReuseOptions,
    RegistryOptions,
    PlaceOptions,
):
    """Options of `search`."""

    teacher_cache: CacheUse = SHARED_CACHE

    def trial(self, values: dict[str, Any], seed: int) -> DistillConfig:
        """What `distill` would be asked for to train one trial.

        Parameters
        ----------
        values:
            Options by their names, those of a method as ``METHOD-OPTION``.
        """
        shared = {name: getattr(self, name) for name in DistillConfig.model_fields if name in type(self).model_fields}
        method = values.get("method", self.method)
        own = dict(self.method_options) if method == self.method else {}
        plain = {name: value for name, value in values.items() if name in DistillConfig.model_fields}
        for name in values.keys() - plain.keys():
            own[name.removeprefix(f"{method}-").replace("-", "_")] = values[name]
        chosen = {**shared, **plain, "seed": seed, "method_options": own}
        return DistillConfig(**{**chosen, "register_model": False})


class WorkerConfig(StudyOptions, PlaceOptions):
    """Options of `search-worker`."""

    data: str = option("", "Where the study's data lies on this machine; empty: as for `search`.", panel="Data")
    follow_links: bool | None = option(
        None, "Follow links that lead out of the data folder; empty: as for `search`.", panel="Data"
    )


class EvaluateConfig(DataOptions, PlaceOptions):
    """Options of `evaluate`."""

    image_size: int | None = option(
        None, "Side of the square in pixels; empty: what the model was trained at.", panel="Data", ge=16, le=1024
    )
    model: str = option(
        "", "What to evaluate: models:/NAME@ALIAS, a run id, or a pulled folder.", panel="Models", common=True
    )
    split: Literal["val", "test"] = option("test", "The split to measure on.", panel="Data", common=True)
    batch_size: int = option(64, "Images a batch.", panel="Run", ge=1)


COMMANDS: dict[str, type[Options]] = {
    "prepare": PrepareConfig,
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "distill": DistillConfig,
    "compare": CompareConfig,
    "search": SearchConfig,
    "search-worker": WorkerConfig,
    "evaluate": EvaluateConfig,
}
