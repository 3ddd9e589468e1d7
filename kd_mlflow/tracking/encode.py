"""Python values in the forms that MLflow stores: parameters, names, tables, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from kd_mlflow.tracking.client import redact

PARAM_CHARACTERS = 6000
TAG_CHARACTERS = 8000
FORMULA = re.compile(r"^\s*[=+\-@＝＋－＠]|^[\t\r\n]")


def clean(text: str, limit: int) -> str:
    """Text a database can hold (file names may carry bytes that are no UTF-8), cut with a mark."""
    text = text.encode("utf-8", errors="backslashreplace").decode("utf-8").replace("\0", "\\0")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def name_of(name: str) -> str:
    """A metric's or parameter's name with the characters MLflow allows."""
    return re.sub(r"[^\w\-. /:]", "_", name)[:250]


def flat_params(values: Mapping[str, Any], prefix: str = "cfg") -> dict[str, str]:
    """Nested options as flat parameters ``cfg.section.name``: cut at 6000 characters, URIs without credentials."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping) and value:
            flat |= flat_params(value, name)
        else:
            flat_list = isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value)
            if flat_list:
                text = ",".join(value)
            else:
                text = to_json(value, indent=None) if isinstance(value, (Mapping, list, tuple)) else str(value)
            flat[name_of(name)] = clean(redact(text), PARAM_CHARACTERS)
    return flat


def numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    """Figures for JSON, which has no words for what is not finite: ``float`` reads those back from text."""
    return {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in values.items()}


def to_json(value: Any, indent: int | None = 2) -> str:
    """JSON as the standard has it: numpy values as numbers and lists, non-finite numbers as null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns of a table, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The form that MLflow's table view reads: ``{"columns": […], "data": [[…], …]}``."""
    columns = columns_of(rows)
    return to_json({"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}, indent=None)


def table_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV in which no text is taken for a formula by a spreadsheet."""
    columns = columns_of(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(_plain(row.get(name))) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, (dict, list)):
        value = to_json(value, indent=None)
    if isinstance(value, str) and FORMULA.match(value):
        return "'" + value
    return "" if value is None else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def table_list(tags: Mapping[str, str], path: str) -> dict[str, str]:
    """The tag by which MLflow knows which artifacts are tables, with ``path`` among them."""
    tag = "mlflow.loggedArtifacts"
    try:
        listed = json.loads(tags.get(tag, "[]"))
    except ValueError:
        listed = []
    entry = {"path": path, "type": "table"}
    return {tag: json.dumps(listed if entry in listed else [*listed, entry])}
