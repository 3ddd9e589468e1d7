"""Contenders that take turns, the machine they ran on, and how their figures are told."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import click
import psutil
import torch

# Does so many steps and gives back the seconds that they took.
Contender = Callable[[int], float]


def take_turns(contenders: Mapping[str, Contender], steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each contender in each round (A B C A B C …), after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            taken = run(steps) / steps
            if number:
                seconds[name].append(taken)
    return seconds


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of some work, on a GPU by its own events."""
    if device.type != "cuda":
        started = time.perf_counter()
        work()
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    work()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1000


def rates(seconds: Mapping[str, list[float]], amount: float, unit: str) -> dict[str, dict[str, float]]:
    """Amount a second of each contender: median, lowest, highest."""
    return {
        name: {
            unit: amount / statistics.median(taken),
            "low": amount / max(taken),
            "high": amount / min(taken),
        }
        for name, taken in seconds.items()
    }


def spread(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, float]]:
    """Seconds of each contender: median, lowest, highest."""
    return {
        name: {"seconds": statistics.median(taken), "low": min(taken), "high": max(taken)}
        for name, taken in seconds.items()
    }


def ratio_of_turns(seconds: Mapping[str, list[float]], faster: str, slower: str) -> float:
    """How many times as fast the one is as the other: the median over rounds, each of which saw both."""
    return statistics.median(b / a for a, b in zip(seconds[faster], seconds[slower], strict=True))


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What the figures hold for."""
    name = ""
    if device is not None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "threads": torch.get_num_threads(),
        "gpu": name,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def tell(title: str, result: dict[str, Any], as_json: bool, as_markdown: bool) -> None:
    """Print a result: one JSON object, a section of docs/performance.md, or lines for people."""
    if as_json:
        click.echo(json.dumps(result))
    elif as_markdown:
        click.echo("\n".join(markdown(title, result)))
    else:
        for name, figures in result["contenders"].items():
            click.echo(f"{name:26} " + "  ".join(f"{unit} {plain(value)}" for unit, value in figures.items()))
        for name, ratio in result["ratios"].items():
            click.echo(f"{name:40} {ratio:.3f}")


def markdown(title: str, result: dict[str, Any]) -> list[str]:
    """The result as a section with two tables and the machine under them."""
    columns = list(next(iter(result["contenders"].values())))
    lines = [f"## {title}", "", f"| contender | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, figures in result["contenders"].items():
        lines.append(f"| {name} | {' | '.join(plain(figures[column]) for column in columns)} |")
    lines += ["", "| ratio | value |", "|---|---|"]
    lines += [f"| {name} | {ratio:.3f} |" for name, ratio in result["ratios"].items()]
    told = result["machine"]
    where = told["gpu"] or f"{told['cores']} cores of {told['processor']}"
    return [
        *lines,
        "",
        f"{result.get('setting', '')} {where}, torch {told['torch']}, Python {told['python']}, {told['date']}.".strip(),
        "",
    ]


def plain(value: float) -> str:
    """Four significant digits, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
