"""The errors a person can act on, each with its exit code."""

from __future__ import annotations


class KdMlflowError(Exception):
    """One sentence for the person at the terminal: what is wrong and what to do."""

    exit_code = 1


class InputError(KdMlflowError):
    """Bad usage or bad input: an option, a file, a folder, a model that cannot be used."""

    exit_code = 2


class GuardError(KdMlflowError):
    """A guard stopped the run: a non-finite loss, memory that does not suffice."""

    exit_code = 3
