"""Squeeze-and-excitation starts as nearly nothing and can be shut out entirely."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model, save_model
from kd_mlflow.models.attention import SqueezeExcitation
from kd_mlflow.models.export import export_onnx, export_pt2
from kd_mlflow.models.taps import NEEDS, Tapped


def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def gates(model: torch.nn.Module) -> list[SqueezeExcitation]:
    return [module for module in model.modules() if isinstance(module, SqueezeExcitation)]


def excite(model: torch.nn.Module) -> None:
    """Weights with which the gates depend on what comes in."""
    for gate in gates(model):
        torch.nn.init.normal_(gate.expand.weight, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("architecture", "blocks"), [("resnet18", 8), ("resnet50", 16), ("resnext50_32x4d", 16)])
def test_an_open_gate_leaves_the_logits_bit_for_bit(make, architecture, blocks):
    network, gated = make(architecture).eval(), make(architecture, squeeze_excitation=True).eval()
    assert len(gates(gated)) == blocks
    assert not torch.equal(gated(pixels()), network(pixels()))
    for gate in gates(gated):
        torch.nn.init.constant_(gate.expand.bias, 100.0)
    assert torch.equal(gated(pixels()), network(pixels()))


def test_every_gate_starts_at_0_982_whatever_comes_in():
    gate = SqueezeExcitation(64)
    maps = torch.randn(3, 64, 5, 5)
    torch.testing.assert_close(gate(maps), maps * 0.9820138)
    assert gate.reduce.out_features == 4


def test_the_gate_scales_the_branch_before_the_addition(make):
    model = make("resnet18", squeeze_excitation=True).eval()
    for gate in gates(model):
        torch.nn.init.constant_(gate.expand.bias, -1000.0)
    block, maps = model.body.layer1[0], torch.rand(2, 64, 8, 8)
    assert torch.equal(block(maps), maps)


@pytest.mark.parametrize("whole", [True, False])
def test_a_plain_weights_file_loads_without_a_warning_and_leaves_the_gates_fresh(make, tmp_path, caplog, whole):
    source, file = make("resnet18", seed=4), tmp_path / "weights.safetensors"
    state = source.state_dict() if whole else source.body.state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    loaded = make("resnet18", weights=str(file), seed=9, squeeze_excitation=True)
    own = loaded.body.state_dict()
    assert all(torch.equal(own[name], value) for name, value in source.body.state_dict().items())
    assert all(".gate." in name for name in own.keys() - source.body.state_dict().keys())
    assert not caplog.records


def test_gates_in_a_file_are_loaded(make, tmp_path):
    source, file = make("resnet18", seed=4, squeeze_excitation=True).eval(), tmp_path / "weights.safetensors"
    excite(source)
    save_file(source.state_dict(), file)
    loaded = make("resnet18", weights=str(file), seed=9, squeeze_excitation=True).eval()
    assert torch.equal(loaded(pixels()), source(pixels()))


def test_other_parameters_of_a_plain_file_are_still_missed(make, tmp_path):
    state = make("resnet18").state_dict()
    del state["body.layer1.0.bn2.weight"]
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"missing layer1\.0\.bn2\.weight;"):
        make("resnet18", weights=str(tmp_path / "weights.safetensors"), squeeze_excitation=True)


def test_gates_train(make):
    model = make("resnet18", squeeze_excitation=True)
    model(pixels()).square().sum().backward()
    assert all(gate.expand.weight.grad.abs().sum() > 0 for gate in gates(model))


def test_the_relu_of_a_preactivation_is_the_stage(make):
    model = make("resnet18", squeeze_excitation=True).eval()
    excite(model)
    outputs = Tapped(model, NEEDS)(pixels())
    assert torch.equal(outputs.logits, model(pixels()))
    for stage, before in zip(outputs.stages, outputs.preactivations, strict=True):
        assert torch.equal(before.relu(), stage)


def test_a_folder_and_a_program_hold_the_gates(make, tmp_path):
    model = make("resnet18", squeeze_excitation=True).eval()
    excite(model)
    save_model(tmp_path / "model", model, program=False)
    loaded = load_model(tmp_path / "model").eval()
    assert loaded.spec == model.spec
    assert torch.equal(loaded(pixels()), model(pixels()))
    assert export_pt2(model, tmp_path / "model.pt2") < 1e-4


def test_onnx_holds_the_gates(make, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = make("resnet18", squeeze_excitation=True)
    excite(model)
    assert export_onnx(model, tmp_path / "model.onnx") < 1e-3


@pytest.mark.parametrize("architecture", ["vgg11", "tests.models.networks:one_relu"])
def test_other_architectures_are_refused_in_a_sentence(make, architecture):
    with pytest.raises(InputError, match=f"Squeeze-and-excitation is not defined for '{architecture}'"):
        make(architecture, squeeze_excitation=True)
