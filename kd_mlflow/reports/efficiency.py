"""The words for what networks cost in use, as it was measured in turn. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = {
    "latency": "latency of one image",
    "throughput": "throughput",
    "memory": "memory, inference",
    "size": "size of the weights",
    "energy": "energy an image",
}
# By the names of the metrics, without their prefix.
RATIOS = {
    f"{kind}_ratio_to_{reference}": (f"{label}, ratio to the {reference}", "{:.3f}")
    for reference in ("teacher", "control")
    for kind, label in KINDS.items()
}


def conditions(sitting: Mapping[str, Any]) -> str:
    """How the ratios of a sitting, as plain types, were measured, and why one is absent."""
    threads = f"{sitting['threads']} thread{'' if sitting['threads'] == 1 else 's'}"
    said = (
        f"Ratios to the {sitting['reference']}: measured in turn, {sitting['rounds']} rounds, {sitting['device']}, "
        f"{threads}; throughput and memory at a batch of {sitting['batch_size']}; ± is the median distance of the "
        "rounds from their median."
    )
    absent = "".join(f" No {kind}: {reason}." for kind, reason in sorted(sitting["missing"].items()))
    return said + absent


def ratio_words(sitting: Mapping[str, Any], name: str) -> str:
    """A network's ratios in one phrase: ``latency of one image 0.520 ± 0.010, throughput …``."""
    figures = sitting["networks"][name]
    return ", ".join(
        f"{label} {with_spread(figures[key], figures.get(f'{key}_spread'), '{:.3f}')}"
        for key, label in ((f"{kind}_ratio", label) for kind, label in KINDS.items())
        if key in figures
    )


def with_spread(value: float, spread: float | None, form: str) -> str:
    """``0.520 ± 0.010``; what has no spread, or none that counts, alone."""
    return form.format(value) + (f" ± {form.format(spread)}" if spread else "")
