"""What the methods say of themselves, as plain types for help, JSON and the table of docs/methods.md."""

from __future__ import annotations

import inspect
from typing import Any

from kd_mlflow.distillers.options import MethodOptions
from kd_mlflow.distillers.registry import method_class

UNCUT = "Its batches are not cut into parts (--accumulate)."


def describe(method: str) -> dict[str, Any]:
    """What ``kd-mlflow methods`` prints of a method, as plain types."""
    kind = method_class(method)
    fewest, most = kind.teacher_count
    return {
        "name": method,
        "summary": (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " "),
        "paper": kind.source.paper,
        "year": kind.source.year,
        "evidence": kind.source.evidence,
        "link": kind.source.link,
        "needs": sorted(kind.needs),
        "teachers": {"fewest": fewest, "most": most},
        "views": kind.views,
        "limits": " ".join(filter(None, (kind.limits, UNCUT if kind.relational else ""))),
        "options": [_option(method, name, kind.Options) for name in kind.Options.model_fields],
    }


def _option(method: str, name: str, model: type[MethodOptions]) -> dict[str, Any]:
    field = model.model_fields[name]
    schema = model.model_json_schema()["properties"][name]
    schema = next((part for part in schema.get("anyOf", []) if part.get("type") != "null"), schema)
    bounds = {
        sign: schema[key]
        for key, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    }
    return {
        "name": name,
        "flag": f"--{method}-{name.replace('_', '-')}",
        "default": list(field.default) if isinstance(field.default, tuple) else field.default,
        "choices": schema.get("enum", []),
        "bounds": bounds,
        "help": field.description or "",
    }
