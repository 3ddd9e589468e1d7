"""YAML files of options and spaces: plain values, and no more of them than a person would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd_mlflow.errors import InputError

MAX_BYTES = 2**18
# Counted as they unfold: a few lines of references can stand for more values than any memory holds.
MAX_VALUES = 20_000
MAX_INTEGER = 2**63


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a YAML file holds, its values plain: text, numbers, true, false, null, lists, mappings.

    Parameters
    ----------
    what:
        How messages call the file.

    Raises
    ------
    InputError
        The file cannot be read, is absurdly large, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES // 1024} KiB")
        content = yaml.safe_load(text.decode("utf-8"))
        _require_plain(content)
    except Exception as error:  # PyYAML lets out whatever its constructors stumble over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"Cannot read the {what} {str(path)!r}: {reason[:300]}") from None
    if not isinstance(content, dict):
        raise InputError(f"The {what} {str(path)!r} must hold names with values, one a line.")
    return {str(name): value for name, value in content.items()}


def _require_plain(content: Any) -> None:
    todo, seen = [content], 0
    while todo:
        value = todo.pop()
        seen += 1
        if seen > MAX_VALUES:
            raise ValueError(f"it stands for more than {MAX_VALUES} values")
        if isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str):
            value.encode()
        elif not (value is None or isinstance(value, bool | int | float)):
            raise ValueError(f"it holds a {type(value).__name__}; put the value into quotes")
        elif isinstance(value, int) and abs(value) >= MAX_INTEGER:
            raise ValueError("it holds a number of more than 64 bits")
