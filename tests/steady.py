"""A process that trains one small student after the other, for the soak; says after each what it holds."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import signal
import sys
import time

import psutil

from kd_mlflow.config import StudentConfig
from kd_mlflow.entrypoints.train import train_student
from tests.conftest import TINY


def main(photos: str, seeds: int, epochs: int) -> None:
    """Until SIGTERM; a training that a fault ends is taken up again."""
    over: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: over.append(number))
    own = psutil.Process()
    for number in itertools.count():
        config = StudentConfig(
            data=photos, student=TINY, image_size=32, batch_size=8, epochs=epochs, seed=number % seeds
        )
        resume = None
        while not over:
            try:
                train_student(config, resume=resume)
                break
            except Exception:
                logging.exception("A training was ended by a fault; it is taken up again")
                resume = "newest"
                time.sleep(1)
        if over:
            return
        gc.collect()
        found = {"handles": own.num_fds(), "threads": own.num_threads(), "rss_mib": own.memory_info().rss / 2**20}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
