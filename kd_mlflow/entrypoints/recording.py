"""The curves of a training, on their way into its run."""

from __future__ import annotations

from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.checkpoint import EpochRow
from kd_mlflow.training.observer import Silent


class Recorder(Silent):
    """Writes every epoch to the run."""

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer

    def on_epoch(self, row: EpochRow) -> None:
        self.writer.metrics(row.metrics, row.epoch, row.timestamp_ms)
