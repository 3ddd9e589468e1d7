"""Trainings of the loop alone: `python -m benchmarks.bare TIMES OPTION…`, for benchmarks.search."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.entrypoints.network import build_network, training_task
from kd_mlflow.entrypoints.recipes import student_recipe, with_resolved_method
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.teachers import find_teachers
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.training.checkpoint import CheckpointFolder
from kd_mlflow.training.loop import fit
from kd_mlflow.training.observer import Silent


def main() -> None:
    """Print the seconds of each training as a JSON list."""
    times, options = int(sys.argv[1]), sys.argv[2:]
    given = {name.lstrip("-").replace("-", "_"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    config = with_resolved_method(resolve(DistillConfig, given))
    session = Session.open(config, Terminal(quiet=True))
    models = [teacher.network.model for teacher in find_teachers(session, config, resume=None)]
    plan = student_recipe(config, session)
    seconds = []
    for _ in range(times):
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            task = training_task(session, plan, build_network(session, plan), models)
            fit(task, CheckpointFolder(Path(folder)), Silent())
            seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
