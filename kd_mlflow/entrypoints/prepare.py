"""`prepare`: images decoded once into a store, without training anything."""

from __future__ import annotations

from typing import Any

from kd_mlflow.config import PrepareConfig
from kd_mlflow.data.store import prepare
from kd_mlflow.entrypoints.runs import adopted_run, check_adopted
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.places import absolute, home
from kd_mlflow.tracking.client import redact


def prepare_data(config: PrepareConfig, terminal: Terminal | None = None) -> dict[str, Any]:
    """Prepare the store (or find it prepared) and say what is in it."""
    terminal = terminal or Terminal(quiet=True)
    check_adopted("")
    with terminal.preparing(f"Preparing {config.data}") as progress:
        store = prepare(config, home(), progress)
    result = {
        "store": str(store.path),
        "name": store.name,
        "digest": store.digest,
        "image_size": store.image_size,
        "classes": list(store.classes),
        "splits": {name: len(index) for name, index in store.splits.items()},
        "mean": list(store.mean),
        "std": list(store.std),
        "value_range": None if store.value_range is None else list(store.value_range),
        "warnings": list(store.warnings),
        "bad": [{"path": bad.path, "reason": bad.reason} for bad in store.bad],
    }
    _record(config, result)
    return result


def _record(config: PrepareConfig, result: dict[str, Any]) -> None:
    """Under `mlflow run`, the run holds what was found."""
    with adopted_run("", "prepare", f"prepare {result['name']}") as writer:
        if writer is not None:
            writer.params(config.model_dump(mode="json"))
            source = redact(absolute(config.data))
            writer.dataset(result["name"], result["digest"], result["splits"], source, "preparation")
            writer.tags({"kd.data_source": source})
            writer.json("store.json", result)
            if result["bad"]:
                writer.table("tables/bad_files", result["bad"])


def describe(result: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [
        f"{result['name']}: {len(result['classes'])} classes, "
        + ", ".join(f"{count} {split}" for split, count in result["splits"].items()),
        f"digest {result['digest']}, {result['image_size']} px, in {result['store']}",
        f"mean {_numbers(result['mean'])}, std {_numbers(result['std'])} of the training split",
    ]
    lines += [f"warning: {warning}" for warning in result["warnings"]]
    lines += [f"not used: {bad['path']}: {bad['reason']}" for bad in result["bad"][:20]]
    if len(result["bad"]) > 20:
        lines.append(f"… and {len(result['bad']) - 20} more; all are in the store's manifest")
    return "\n".join(lines)


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
