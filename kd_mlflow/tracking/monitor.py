"""What the machine does while a run goes on: MLflow's own figures, on the way that all figures go."""

from __future__ import annotations

import time

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from kd_mlflow.errors import KdMlflowError
from kd_mlflow.tracking.spool import Spool

SECONDS = 2.0


class Monitor(SystemMetricsMonitor):
    """Processor, memory, disk, network and GPU as metrics ``system/…``, whatever becomes of the store."""

    def __init__(self, run_id: str, tracking_uri: str, spool: Spool) -> None:
        super().__init__(run_id, sampling_interval=SECONDS, resume_logging=True, tracking_uri=tracking_uri)
        self.spool = spool

    def monitor(self) -> None:
        """A point of every figure, until the end."""
        while not self._shutdown_event.is_set():
            self.collect_metrics()
            self._shutdown_event.wait(self.sampling_interval)
            values = {f"{self._metrics_prefix}{name}": value for name, value in self.aggregate_metrics().items()}
            try:
                self.spool.metrics(values, self._logging_step, time.time_ns() // 1_000_000)
            except KdMlflowError:  # whoever writes what matters says it
                return
            self._logging_step += 1
            for one in self.monitors:
                one.clear_metrics()
