"""Telling a store that refuses for good from one that is away for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlflow.exceptions import MlflowException, RestException
from requests import HTTPError, Response

from kd_mlflow.errors import InputError
from kd_mlflow.tracking.client import one_line
from kd_mlflow.tracking.server import UNKNOWN_CALL, answers, is_server, lacks_calls, server_version

# What no repeating changes: the store has understood, and refuses.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
# MLflow's own names for a call that it does not have.
UNKNOWN_CODES = {"ENDPOINT_NOT_FOUND": 404, "NOT_FOUND": 404, "NOT_IMPLEMENTED": 501}
# What web frameworks and gateways put into JSON instead of a code.
UNKNOWN_WORDS = {"not found": 404, "method not allowed": 405, "not implemented": 501}
# A proxy answers 404 for a server that starts anew: so often in a row the server must be there and not know the call.
CONFIRMATIONS = 5


class Refusals:
    """Looks at the errors of one sender, one after the other.

    Parameters
    ----------
    uri:
        The store's tracking URI.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.in_a_row = 0

    def accepted(self) -> None:
        """The store took what it was sent."""
        self.in_a_row = 0

    def is_final(self, error: BaseException) -> bool:
        """Whether it is of no use to send the same once more; asks the server if the error alone does not tell."""
        if is_refusal(error):
            return True
        # In this order: a proxy that answers 404 for all that is behind it would look like a server without the calls.
        if unknown_call(error) is None or not is_server(self.uri) or not answers(self.uri):
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        try:
            version = server_version(self.uri)
            # Only what the server says of itself counts at once: while it starts anew, some calls may come late.
            too_old = bool(version) and lacks_calls(self.uri, version)
        except InputError:  # it went away meanwhile
            self.in_a_row = 0
            return False
        return too_old or self.in_a_row >= CONFIRMATIONS


def is_refusal(error: BaseException) -> bool:
    """Whether an error says by itself that the store refuses."""
    return any(
        isinstance(cause, InputError)
        or (isinstance(cause, MlflowException) and cause.error_code in REFUSALS)
        or (isinstance(cause, RestException) and cause.json.get("error_code") in UNKNOWN_CODES)
        for cause in _causes(error)
    )


def unknown_call(error: BaseException) -> int | None:
    """The status 404, 405 or 501 of an answer by something that does not know the call; None for other errors."""
    found = (_status(cause) for cause in _causes(error))
    return next((status for status in found if status in UNKNOWN_CALL), None)


def describe(error: BaseException) -> str:
    """An error of the store as one line; the page that comes with a 404 tells a person nothing."""
    status = unknown_call(error)
    if status is None:
        return one_line(error)
    path = next((found for cause in _causes(error) if (found := re.search(r"/api/[\w./-]+", str(cause)))), None)
    return f"the tracking server does not know the call{f' {path[0]}' if path else ''} (status {status})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int | None:
    if isinstance(error, HTTPError):
        return _of_answer(error.response)
    if isinstance(error, RestException):
        return _of_json(error.json)
    if isinstance(error, MlflowException):
        # MLflow keeps the status of an answer that is no JSON in the message alone.
        said = re.search(r"failed with error code (\d{3}) != 200", str(error))
        return int(said[1]) if said else None
    return None


def _of_answer(answer: Response | None) -> int | None:
    return None if answer is None else answer.status_code


def _of_json(content: dict) -> int | None:
    """RestException drops the status; what a gateway writes into its JSON instead stands for it."""
    if "error_code" in content:
        code = content["error_code"]
        return UNKNOWN_CODES.get(code, int(code) if str(code).isdecimal() else None)
    for value in content.values():
        if isinstance(value, int) and value in UNKNOWN_CALL:
            return value
        if isinstance(value, str) and (status := UNKNOWN_WORDS.get(value.strip(" .!").lower())):
            return status
    return None
