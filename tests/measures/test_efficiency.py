"""What a network costs: counted figures are exact, timed ones are there and sensible."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet34

from kd_mlflow.measures.efficiency import measure

CPU = torch.device("cpu")
QUICK = {"device": CPU, "batch_size": 4, "seconds": 0.05}


class Pixels(nn.Module):
    """Takes uint8 images, as every network of the project does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float() / 255)


def small() -> nn.Module:
    return Pixels(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 10)))


@pytest.mark.parametrize(
    ("build", "parameters", "mib", "with_buffers", "convolutions"),
    [
        (resnet18, 11_689_512, 44.5919, 44.6287, 1_813_561_344),
        (resnet34, 21_797_672, 83.1515, 83.2167, 3_663_249_408),
    ],
)
def test_counts_of_known_networks(build, parameters, mib, with_buffers, convolutions):
    metrics = measure(Pixels(build()), image_size=32, **QUICK).metrics
    assert metrics["parameters_total"] == metrics["parameters_trainable"] == parameters
    assert metrics["parameters_mib"] == pytest.approx(mib, abs=5e-5)
    assert metrics["parameters_mib"] + metrics["buffers_mib"] == pytest.approx(with_buffers, abs=5e-5)
    # The published multiply-adds are those at 224 px; every map is a seventh as wide and high at 32 px.
    assert metrics["flops"] == 2 * (convolutions / 49 + 512 * 1000)


def test_step_counters_of_batch_normalisation_are_buffers():
    # Mean and variance of four channels as float32, one int64 counter.
    metrics = measure(small(), image_size=8, **QUICK).metrics
    assert metrics["buffers_total"] == 4 + 4 + 1
    assert metrics["buffers_mib"] == pytest.approx((8 * 4 + 8) / 2**20)


def test_flops_are_two_a_multiply_add_of_one_image():
    metrics = measure(small(), image_size=8, **QUICK).metrics
    assert metrics["flops"] == 2 * (4 * 3 * 9 * 64) + 2 * 256 * 10


def test_frozen_parameters_are_not_trainable():
    model = small()
    model.network[0].requires_grad_(False)
    metrics = measure(model, image_size=8, **QUICK).metrics
    assert metrics["parameters_total"] - metrics["parameters_trainable"] == 4 * 3 * 9 + 4


def test_times_and_memory_are_positive_and_in_order():
    metrics = measure(small(), image_size=8, **QUICK).metrics
    assert 0 < metrics["latency_ms_b1_median"] <= metrics["latency_ms_b1_p95"]
    assert metrics["throughput_images_per_s"] > 0
    assert metrics["throughput_batch_size"] == 4
    assert metrics["inference_peak_memory_mib"] > 50  # the resident set of a process that holds PyTorch


def test_energy_on_a_cpu_is_absent_with_a_reason_and_never_zero():
    found = measure(small(), image_size=8, **QUICK)
    for name in ("inference_power_w", "inference_joules_per_image"):
        assert name not in found.metrics
        assert "CPU" in found.missing[name]


def test_weights_file_is_given_in_mebibytes(tmp_path: Path):
    file = tmp_path / "weights"
    file.write_bytes(b"0" * 3 * 2**19)
    assert measure(small(), image_size=8, file=file, **QUICK).metrics["file_mib"] == 1.5
    assert "file_mib" not in measure(small(), image_size=8, **QUICK).metrics


@pytest.mark.parametrize("training", [True, False])
def test_model_keeps_its_mode_and_its_statistics(training: bool):
    model = small().train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure(model, image_size=8, **QUICK)
    assert model.training is training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Cramped(Pixels):
    """A network on a device whose memory holds six images."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 6:
            raise torch.OutOfMemoryError("no room")
        return super().forward(images)


def test_batch_that_memory_does_not_hold_is_halved_until_it_fits():
    model = Cramped(small().network)
    metrics = measure(model, image_size=8, device=CPU, batch_size=64, seconds=0.05).metrics
    assert metrics["throughput_batch_size"] == 4
    assert metrics["throughput_images_per_s"] > 0
