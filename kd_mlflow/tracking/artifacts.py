"""Reading from the artifact store: what is gone or damaged there, told apart from what cannot be reached now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.artifacts import list_artifacts
from mlflow.utils.file_utils import local_file_uri_to_path

from kd_mlflow.errors import InputError, KdMlflowError
from kd_mlflow.tracking.client import one_line, redact

NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "404", "NoSuchBucket", "NoSuchKey", "ResourceNotFound")


class ArtifactsGone(InputError):
    """The artifact store answers, and what a run or a version should have there is missing or damaged.

    Attributes
    ----------
    fact:
        What is gone and where it was expected, without a period: the beginning of a sentence.
    """

    def __init__(self, fact: str, advice: str) -> None:
        super().__init__(f"{fact}; {advice}.")
        self.fact = fact


class ArtifactsAway(KdMlflowError):
    """The artifact store does not answer or refuses, so that nobody knows what it holds."""


def require_listed(client: MlflowClient, location: str, path: str, what: str) -> int:
    """The size in bytes of the file ``path`` below an artifact location (0 where the store does not say).

    A listing is the one question that every kind of store answers in the same way.

    Parameters
    ----------
    what:
        How messages call it within a sentence: ``run …``, ``the model of run …``, ``models:/…``.

    Raises
    ------
    ArtifactsGone
        The store answers and does not list it.
    ArtifactsAway
        The store does not answer, or refuses.
    """
    folder, _, name = path.rpartition("/")
    above = f"{location.rstrip('/')}/{folder}".rstrip("/")
    try:
        listed = list_artifacts(artifact_uri=above, tracking_uri=client.tracking_uri)
    except Exception as error:  # each kind of store has exceptions of its own
        if _is_not_there(error):
            raise _gone(location, path, what) from None
        raise _away(location, what, error) from None
    sizes = {PurePosixPath(item.path).name: item.file_size or 0 for item in listed}
    if name not in sizes:
        raise _gone(location, path, what)
    return sizes[name]


@contextmanager
def reading(location: str, path: str, what: str) -> Iterator[None]:
    """Turn whatever a store raises while a file that it lists is read into an error of ours.

    Raises
    ------
    ArtifactsGone
        It went away meanwhile, or is a file of this machine that may not be opened.
    ArtifactsAway
        The store does not answer, or refuses.
    """
    try:
        yield
    except KdMlflowError:
        raise
    except Exception as error:  # each kind of store has exceptions of its own
        if _is_not_there(error):
            raise _gone(location, path, what) from None
        if reason := _why_closed(location, path):
            fact = f"{_subject(what)} has no artifact {path} in {shown(location)} that can be read ({reason})"
            raise ArtifactsGone(fact, "let your account read it, or name another model or run") from None
        raise _away(location, what, error) from None


def shown(location: str) -> str:
    """An artifact location as a person looks for it: a path, or a URI without credentials."""
    return str(local_path(location) or redact(location))


def local_path(location: str) -> Path | None:
    """The path of an artifact location on this machine; None for one elsewhere."""
    return Path(local_file_uri_to_path(location)) if urlsplit(location).scheme in ("", "file") else None


def _gone(location: str, path: str, what: str) -> ArtifactsGone:
    fact = f"{_subject(what)} has no artifact {path} in {shown(location)}, where it was stored"
    return ArtifactsGone(fact, "put the artifacts back there, or name another model or run")


def _subject(what: str) -> str:
    return what if what.startswith("models:/") else what[:1].upper() + what[1:]


def _away(location: str, what: str, error: BaseException) -> ArtifactsAway:
    return ArtifactsAway(
        f"The artifacts of {what} cannot be read from {shown(location)} now ({one_line(error)}); "
        "nothing is trained in their place, so try again once the artifact store answers."
    )


def _is_not_there(error: BaseException) -> bool:
    """Whether a store answered that it has no such thing: MLflow, HTTP, the clients of S3, Azure and Google."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return True
    response = getattr(error, "response", None)
    codes = [getattr(error, name, None) for name in ("error_code", "status_code", "code")]
    codes.append(getattr(response, "status_code", None))
    if isinstance(response, dict):  # botocore's
        codes.append(response.get("Error", {}).get("Code"))
    return any(str(code) in NOT_THERE for code in codes if code is not None)


def _why_closed(location: str, path: str) -> str:
    """Why a file of this machine cannot be opened; empty if it can, or lies elsewhere."""
    folder = local_path(location)
    try:
        if folder is not None and not (folder / path).is_dir():
            (folder / path).open("rb").close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""
