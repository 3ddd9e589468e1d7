"""Watching for other work on the machine while something is timed, and noting it where the figures are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kd_mlflow.entrypoints.session import Session
from kd_mlflow.measures.gpu import Gpu
from kd_mlflow.measures.load import LoadMeter, MachineLoad, together
from kd_mlflow.measures.resources import open_meter
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.checkpoint import EpochRow
from kd_mlflow.training.observer import Silent

TAG = "kd.machine_load"
TRAINING, INFERENCE, IN_TURN = "training", "inference", "in_turn"
DURING = {
    TRAINING: "while the network was trained",
    INFERENCE: "while latency was measured",
    IN_TURN: "while the networks were measured in turn",
}


# Looking takes some milliseconds.
SECONDS_BETWEEN_LOOKS = 2.0


class LoadWatch(Silent):
    """Looks at the machine once an epoch of a training; an epoch that is too short goes with the next."""

    def __init__(self, session: Session, writer: RunWriter, processes: int) -> None:
        self.session, self.writer = session, writer
        self.meter = _meter(session, processes)
        self.loads: list[MachineLoad] = []
        self.done = 0

    def on_start(self, epochs: int, done: int) -> None:
        self.done = done

    def on_epoch(self, row: EpochRow) -> None:
        if row.epoch > self.done and (load := self.meter.look(SECONDS_BETWEEN_LOOKS)) is not None:
            self.loads.append(load)
            figures = {"machine/load": load.load, "machine/other_cores": load.other_cores}
            self.writer.metrics(figures, row.epoch, row.timestamp_ms)

    def note(self) -> None:
        """The whole training into the run."""
        last = self.meter.look()
        note(self.session, self.writer, TRAINING, together([*self.loads, *([last] if last else [])]))


@contextmanager
def watched(session: Session, writer: RunWriter, part: str) -> Iterator[list[MachineLoad]]:
    """Look at the machine while the block measures, and note it; the list holds what was seen once it is over."""
    meter, seen = _meter(session), []
    yield seen
    load = meter.look()
    seen += [load] if load else []
    note(session, writer, part, load)


def note(session: Session, writer: RunWriter, part: str, load: MachineLoad | None) -> None:
    """The load into the run; of a shared machine a tag, and a warning once a command."""
    if load is None:
        return
    figures = {f"{part}_machine_load": load.load, f"{part}_other_cores": load.other_cores, "cores": load.cores}
    writer.final_metrics({f"efficiency/{name}": value for name, value in figures.items()})
    if load.shared:
        writer.tags({TAG: str(load), f"{TAG}.{part}": str(load)})
        session.terminal.warn_once(
            "shared machine",
            f"The machine is shared: {load} {DURING[part]}. Latency, energy and seconds of this run are worth less for "
            "it and are marked with *; the ratios that are measured in turn suffer least.",
        )


def _meter(session: Session, processes: int = 1) -> LoadMeter:
    meter = open_meter(session.device) if session.device.type == "cuda" else None
    return LoadMeter(session.device, gpu=meter if isinstance(meter, Gpu) else None, processes=processes)
