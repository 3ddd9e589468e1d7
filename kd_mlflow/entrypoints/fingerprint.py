"""When two trainings are the same: a hash over everything that decides the weights."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from kd_mlflow.config import Options, Recipe
from kd_mlflow.distillers.names import CONTROL, METHODS, foreign
from kd_mlflow.models.architectures import is_factory, working_directory_importable
from kd_mlflow.training.checkpoint import file_sha256

PACKAGE = Path(__file__).parents[1]
TRAINS = ("data", "models", "training")
# Of the methods each counts for itself: a new one does not make the others' runs stale.
CONTRACT = ("base", "options", "registry")
IMPORTED = re.compile(r"kd_mlflow\.distillers\.(\w+)")


@lru_cache
def code_digest(method: str) -> str:
    """SHA-256 over the source that decides the weights: of data, networks, loop, and of the method."""
    files = [file for folder in TRAINS for file in sorted((PACKAGE / folder).rglob("*.py"))]
    digest = hashlib.sha256()
    for file in [*files, *_method_files(method)]:
        digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


@lru_cache
def view_code_digest() -> str:
    """SHA-256 over the source that decides what a teacher says of a view."""
    digest = hashlib.sha256()
    for file in sorted(file for folder in ("data", "models") for file in (PACKAGE / folder).rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _method_files(method: str) -> list[Path]:
    """The contract, and the method's own module with those of its kind that it imports."""
    todo, found = [*CONTRACT], set()
    if method in METHODS:
        todo.append(METHODS[method].partition(":")[0])
    while todo:
        file = PACKAGE / "distillers" / f"{todo.pop()}.py"
        if file not in found and file.is_file():
            found.add(file)
            todo += set(IMPORTED.findall(file.read_text(encoding="utf-8"))) - {"names"}
    return sorted(found)


def fingerprint(recipe: Recipe, dataset_digest: str, teacher_digests: Sequence[str] = ()) -> str:
    """The identity of one training (32 hex digits)."""
    return _hash(recipe, dataset_digest, _file_digest(recipe), *teacher_digests)


def request_fingerprint(config: Options, dataset_digest: str) -> str:
    """The identity of what was asked for, known before the teacher is; ``--resume`` looks for it."""
    # Links decide where images lie, and the data set's digest which they are.
    placeless = {"device", "experiment", "tracking_uri", "offline", "name", "reuse", "register_model", "follow_links"}
    return _hash(config.model_copy(), dataset_digest, exclude=placeless)


def _hash(options: Options, *parts: str, exclude: set[str] | None = None) -> str:
    content = json.dumps(options.model_dump(mode="json", exclude=exclude), sort_keys=True)
    method = getattr(options, "method", CONTROL)
    return hashlib.sha256("\0".join([content, code_digest(method), *parts]).encode()).hexdigest()[:32]


def _file_digest(recipe: Recipe) -> str:
    """The content behind names: a weights file, the source of a person's own architecture or method."""
    weights, own = Path(recipe.weights), ""
    if is_factory(recipe.architecture):
        own = _source_digest(recipe.architecture.partition(":")[0])
    is_file = recipe.weights not in ("none", "imagenet") and weights.is_file()
    if recipe.method in foreign():
        own += _source_digest(foreign()[recipe.method].module)
    return own + (file_sha256(weights) if is_file else "")


def _source_digest(module: str) -> str:
    """SHA-256 over the module's file, or over all of the package that it stands in."""
    with working_directory_importable():
        try:
            found = importlib.util.find_spec(module.partition(".")[0])
        except (ImportError, ValueError):
            return ""
    if found is None or not found.origin:
        return ""
    origin = Path(found.origin)
    files = sorted(origin.parent.rglob("*.py")) if found.submodule_search_locations else [origin]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
