"""The curves of a training, on their way into its run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.tracking.spool import Spool
from kd_mlflow.training.checkpoint import EpochRow
from kd_mlflow.training.observer import Silent

# How long a training that is over waits for the store to take its curves; and one that is cut off.
PATIENCE_SECONDS, ENDING_SECONDS = 900.0, 10.0


class Recorder(Silent):
    """Writes every epoch to the run."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool

    def on_epoch(self, row: EpochRow) -> None:
        self.spool.metrics(row.metrics, row.epoch, row.timestamp_ms)


@contextmanager
def recording(writer: RunWriter, folder: Path) -> Iterator[Recorder]:
    """What writes the epochs; at the end all of them are in the store.

    Raises
    ------
    KdMlflowError
        The store stayed away for a quarter of an hour after the last epoch; nothing is lost.
    """
    spool = Spool(writer.client, writer.run_id, folder)
    try:
        yield Recorder(spool)
    except BaseException:
        spool.close(ENDING_SECONDS)
        raise
    if not spool.close(PATIENCE_SECONDS):
        raise KdMlflowError(
            f"The tracking store has been away for {PATIENCE_SECONDS / 60:.0f} minutes ({spool.error}). The network is "
            "trained and its curves are kept on disk: --resume goes on from there."
        )
