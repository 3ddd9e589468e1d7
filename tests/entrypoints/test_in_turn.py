"""What a distillation says of cost: ratios measured in turn, and marks where other work shared the machine."""

from __future__ import annotations

import csv
import io
import json

import pytest
from rich.console import Console

from kd_mlflow.config import DistillConfig, resolve
from kd_mlflow.entrypoints import in_turn, machine, show
from kd_mlflow.entrypoints.distill import distill
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.errors import InputError
from kd_mlflow.measures.load import MachineLoad
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.runs import download, read_json, read_run
from tests.conftest import TINY

KINDS = ("latency", "throughput", "memory", "size")


class Crowded:
    """A meter on a machine that others use."""

    def look(self, shortest: float = 0.0) -> MachineLoad:
        return MachineLoad(3.14, 2, 1.9, 0, True, 1.0)


@pytest.fixture
def config(place, photos, monkeypatch):
    monkeypatch.setenv("KD_MLFLOW_HOME", str(place.home))
    options = {"teacher_arch": TINY, "student": TINY, "image_size": 32, "batch_size": 8, "epochs": 1}

    def make(**given) -> DistillConfig:
        given = {"data": str(photos), "tracking_uri": place.uri, "register_model": False, **options, **given}
        return resolve(DistillConfig, given)

    return make


def printed(result) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(show.comparison(json.loads(json.dumps(result.to_json()))))
    return capture.get()


def test_ratios_and_a_shared_machine_are_told_on_the_terminal_in_the_report_and_in_the_run(
    place, config, monkeypatch, capsys
):
    monkeypatch.setattr(machine, "_meter", lambda session, processes=1: Crowded())
    result = distill(config(), terminal=Terminal())
    client = connect(place.uri)
    run = read_run(client, result.run_id)
    sitting = result.efficiency_in_turn
    assert list(sitting["networks"]) == ["teacher", "control", "student"]
    assert read_json(client, result.run_id, "efficiency_in_turn.json") == sitting
    for kind in KINDS:
        ratio = sitting["networks"]["student"][f"{kind}_ratio"]
        assert (
            run.metrics[f"efficiency/{kind}_ratio_to_teacher"]
            == ratio
            == result.student["efficiency"][f"{kind}_ratio_to_teacher"]
        )
    assert run.metrics["efficiency/latency_ratio_to_teacher_spread"] >= 0
    assert run.metrics["efficiency/size_ratio_to_teacher"] == 1  # all three are one architecture
    assert "energy" in sitting["missing"]
    told = " ".join(printed(result).split())
    report = download(client, result.run_id, "report.html", place.path).read_text()
    table = download(client, result.run_id, "tables/efficiency.csv", place.path).read_text()
    assert "latency ratio to the teacher" in told
    for text in (report, table):
        assert "latency of one image, ratio to the teacher" in text
    for text in (told, report):
        assert "measured in turn, " in text
        assert f"{sitting['threads']} thread" in text
        assert "Measured on a shared machine (load 3.1 on 2 cores)" in text
    rows = {line[0]: line[1:] for line in csv.reader(io.StringIO(table))}
    assert all(cell.endswith(" *") for name in ("training, s", "throughput, images/s") for cell in rows[name])
    assert not any(
        "*" in cell for name in ("parameters", "size of the weights, ratio to the teacher") for cell in rows[name]
    )
    assert run.tags["kd.machine_load"] == run.tags["kd.machine_load.in_turn"] == "load 3.1 on 2 cores"
    assert run.metrics["efficiency/training_machine_load"] == pytest.approx(3.14)
    assert run.metrics["machine/other_cores"] == pytest.approx(1.9)
    assert capsys.readouterr().err.count("The machine is shared: load 3.1 on 2 cores") == 1


@pytest.mark.fault("the files of a control are gone", "it is left out of the measurement, with a warning")
def test_method_without_teacher_is_told_against_the_control_and_alone_if_that_is_gone(config, monkeypatch, capsys):
    result = distill(config(method="dml"), terminal=Terminal())
    assert result.efficiency_in_turn["reference"] == "control"
    assert result.student["efficiency"]["size_ratio_to_control"] == 1
    assert "latency ratio to the control" in printed(result)

    def gone(client, run_id):
        raise InputError("The store does not hold the model.")

    monkeypatch.setattr(in_turn, "network_of_run", gone)
    capsys.readouterr()
    result = distill(config(method="dml", seed=1, epochs=1), terminal=Terminal())
    assert result.efficiency_in_turn is None
    assert "cannot be measured beside the others: The store does not hold" in capsys.readouterr().err
    assert "ratio to" not in printed(result)
