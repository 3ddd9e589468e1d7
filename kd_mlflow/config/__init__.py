"""Every option of every command: its default, its bounds and its help stand here and nowhere else.

A command's options are one frozen pydantic model, put together from sections. The command line, the
MLproject entry points, presets and YAML files all fill the same model. A :class:`Recipe` is the part
of it that decides the weights of one network; it is what gets fingerprinted.
"""

from kd_mlflow.config.commands import (
    COMMANDS,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    PrepareConfig,
    SearchConfig,
    StudentConfig,
    TeacherConfig,
    WorkerConfig,
)
from kd_mlflow.config.fields import Options
from kd_mlflow.config.files import read_mapping
from kd_mlflow.config.recipe import Recipe, recipe
from kd_mlflow.config.resolve import preset_names, resolve, to_yaml
from kd_mlflow.config.sections import (
    AugmentationOptions,
    DataOptions,
    PlaceOptions,
    Role,
    Stem,
)

__all__ = [
    "COMMANDS",
    "AugmentationOptions",
    "CompareConfig",
    "DataOptions",
    "DistillConfig",
    "EvaluateConfig",
    "Options",
    "PlaceOptions",
    "PrepareConfig",
    "Recipe",
    "Role",
    "SearchConfig",
    "Stem",
    "StudentConfig",
    "TeacherConfig",
    "WorkerConfig",
    "preset_names",
    "read_mapping",
    "recipe",
    "resolve",
    "to_yaml",
]
