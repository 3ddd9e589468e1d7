"""Looking up versions in the registry, and saying what there is when one is not there."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import one_line
from kd_mlflow.tracking.records import quote

CHAMPION = "champion"
LISTED = 10


@dataclass(frozen=True)
class ModelVersionInfo:
    """A version as it stands in the registry."""

    name: str
    version: int
    run_id: str
    tags: dict[str, str]


def champion(client: MlflowClient, name: str) -> ModelVersionInfo | None:
    """The version that carries the alias champion, or None."""
    model = model_or_none(client, name)
    number = model.aliases.get(CHAMPION) if model else None
    return info_of(client.get_model_version(name, str(number))) if number is not None else None


def resolve(client: MlflowClient, uri: str) -> ModelVersionInfo:
    """The version that ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` means (``models:/`` may be left out).

    Raises
    ------
    InputError
        There is none; lists what there is.
    """
    asked = re.fullmatch(r"(?:models:/)?([^/:@]+)(?:@([^/:@]+)|/(\d+))?", uri)
    if asked is None:
        raise InputError(f"{uri} is no name of a registered model; write models:/NAME@ALIAS or models:/NAME/VERSION.")
    name, alias, number = asked.groups()
    model = model_or_none(client, name)
    if model is None:
        names = registered_names(client)
        there = f"it holds {_listed(names)}" if names else "it is empty"
        raise InputError(f"There is no model '{name}' in the registry; {there}.")
    number = number or model.aliases.get(alias)
    if number is not None:
        try:
            return info_of(client.get_model_version(name, str(number)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    aliases = [f"@{known} (version {of})" for known, of in sorted(model.aliases.items())]
    versions = [f"/{found.version}" for found in sorted(versions_of(client, name), key=lambda v: -v.version)]
    raise InputError(f"There is no {uri} in the registry; {name} has {_listed(aliases + versions) or 'no version'}.")


def model_or_none(client: MlflowClient, name: str) -> RegisteredModel | None:
    """The registered model, or None.

    Raises
    ------
    InputError
        The registry refuses the name.
    """
    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise InputError(f"The registry cannot look up '{name}': {one_line(error)}") from None


def versions_of(client: MlflowClient, name: str) -> list[ModelVersionInfo]:
    """All versions of a registered model."""
    condition = f"name = {quote(name)}"
    pages = _pages(lambda token: client.search_model_versions(condition, max_results=100, page_token=token))
    return [info_of(found) for found in pages]


def all_versions(client: MlflowClient) -> list[ModelVersionInfo]:
    """All versions of all registered models, as they were registered."""
    names = registered_names(client)
    return [found for name in names for found in sorted(versions_of(client, name), key=lambda one: one.version)]


def registered_names(client: MlflowClient) -> list[str]:
    """The names of all registered models, sorted."""
    return sorted(found.name for found in _pages(lambda token: client.search_registered_models(page_token=token)))


def _pages(search: Callable[[str | None], PagedList]) -> list:
    found, token = [], None
    while True:
        page = search(token)
        found, token = found + list(page), page.token
        if not token:
            return found


def info_of(version: ModelVersion) -> ModelVersionInfo:
    """MLflow's object as a plain record."""
    return ModelVersionInfo(version.name, int(version.version), version.run_id or "", dict(version.tags))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
