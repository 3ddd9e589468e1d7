"""Exits answer together as they are told to, and leave the network that they stand on as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import save_file

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import export_program, load_model, save_model
from kd_mlflow.models.exits import plain, soft_vote, vote, with_exits
from kd_mlflow.models.export import export_onnx, export_pt2
from kd_mlflow.models.taps import NEEDS, Tapped

SMALL = "tests.models.networks:one_relu"
MODES = ["final", "soft", "hard", "exit1", "exit2"]


def pixels(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def votes_for(*classes: int) -> list[torch.Tensor]:
    """One image, one exit for each class named, which it is sure of."""
    return [torch.eye(4)[[k]] * 9 for k in classes]


def test_the_soft_vote_is_the_log_of_the_mean_probability():
    logits = list(torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)))
    mean = torch.stack([own.softmax(1) for own in logits]).mean(0)
    torch.testing.assert_close(soft_vote(logits).exp(), mean)
    assert torch.equal(soft_vote(logits).argmax(1), sum(own.softmax(1) for own in logits).argmax(1))


def test_the_soft_vote_stays_finite_in_half_precision():
    logits = [torch.tensor([[60000.0, -60000.0]], dtype=torch.float16), torch.zeros(1, 2, dtype=torch.float16)]
    torch.testing.assert_close(soft_vote(logits).exp(), torch.tensor([[0.75, 0.25]]))


@pytest.mark.parametrize(
    ("classes", "winner"),
    [((0, 0, 1, 2), 0), ((0, 0, 0, 1), 0), ((0, 1, 2, 3), 3), ((0, 0, 1, 1), 1), ((1, 0, 0, 1), 1), ((1, 0, 1, 0), 0)],
)
def test_the_majority_wins_and_ties_fall_to_the_deepest_exit(classes, winner):
    assert vote(votes_for(*classes)).argmax(1).item() == winner


def test_a_vote_is_a_log_probability_with_a_floor():
    shares = vote(votes_for(0, 0, 1, 1)).exp()[0]
    assert shares.sum().item() == pytest.approx(1, abs=1e-6)
    # 2 + 3/32 and 2 + 12/32 votes of 4 + 15/32, and 0.001 votes that the four classes share.
    assert shares.tolist() == pytest.approx([2.094 / 4.46975, 2.37525 / 4.46975, *[0.00025 / 4.46975] * 2], abs=1e-6)


def test_identical_exits_vote_as_each_of_them():
    own = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(soft_vote([own] * 4), own.log_softmax(1))
    assert torch.equal(vote([own] * 4).argmax(1), own.argmax(1))


@pytest.mark.parametrize("mode", MODES)
def test_the_spec_names_the_answer_in_both_modes(make, mode):
    model = make(SMALL, exits=mode)
    for training in (True, False):
        model.train(training)
        logits = model.exits(pixels()).logits
        expected = {"final": logits[2], "soft": soft_vote(logits), "hard": vote(logits), "exit1": logits[0]}
        assert torch.equal(model(pixels()), expected.get(mode, logits[1]))


def test_outputs_are_in_order_and_each_feature_makes_its_logits(make):
    model = make("resnet18", exits="soft").eval()
    outputs = model.exits(pixels())
    assert [tuple(logits.shape) for logits in outputs.logits] == [(2, 5)] * 4
    assert [tuple(features.shape) for features in outputs.features] == [(2, 512)] * 4
    heads = [*(branch.head for branch in model.exits), model.head]
    for head, features, logits in zip(heads, outputs.features, outputs.logits, strict=True):
        torch.testing.assert_close(head(features), logits)
    assert torch.equal(outputs.logits[-1], plain(model)(pixels()))


@pytest.mark.parametrize(
    ("architecture", "size", "windows"),
    [
        ("resnet18", 224, [8, 4, 2]),
        ("resnet18", 32, [8, 4, 2]),
        ("resnet18", 16, [4, 2, 1]),
        ("mobilenet_v2", 32, [8, 4, 2]),
        ("shufflenet_v2_x0_5", 32, [8, 4, 2]),
        ("convnext_tiny", 32, [8, 4, 2]),
        ("vgg11", 32, [8, 4, 2]),
    ],
)
def test_windows_follow_from_the_stages_of_every_family(make, architecture, size, windows):
    model = make(architecture, size=size, exits="soft").eval()
    assert [branch.bottleneck[3].kernel_size[0] for branch in model.exits] == windows
    outputs = model.exits(pixels(1, size))
    assert {own.shape for own in outputs.features} == {(1, model.head.in_features)}
    torch.testing.assert_close(model(pixels(1, size)).exp().sum(1), torch.ones(1))


def test_exits_add_1650206_parameters_to_resnet18_with_ten_classes_and_all_count_as_new(make):
    network = make("resnet18", classes=10)
    several = with_exits(network, "final", seed=0)
    assert parameters(several) - parameters(network) == 1_650_206
    assert sum(parameter.numel() for parameter in several.head_parameters()) == 1_650_206 + 5_130


def test_taking_the_exits_off_gives_the_network_back(make):
    network = make("resnet18").eval()
    several = with_exits(network, "soft", seed=3)
    assert several.body is network.body
    assert not several.exits.training
    without = plain(several)
    assert without.spec == network.spec
    assert list(without.state_dict()) == list(network.state_dict())
    assert torch.equal(without(pixels()), network(pixels()))
    added = several.state_dict().keys() - network.state_dict().keys()
    assert {name.split(".")[0] for name in added} == {"exits"}


def test_branches_are_a_function_of_the_seed_and_leave_the_generator_alone(make):
    network = make(SMALL)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = (with_exits(network, "soft", seed).exits.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.head.weight"], other["0.head.weight"])
    body, with_branches = make(SMALL, seed=5).body, make(SMALL, seed=5, exits="hard").body
    assert torch.equal(body.classifier.weight, with_branches.classifier.weight)


def test_plain_weights_go_into_a_network_with_exits(make, tmp_path):
    source = make(SMALL, seed=4)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    loaded = make(SMALL, weights=str(tmp_path / "weights.safetensors"), seed=9, exits="final")
    assert torch.equal(loaded.eval()(pixels()), source.eval()(pixels()))


def test_a_copy_is_of_one_piece(make):
    model = make(SMALL, exits="soft").eval()
    before, twin = model(pixels()), copy.deepcopy(model)
    torch.nn.init.zeros_(model.body.convolutions[0].weight)
    torch.testing.assert_close(twin(pixels()), before)
    twin.double()
    assert twin(pixels()).dtype == torch.float64


def test_every_exit_trains_and_a_tap_sees_through_the_exits(make):
    model = make("resnet18", exits="soft")
    outputs = Tapped(model, NEEDS)(pixels())
    assert [stage.shape[1] for stage in outputs.stages] == [64, 128, 256, 512]
    assert outputs.pooled.shape == (2, 512)
    outputs.logits[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(Tapped(model.eval(), NEEDS)(pixels()).logits, model(pixels()))


@pytest.mark.parametrize("mode", ["soft", "final"])
def test_a_folder_holds_the_exits(make, tmp_path, mode):
    model = make(SMALL, exits=mode)
    model.exits(pixels(8))
    save_model(tmp_path / "model", model, program=False)
    loaded = load_model(tmp_path / "model").eval()
    assert loaded.spec == model.spec
    assert torch.equal(loaded(pixels()), model.eval()(pixels()))
    for own, other in zip(loaded.exits(pixels()).logits, model.exits(pixels()).logits, strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("mode", ["soft", "hard", "exit1"])
def test_the_program_gives_the_networks_answer_for_any_batch(make, tmp_path, mode):
    model = make(SMALL, exits=mode).eval()
    program = export_program(model).module()
    for count in (1, 3):
        with torch.no_grad():
            torch.testing.assert_close(program(pixels(count)), model(pixels(count)))


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_onnx_gives_the_networks_answer(make, tmp_path, mode):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    assert export_onnx(make(SMALL, exits=mode), tmp_path / "model.onnx") < 1e-4


def test_the_program_of_a_resnet_agrees(make, tmp_path):
    assert export_pt2(make("resnet18", exits="soft"), tmp_path / "model.pt2") < 1e-4


@pytest.mark.parametrize(
    ("architecture", "mode", "said"),
    [
        ("tests.models.test_taps:flat", "soft", "no stages"),
        (SMALL, "exit3", "'exit3' among its 3 exits; use final, soft, hard, exit1, exit2"),
    ],
)
def test_exits_that_cannot_be_are_refused_in_a_sentence(make, architecture, mode, said):
    with pytest.raises(InputError, match=said):
        make(architecture, exits=mode)
