"""What a person waits for before anything happens."""

from __future__ import annotations

import subprocess
import sys

import click

from benchmarks.timing import Contender, machine, spread, take_turns, tell

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import kd_mlflow": ["-c", "import kd_mlflow"],
    "kd-mlflow --help": ["-m", "kd_mlflow", "--help"],
    "import torch": ["-c", "import torch"],
    "import mlflow": ["-c", "import mlflow"],
}


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", is_flag=True)
def startup(rounds: int, as_json: bool, markdown: bool) -> None:
    """Seconds until `kd-mlflow --help` has ended and `import kd_mlflow` is done."""
    seconds = take_turns({name: _process(arguments) for name, arguments in COMMANDS.items()}, 1, rounds)
    found = spread(seconds)
    bare = found["python -c pass"]["seconds"]
    result = {
        "machine": machine(),
        "setting": f"A process each, median of {rounds} turns; the ratios are seconds beyond an empty process.",
        "contenders": found,
        "ratios": {name: found[name]["seconds"] - bare for name in ("import kd_mlflow", "kd-mlflow --help")},
    }
    tell("Start", result, as_json, markdown)


def _process(arguments: list[str]) -> Contender:
    import time

    def run(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        return time.perf_counter() - started

    return run
