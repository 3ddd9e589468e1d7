"""Frozen networks in their fast forms: the same outputs as the plain network, or the plain network itself."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.inference import FastForward, freeze, resolve_backend
from kd_mlflow.models.taps import Tapped
from kd_mlflow.models.zoo import build

CPU = torch.device("cpu")


def network(architecture: str) -> Classifier:
    spec = ModelSpec(
        architecture=architecture, classes=("a", "b", "c"), image_size=32, mean=(0.5, 0.4, 0.6), std=(0.2, 0.3, 0.25)
    )
    model = build(spec, seed=3)
    with torch.no_grad():  # statistics that are not the identity, or folding them would prove nothing
        model.train()
        model(torch.rand(16, 3, 32, 32) * 255)
    return freeze(model)


def images(count: int, dtype=torch.float32) -> torch.Tensor:
    return (torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(count)) * 255).to(dtype)


def flat(outputs) -> list[torch.Tensor]:
    pooled = [] if outputs.pooled is None else [outputs.pooled]
    return [outputs.logits, *pooled, *(outputs.stages or []), *(outputs.preactivations or [])]


@pytest.mark.parametrize("needs", [set(), {"pooled"}, {"stages"}, {"pooled", "stages", "preactivations"}])
@pytest.mark.parametrize("architecture", ["resnet34", "mobilenet_v2", "shufflenet_v2_x1_0"])
def test_a_traced_network_gives_every_output_of_the_plain_one(architecture, needs):
    tapped = Tapped(network(architecture), frozenset({"logits"} | needs))
    fast = FastForward(tapped, "traced")
    for dtype in (torch.float32, torch.uint8):
        plain, quick = flat(tapped(images(8, dtype))), flat(fast(images(8, dtype)))
        assert len(plain) == len(quick)
        for one, other in zip(plain, quick, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4 * float(one.abs().max()))
    assert fast.fast is not None


def test_a_traced_network_gives_the_same_bits_every_time_and_needs_no_gradient():
    fast = FastForward(Tapped(network("resnet18"), frozenset({"logits"})), "traced")
    first = fast(images(8)).logits
    assert not first.requires_grad
    assert all(torch.equal(fast(images(8)).logits, first) for _ in range(4))


def test_batches_of_another_shape_go_through_the_plain_network():
    tapped = Tapped(network("resnet18"), frozenset({"logits"}))
    fast = FastForward(tapped, "traced")
    fast(images(8))
    assert torch.equal(fast(images(5)).logits, tapped(images(5)).logits)


def test_what_was_built_is_shared_and_goes_with_the_network():
    model = network("shufflenet_v2_x0_5")
    one, other = (FastForward(Tapped(model, frozenset({"logits"})), "traced") for _ in range(2))
    one(images(4))
    other(images(4))
    assert one.fast is other.fast
    gone = weakref.ref(model)
    del model, one, other
    gc.collect()
    assert gone() is None


class Fickle(torch.nn.Module):
    """Goes another way with the numbers that it sees, which a trace does not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(x.mean(dim=(2, 3))) * self.calls


def test_a_network_that_a_trace_does_not_catch_runs_in_its_plain_form(caplog):
    model = network("resnet18")
    freeze(model).body = Fickle()
    fast = FastForward(Tapped(model, frozenset({"logits"})), "traced")
    with caplog.at_level("WARNING", logger="kd_mlflow"):
        fast(images(4))
    assert fast.fast is None
    assert "plain form is used" in caplog.text


def test_auto_is_traced_on_a_cpu_in_full_precision_and_compiled_on_a_gpu():
    assert resolve_backend("auto", CPU, "float32") == "traced"
    assert resolve_backend("auto", CPU, "bfloat16") == "eager"
    assert resolve_backend("auto", torch.device("cuda"), "bfloat16") == "compiled"
    assert resolve_backend("auto", torch.device("mps"), "float32") == "eager"
    assert resolve_backend("eager", CPU, "float32") == "eager"


@pytest.mark.slow
def test_a_compiled_network_gives_the_logits_of_the_plain_one():
    tapped = Tapped(network("resnet18"), frozenset({"logits"}))
    fast = FastForward(tapped, "compiled")
    torch.testing.assert_close(fast(images(8)).logits, tapped(images(8)).logits, rtol=1e-4, atol=1e-4)
    assert fast.fast is not None
