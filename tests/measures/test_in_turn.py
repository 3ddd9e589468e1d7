"""Ratios of networks that are measured in turn: what the machine does meanwhile is in none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kd_mlflow.measures.gpu import Gpu, GpuSample
from kd_mlflow.measures.in_turn import ROUNDS, Sitting, measure_in_turn
from kd_mlflow.measures.rapl import Rapl, open_rapl
from kd_mlflow.measures.resources import NO_GPU

CPU = torch.device("cpu")


class Clock:
    """A clock that only work moves on, and a machine that gets slower by ``drift`` a second."""

    def __init__(self, drift: float = 0.0, spike_every: int = 0) -> None:
        self.now, self.drift, self.spike_every, self.runs = 0.0, drift, spike_every, 0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.runs += 1
        spiked = self.spike_every and self.runs % self.spike_every == 0
        self.now += seconds * (1 + self.drift * self.now) * (10 if spiked else 1)


class Timed(nn.Module):
    """A network that takes its seconds an image."""

    def __init__(self, clock: Clock, seconds: float, weights: int = 100, holds: int | None = None) -> None:
        super().__init__()
        self.clock, self.seconds, self.holds = clock, seconds, holds
        self.weights = nn.Parameter(torch.zeros(weights))

    def forward(self, images: Tensor) -> Tensor:
        if self.holds is not None and len(images) > self.holds:
            raise torch.OutOfMemoryError("no room")
        self.clock.work(self.seconds * len(images))
        return images.float().mean(dim=(1, 2, 3))


def sit(clock: Clock, *seconds: float, **options) -> Sitting:
    names = ("teacher", "control", "student")
    networks = {name: Timed(clock, cost) for name, cost in zip(names, seconds, strict=False)}
    return measure_in_turn(networks, image_size=4, device=CPU, clock=clock, meter="no meter", **options)


@pytest.mark.parametrize("drift", [-0.02, 0.0, 0.02, 0.1])
def test_identical_networks_have_the_ratio_one_on_a_machine_that_slows_down(drift: float):
    sitting = sit(Clock(drift), 0.002, 0.002, 0.002)
    student, teacher = sitting.networks["student"], sitting.networks["teacher"]
    for kind in ("latency", "throughput"):
        assert student[f"{kind}_ratio"] == pytest.approx(1, rel=2e-3)
        assert student[f"{kind}_ratio_spread"] < 5e-3
        assert (teacher[f"{kind}_ratio"], teacher[f"{kind}_ratio_spread"]) == (1, 0)
    if drift > 0.01:  # one after the other, the same networks would differ by far more than their ratio tells
        assert teacher["latency_ms_spread"] > 5 * 2e-3 * teacher["latency_ms"]


@pytest.mark.parametrize("drift", [0.0, 0.05])
def test_ratios_are_those_of_the_costs(drift: float):
    sitting = sit(Clock(drift), 0.004, 0.002, 0.001)
    assert sitting.networks["student"]["latency_ratio"] == pytest.approx(0.25, rel=5e-3)
    assert sitting.networks["student"]["throughput_ratio"] == pytest.approx(4, rel=5e-3)
    assert sitting.networks["control"]["latency_ratio"] == pytest.approx(0.5, rel=5e-3)
    if not drift:
        assert sitting.networks["student"]["latency_ms"] == pytest.approx(1.0)
        assert sitting.networks["student"]["throughput_images_per_s"] == pytest.approx(1000)


def test_runs_that_something_else_interrupts_do_not_move_the_ratio():
    assert sit(Clock(spike_every=17), 0.002, 0.002).networks["control"]["latency_ratio"] == pytest.approx(1, rel=0.01)


def test_large_networks_are_measured_in_fewer_rounds_and_smaller_batches_within_the_time():
    quick, slow = Clock(), Clock()
    assert sit(quick, 1e-5, 1e-5).rounds == ROUNDS[1]
    assert quick.now < 1
    sitting = sit(slow, 0.4, 0.2, 0.2, seconds=8)
    assert sitting.rounds < ROUNDS[1]
    assert sitting.batch_size == 1
    assert slow.now < 4 * 8


def test_batch_that_memory_does_not_hold_is_halved_and_none_at_all_is_a_reason():
    clock = Clock()
    networks = {"teacher": Timed(clock, 1e-4, holds=6), "student": Timed(clock, 1e-4)}
    sitting = measure_in_turn(networks, image_size=4, device=CPU, clock=clock, meter="no meter")
    assert sitting.batch_size == 4
    with pytest.raises(torch.OutOfMemoryError):
        measure_in_turn({"teacher": Timed(clock, 1e-4, holds=0)}, image_size=4, device=CPU, clock=clock, meter="")


def test_size_and_memory_are_counted_and_named_after_the_reference():
    clock = Clock()
    networks = {"teacher": Timed(clock, 1e-4, weights=3 * 2**18), "student": Timed(clock, 1e-4, weights=2**18)}
    sitting = measure_in_turn(networks, image_size=4, device=CPU, clock=clock, meter="no meter", batch_size=8)
    assert sitting.networks["student"]["size_mib"] == 1
    # Weights, then eight images of 3 x 4 x 4 as bytes and as floats, and their eight means beside them.
    live = (8 * 3 * 4 * 4 * (1 + 4) + 8 * 4) / 2**20
    assert sitting.networks["student"]["memory_mib"] == pytest.approx(1 + live)
    ratios = sitting.ratios("student")
    assert ratios["size_ratio_to_teacher"] == pytest.approx(1 / 3)
    assert ratios["memory_ratio_to_teacher"] == pytest.approx((1 + live) / (3 + live))
    assert set(ratios) == {
        "latency_ratio_to_teacher", "latency_ratio_to_teacher_spread",
        "throughput_ratio_to_teacher", "throughput_ratio_to_teacher_spread",
        "memory_ratio_to_teacher", "size_ratio_to_teacher",
    }  # fmt: skip


def test_memory_of_a_pass_is_the_most_that_lives_at_a_time():
    class Chain(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            first = images.float()
            second = first * 2
            del first
            return second.relu_().flatten(1).sum(dim=1)

    sitting = measure_in_turn({"a": Chain(), "b": Chain()}, image_size=10, device=CPU, batch_size=4)
    # The bytes of the images, and two of their three copies as floats.
    assert sitting.networks["a"]["memory_mib"] == (1 + 4 + 4) * (4 * 3 * 10 * 10) / 2**20


def test_networks_come_back_as_they_were():
    clock = Clock()
    networks = {"teacher": Timed(clock, 1e-4).eval(), "student": Timed(clock, 1e-4).train()}
    measure_in_turn(networks, image_size=4, device=CPU, clock=clock, meter="no meter")
    assert not networks["teacher"].training
    assert networks["student"].training


def test_energy_is_measured_in_turn_where_there_is_a_counter_and_else_has_its_reason():
    clock = Clock()

    class Counter(Gpu):
        def __init__(self) -> None:
            pass

        def sample(self) -> GpuSample:
            return GpuSample(None, None, clock.now * 50)  # 50 W

    networks = {"teacher": Timed(clock, 0.002), "student": Timed(clock, 0.001)}
    sitting = measure_in_turn(networks, image_size=4, device=CPU, clock=clock, meter=Counter())
    assert sitting.networks["student"]["joules_per_image"] == pytest.approx(0.05)
    assert sitting.networks["student"]["energy_ratio"] == pytest.approx(0.5)
    assert "energy" not in sitting.missing
    assert sit(Clock(), 0.001, 0.001).missing == {"energy": "no meter"}


def package(root: Path, name: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    return folder


def test_processor_energy_is_that_of_all_packages_also_when_a_counter_begins_anew(tmp_path: Path):
    package(tmp_path, "intel-rapl:0", 999_000_000)
    package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 7)  # the cores, which are part of the package
    found = open_rapl(tmp_path)
    assert isinstance(found, Rapl)
    assert found.sample().joules == 0
    package(tmp_path, "intel-rapl:0", 2_000_000)
    package(tmp_path, "intel-rapl:1", 6_500_000)
    assert found.sample().joules == pytest.approx(3 + 1.5)


@pytest.mark.fault("a processor's energy counter is missing or for root alone", "energy is absent with the reason")
def test_processor_without_a_counter_to_read_gives_the_reason(tmp_path: Path):
    assert open_rapl(tmp_path) == ""
    (package(tmp_path, "intel-rapl:0", 1) / "energy_uj").unlink()
    assert "only root" in open_rapl(tmp_path)
    assert "NVIDIA" in NO_GPU
    assert "RAPL" in NO_GPU
