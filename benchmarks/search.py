"""What a search costs beside its trainings: `python -m benchmarks.search`.

Runs a search of equal trials as a person would, then trains the very same networks bare: the same loop and
checkpoints, without Optuna, MLflow, or the start of a process. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6, help="Such that a trial trains for about 30 seconds.")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--teacher-arch", default="resnet18")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db", "KD_MLFLOW_HOME": str(place / "home")}
        os.environ["KD_MLFLOW_STORAGE"] = f"sqlite:///{place}/optuna.db"
        print(json.dumps(measure(options, place), indent=2))


def measure(options: argparse.Namespace, place: Path) -> dict[str, float]:
    """Seconds of the search, of the bare trainings, and how much more the one is than the other."""
    common = ["--data", options.data, "--image-size", str(options.image_size), "--epochs", str(options.epochs)]
    common += ["--teacher-arch", options.teacher_arch]
    command([*common], "teacher", place)
    more = ["--student", options.student, "--trials", str(options.trials), "--final-seeds", "0", "--pruner", "none"]
    seconds = command([*common, *more, "--sampler", "tpe", "--study", "measured"], "search", place)
    bare = bare_seconds()
    return {
        "trials": options.trials,
        "seconds_a_trial": bare / options.trials,
        "search_seconds": seconds,
        "bare_seconds": bare,
        "overhead": seconds / bare - 1,
    }


def command(arguments: list[str], name: str, place: Path) -> float:
    """The seconds of a whole command, from the start of its process to its end."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "kd_mlflow", name, *arguments], check=True, cwd=place, env=os.environ, stdout=sys.stderr
    )
    return time.perf_counter() - started


def bare_seconds() -> float:
    """Seconds of the trainings of the study's trials, each with its own values."""
    from kd_mlflow.entrypoints.network import build_network, training_task
    from kd_mlflow.entrypoints.recipes import student_recipe, with_resolved_method
    from kd_mlflow.entrypoints.session import Session
    from kd_mlflow.entrypoints.teachers import find_teachers
    from kd_mlflow.entrypoints.terminal import Terminal
    from kd_mlflow.search.study import TEACHER, SearchStudy
    from kd_mlflow.training.checkpoint import CheckpointFolder
    from kd_mlflow.training.loop import fit
    from kd_mlflow.training.observer import Silent

    study = SearchStudy.load(os.environ["KD_MLFLOW_STORAGE"], "measured")
    config = study.config.model_copy(update={"tracking_uri": ""})
    session = Session.open(config, Terminal(quiet=True))
    teachers = find_teachers(session, config.trial({}, 0), resume=None, fixed=study.noted(TEACHER))
    total = 0.0
    for trial in study.ledger().complete:
        cell = with_resolved_method(config.trial(trial.user_attrs["values"], config.seed))
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            models = [teacher.network.model for teacher in teachers]
            plan = student_recipe(cell, session)
            task = training_task(session, plan, build_network(session, plan), models)
            fit(task, CheckpointFolder(Path(folder)), Silent())
            total += time.perf_counter() - started
    return total


if __name__ == "__main__":
    main()
