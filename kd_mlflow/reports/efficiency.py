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
    f"{kind}_ratio_to_{reference}": (f"{label}, ratio to the {reference}", "{:.3g}")
    for reference in ("teacher", "control")
    for kind, label in KINDS.items()
}


SHARED_MACHINE = "Measured on a shared machine ({load})."
MARK = " *"
# Figures that other work on the machine changes, by the part of the run in which they are timed.
TIMED = {
    **dict.fromkeys(("latency_ms_b1_median", "latency_ms_b1_p95", "throughput_images_per_s"), "inference"),
    **dict.fromkeys(("inference_power_w", "inference_joules_per_image"), "inference"),
    **dict.fromkeys(("training_seconds", "training_seconds_per_batch", "training_gpu_utilisation_mean"), "training"),
    **dict.fromkeys(("training_power_w_mean", "training_joules_per_image", "training_energy_j"), "training"),
    **{name: "in_turn" for name in RATIOS if name.startswith(("latency", "throughput", "energy"))},
}


def mark(name: str, shared: Mapping[str, str]) -> str:
    """What stands behind a figure, named without its prefix, that was timed on a shared machine; else nothing."""
    return MARK if TIMED.get(name) in shared else ""


def mark_explained(shared: Mapping[str, Mapping[str, str]]) -> str:
    """What the marks of several networks, by their names, mean, with the highest load; empty without any."""
    loads = [load for parts in shared.values() for load in parts.values()]
    if not loads:
        return ""
    marked = [name for name, parts in shared.items() if parts]
    whose = "" if len(marked) == len(shared) else f": {', '.join(marked)}"
    return f"* Measured on a shared machine ({max(loads, key=_number_in)}){whose}."


def _number_in(load: str) -> float:
    """The first number of ``load 3.1 on 2 cores``."""
    return next((float(word) for word in load.split() if word.replace(".", "", 1).isdigit()), 0.0)


def conditions(sitting: Mapping[str, Any]) -> str:
    """How the ratios of a sitting, as plain types, were measured, and why one is absent."""
    threads = f"{sitting['threads']} thread{'' if sitting['threads'] == 1 else 's'}"
    said = (
        f"Ratios to the {sitting['reference']}: measured in turn, {sitting['rounds']} rounds, {sitting['device']}, "
        f"{threads}; throughput and memory at a batch of {sitting['batch_size']}; ± is the median distance of the "
        "rounds from their median."
    )
    said += f" {SHARED_MACHINE.format(load=sitting['shared'])}" if sitting["shared"] else ""
    absent = "".join(f" No {kind}: {reason}." for kind, reason in sorted(sitting["missing"].items()))
    return said + absent


def ratio_words(sitting: Mapping[str, Any], name: str) -> str:
    """A network's ratios in one phrase: ``latency of one image 0.52 ± 0.01, throughput …``."""
    figures = sitting["networks"][name]
    return ", ".join(
        f"{label} {with_spread(figures[key], figures.get(f'{key}_spread'), '{:.3g}')}"
        for key, label in ((f"{kind}_ratio", label) for kind, label in KINDS.items())
        if key in figures
    )


def with_spread(value: float, spread: float | None, form: str) -> str:
    """``0.52 ± 0.01``; what has no spread, or none that counts, alone."""
    return form.format(value) + (f" ± {form.format(spread)}" if spread else "")
