"""Power, energy and memory, with a stand-in for NVML: the one thing a machine without a GPU lacks."""

from __future__ import annotations

import mmap
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from kd_mlflow.measures.gpu import Gpu, GpuSample, open_gpu
from kd_mlflow.measures.resources import MIB, NO_GPU, SILENT, GpuTotals, ResourceMeter

CPU = torch.device("cpu")


class FakeNvml:
    """A machine with three cards, in NVML's words; energy runs at 100 W by the clock."""

    class NVMLError(Exception):
        pass

    uuids = ("GPU-aaaa-1111", "GPU-bbbb-2222", "GPU-bbcc-3333")

    def __init__(self, driver: bool = True, energy: bool = True, power: bool = True) -> None:
        self.driver, self.energy, self.power = driver, energy, power

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        if number >= len(self.uuids):
            raise self.NVMLError("Invalid Argument")
        return number

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return self.uuids[handle].encode()

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if not uuid.startswith("MIG-"):
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if not self.power:
            raise self.NVMLError("Not Supported")
        return 100_000

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> SimpleNamespace:
        return SimpleNamespace(gpu=80, memory=10)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> float:
        if not self.energy:
            raise self.NVMLError("Not Supported")
        return time.monotonic() * 100_000


def handle_of(index: int, visible: str, uuid: str | None = None) -> object:
    found = open_gpu(index, FakeNvml(), visible, uuid)
    assert isinstance(found, Gpu), found
    return found.handle


@pytest.mark.parametrize(
    ("visible", "index", "handle"),
    [
        ("", 1, 1),
        ("2,0", 0, 2),
        ("2,0", 1, 0),
        ("GPU-bbcc-3333,GPU-aaaa-1111", 0, 2),
        ("GPU-bbcc-3333, GPU-aaaa-1111", 1, 0),
        ("GPU-bbc", 0, 2),
        ("MIG-7f00", 0, "MIG-7f00"),
    ],
)
def test_visible_devices_are_mapped_to_the_cards_that_pytorch_means(visible, index, handle):
    assert handle_of(index, visible) == handle


def test_visible_devices_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = open_gpu(0, FakeNvml())
    assert isinstance(found, Gpu)
    assert found.handle == 1


def test_uuid_goes_before_the_number_because_cuda_may_number_the_fastest_first():
    assert handle_of(0, "", uuid="bbbb-2222") == 1
    assert handle_of(0, "2,0", uuid="GPU-aaaa-1111") == 0


def test_unknown_uuid_falls_back_to_the_visible_number():
    assert handle_of(1, "2,0", uuid="ffff") == 0


def test_card_that_is_not_there_is_a_reason_not_an_error():
    assert open_gpu(0, FakeNvml(), "7") == "NVML: Invalid Argument"
    assert open_gpu(0, FakeNvml(), "GPU-ffff") == "NVML: Not Found"


def test_missing_driver_is_a_reason_and_the_meter_works_without_it():
    reason = open_gpu(0, FakeNvml(driver=False))
    assert reason == "NVML: Driver Not Loaded"
    with ResourceMeter(CPU, reason) as meter:
        pass
    usage = meter.usage(images=10)
    assert set(usage.missing.values()) == {reason}
    assert set(usage.metrics) == {"peak_memory_mib"}


def test_cpu_has_memory_and_a_reason_for_every_other_figure():
    with ResourceMeter(CPU) as meter:
        pass
    usage = meter.usage(images=10)
    assert usage.metrics["peak_memory_mib"] > 50
    assert usage.missing == dict.fromkeys(
        ("gpu_utilisation_mean", "power_w_mean", "energy_j", "joules_per_image"), NO_GPU
    )


def test_peak_holds_memory_that_was_given_back_before_the_end():
    # From the system itself: a tensor may get what others gave back.
    with ResourceMeter(CPU) as meter, mmap.mmap(-1, 256 * MIB) as block:
        for _ in range(256):
            block.write(bytes(MIB))
        time.sleep(0.5)
        block.close()
        after = psutil.Process().memory_info().rss / MIB
    assert meter.usage(1).metrics["peak_memory_mib"] - after > 128  # other tests' memory may move meanwhile


@pytest.mark.parametrize("energy", [True, False], ids=["counter", "integral"])
def test_energy_by_counter_and_by_integral_is_power_times_time(energy: bool):
    with ResourceMeter(CPU, Gpu(FakeNvml(energy=energy), 0)) as meter:
        time.sleep(0.5)
    usage = meter.usage(images=25)
    assert usage.missing == {}
    assert usage.metrics["power_w_mean"] == pytest.approx(100, rel=0.01)
    assert usage.metrics["energy_j"] >= 50
    assert usage.metrics["joules_per_image"] == pytest.approx(usage.metrics["energy_j"] / 25)
    assert usage.metrics["gpu_utilisation_mean"] == 80


def test_card_without_power_and_energy_says_so():
    with ResourceMeter(CPU, Gpu(FakeNvml(energy=False, power=False), 0)) as meter:
        pass
    usage = meter.usage(images=25)
    assert set(usage.metrics) == {"peak_memory_mib", "gpu_utilisation_mean"}
    assert usage.missing == dict.fromkeys(("power_w_mean", "energy_j", "joules_per_image"), SILENT)


def test_no_image_gives_no_energy_an_image():
    with ResourceMeter(CPU, Gpu(FakeNvml(), 0)) as meter:
        time.sleep(0.01)
    usage = meter.usage(images=0)
    assert "joules_per_image" in usage.missing
    assert usage.metrics["energy_j"] > 0


def totals_of(*samples: tuple[float, GpuSample]) -> GpuTotals:
    totals = GpuTotals()
    for moment, sample in samples:
        totals.add(moment, sample)
    return totals


def test_integral_of_power_is_by_trapezoids_over_the_samples_that_have_it():
    totals = totals_of(
        (10.0, GpuSample(100.0, 50.0, None)),
        (11.0, GpuSample(200.0, 70.0, None)),
        (12.0, GpuSample(None, None, None)),
        (13.0, GpuSample(300.0, 90.0, None)),
    )
    assert totals.joules == 150 + 2 * 250
    assert totals.busy == 70
    assert totals.seconds == 3


def test_counter_goes_before_the_integral():
    totals = totals_of((0.0, GpuSample(100.0, None, 5000.0)), (2.0, GpuSample(100.0, None, 5260.0)))
    assert totals.joules == 260


def test_counter_that_stands_still_is_not_believed():
    totals = totals_of((0.0, GpuSample(100.0, None, 5000.0)), (2.0, GpuSample(100.0, None, 5000.0)))
    assert totals.joules == 200


def test_one_sample_gives_no_energy():
    assert totals_of((0.0, GpuSample(100.0, None, None))).joules is None


def test_error_in_the_block_passes_through_and_ends_the_thread():
    meter = ResourceMeter(CPU)
    with pytest.raises(ValueError, match="boom"), meter:
        raise ValueError("boom")
    assert not meter._thread.is_alive()
