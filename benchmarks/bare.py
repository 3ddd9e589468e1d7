"""Trainings of the loop alone, one a line on stdin: `python -m benchmarks.bare OPTION…`, for benchmarks.search."""

from __future__ import annotations

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
    """Say when it is ready, then the seconds of each training."""
    options = sys.argv[1:]
    given = {name.lstrip("-").replace("-", "_"): value for name, value in zip(options[::2], options[1::2], strict=True)}
    config = with_resolved_method(resolve(DistillConfig, given))
    session = Session.open(config, Terminal(quiet=True))
    models = [teacher.network.model for teacher in find_teachers(session, config, resume=None)]
    plan = student_recipe(config, session)
    print("ready", flush=True)
    for _ in sys.stdin:
        with TemporaryDirectory() as folder:
            started = time.perf_counter()
            task = training_task(session, plan, build_network(session, plan), models)
            fit(task, CheckpointFolder(Path(folder)), Silent())
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
