"""What an error must be, whatever it is about."""

from __future__ import annotations


def one_sentence(error: Exception) -> None:
    """Something is said, on one line."""
    said = str(error)
    assert said.strip(), type(error)
    assert "\n" not in said, said
