"""What the first run shows, over seeds: teacher, control and student of a bare `kd-mlflow distill`."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from scipy.stats import t

from benchmarks.timing import machine

ROLES = ("teacher", "control", "student")


@click.command()
@click.option("--seeds", default="10-19", show_default=True, help="First and last seed.")
@click.option("--evidence", type=click.Path(dir_okay=False, path_type=Path), help="Keep each seed's figures in FILE.")
@click.option("--split", type=click.Choice(["val", "test"]), default="test", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def demonstration(seeds: str, evidence: Path | None, split: str, as_json: bool) -> None:
    """Accuracies of teacher, control and student, each seed trained whole in a home and a store of its own.

    Seeds whose figures EVIDENCE already holds are not trained again.
    """
    first, last = (int(part) for part in seeds.split("-"))
    known = json.loads(evidence.read_text()) if evidence and evidence.is_file() else {"machine": machine(), "seeds": {}}
    for seed in range(first, last + 1):
        if str(seed) not in known["seeds"]:
            known["seeds"][str(seed)] = trained(seed)
            if evidence:
                evidence.write_text(json.dumps(known, indent=1) + "\n")
    rows = {seed: known["seeds"][str(seed)] for seed in range(first, last + 1)}
    print(json.dumps(summary(rows, split)) if as_json else table(rows, split))


def trained(seed: int) -> dict[str, object]:
    """The figures of one seed: accuracies by role and split, and the seconds of the whole command."""
    with TemporaryDirectory() as place:
        environment = {
            **os.environ,
            "KD_MLFLOW_HOME": f"{place}/home",
            "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
        }
        command = [sys.executable, "-m", "kd_mlflow", "distill", "--seed", str(seed), "--json"]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, check=True)
        return figures(json.loads(done.stdout), time.perf_counter() - started)


def figures(result: dict, seconds: float) -> dict[str, object]:
    """What is kept of the JSON of `kd-mlflow distill`."""
    accuracies = {role: {split: result[role][split]["accuracy"] for split in ("val", "test")} for role in ROLES}
    return {**accuracies, "verdict": result["verdict"], "seconds": round(seconds, 1)}


def summary(rows: dict[int, dict], split: str) -> dict[str, object]:
    """Means, spreads, and the 95 % interval of the paired difference by Student's t over the seeds."""
    by_role = {role: [row[role][split] for row in rows.values()] for role in ROLES}
    gains = [student - control for student, control in zip(by_role["student"], by_role["control"], strict=True)]
    half = float(t.ppf(0.975, len(gains) - 1)) * statistics.stdev(gains) / math.sqrt(len(gains))
    mean = statistics.mean(gains)
    seconds = [row["seconds"] for row in rows.values() if "seconds" in row]
    return {
        "seeds": len(gains),
        "mean": {role: statistics.mean(values) for role, values in by_role.items()},
        "deviation": {role: statistics.stdev(values) for role, values in by_role.items()},
        "student_minus_control": {"mean": mean, "low": mean - half, "high": mean + half},
        "seconds_median": statistics.median(seconds) if seconds else None,
    }


def table(rows: dict[int, dict], split: str) -> str:
    """A row a seed and the summary, as Markdown."""
    lines = [f"| seed | {' | '.join(ROLES)} | student - control |", "|---|---|---|---|---|"]
    for seed, row in rows.items():
        values = [row[role][split] for role in ROLES]
        lines.append(f"| {seed} | {' | '.join(f'{value:.4f}' for value in values)} | {values[2] - values[1]:+.4f} |")
    told = summary(rows, split)
    gain = told["student_minus_control"]
    means = " | ".join(f"{told['mean'][role]:.4f} ± {told['deviation'][role]:.4f}" for role in ROLES)
    lines.append(f"| mean ± deviation | {means} | {gain['mean']:+.4f} ({gain['low']:+.4f} to {gain['high']:+.4f}) |")
    return "\n".join(lines)
