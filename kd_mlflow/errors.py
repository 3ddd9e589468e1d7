"""The errors a person can act on, each with its exit code."""

from __future__ import annotations

import re

# Control characters, the escape sequences of terminals among them; line breaks and tabs stay.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Text as a terminal may show it: what would move the cursor, or cannot be written at all, is spelt out."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


class KdMlflowError(Exception):
    """One sentence for the person at the terminal: what is wrong and what to do."""

    exit_code = 1


class InputError(KdMlflowError):
    """Bad usage or bad input: an option, a file, a folder, a model that cannot be used."""

    exit_code = 2


class GuardError(KdMlflowError):
    """A guard stopped the run: a non-finite loss, memory that does not suffice."""

    exit_code = 3
