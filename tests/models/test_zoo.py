"""Every family builds with its own head, from fresh weights, a cache, or a file; code in a file never runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from kd_mlflow.errors import InputError
from kd_mlflow.models.zoo import IMAGENET_MEAN, normalization_for

FAMILIES = [
    "resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0",
    "convnext_tiny", "vgg16_bn",
]  # fmt: skip


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_family_gives_k_logits_and_knows_its_head(make, architecture):
    model = make(architecture).eval()
    assert model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 5)
    assert sorted(parameter.shape[0] for parameter in model.head_parameters()) == [5, 5]


@pytest.mark.parametrize(("architecture", "trunk"), [("resnet18", 11_176_512), ("resnet34", 21_284_672)])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_head_is_replaced_and_each_class_adds_513_parameters(make, architecture, trunk, classes):
    assert parameters(make(architecture, classes=classes)) == trunk + 513 * classes


def test_normalisation_is_inside_and_takes_pixels(make):
    model = make().eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    by_hand = (pixels.float() / 255 - model.mean) / model.std
    torch.testing.assert_close(model.normalize(pixels), by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(pixels), model(pixels.float()))


def test_fresh_weights_are_a_function_of_the_seed_and_leave_the_generator_alone(make):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not torch.equal(one.head_parameters()[0], other.head_parameters()[0])


def test_the_small_stem_keeps_the_resolution(make):
    small, standard = make("resnet18", stem="small"), make("resnet18")
    assert small.body.conv1.kernel_size == (3, 3)
    assert small.body.conv1.stride == (1, 1)
    image = torch.zeros(1, 3, 32, 32)
    assert small.body.maxpool(small.body.conv1(image)).shape[2] == 32
    assert standard.body.maxpool(standard.body.conv1(image)).shape[2] == 8


def test_dropout_stands_before_the_classifier_and_only_in_training(make):
    model, pixels = make(dropout=0.9), torch.rand(4, 3, 32, 32) * 255
    assert not torch.equal(model.train()(pixels), model(pixels))
    assert torch.equal(model.eval()(pixels), model(pixels))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".pkl"])
@pytest.mark.parametrize("wrapping", ["plain", "prefixed", "nested"])
def test_weights_files_of_all_kinds_load(make, tmp_path, suffix, wrapping):
    source = make(seed=4)
    state = dict(source.body.state_dict())
    if wrapping == "prefixed":
        state = {f"module.{name}": value for name, value in state.items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, file)
    else:
        torch.save({"state_dict": state} if wrapping == "nested" else state, file)
    loaded = make(weights=str(file), seed=9)
    for name, value in source.body.state_dict().items():
        assert torch.equal(value, loaded.body.state_dict()[name]), name


def test_a_head_of_other_classes_is_left_fresh(make, tmp_path):
    file = tmp_path / "weights.safetensors"
    source = make(classes=7)
    save_file({name: value.contiguous() for name, value in source.body.state_dict().items()}, file)
    loaded = make(classes=5, weights=str(file))
    assert torch.equal(loaded.body.conv1[0].weight, source.body.conv1[0].weight)
    assert loaded.head_parameters()[0].shape[0] == 5


def test_a_file_without_a_head_is_loaded_with_a_warning(make, tmp_path, caplog):
    file, source = tmp_path / "trunk.pt", make(seed=4)
    torch.save({name: value for name, value in source.body.state_dict().items() if not name.startswith("fc")}, file)
    loaded = make(weights=str(file), seed=9)
    assert torch.equal(loaded.body.conv1[0].weight, source.body.conv1[0].weight)
    assert "classifier" in caplog.text


def test_weights_of_another_network_are_refused_by_name(make, tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in make().body.state_dict().items()}, file)
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        make("resnet18", weights=str(file))


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pt", ".pkl"])
def test_a_file_that_wants_to_run_code_is_refused_and_does_not(make, tmp_path, suffix):
    trap, file = tmp_path / "touched", tmp_path / f"evil{suffix}"
    file.write_bytes(pickle.dumps({"weight": Touch(str(trap))}))
    with pytest.raises(InputError, match="evil"):
        make(weights=str(file))
    assert not trap.exists()


def test_imagenet_weights_come_from_the_local_cache_with_their_normalisation(make, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entry = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT
    file = tmp_path / "hub" / "checkpoints" / Path(entry.url).name
    file.parent.mkdir(parents=True)
    source = torchvision.models.shufflenet_v2_x0_5()
    torch.save(source.state_dict(), file)
    model = make(weights="imagenet")
    assert torch.equal(model.body.conv1[0].weight, source.conv1[0].weight)
    mean, _ = normalization_for("auto", "shufflenet_v2_x0_5", "imagenet", (0.1,) * 3, (0.1,) * 3)
    assert mean == IMAGENET_MEAN
    assert normalization_for("data", "shufflenet_v2_x0_5", "imagenet", (0.1,) * 3, (0.1,) * 3)[0] == (0.1,) * 3
    assert normalization_for("auto", "shufflenet_v2_x0_5", "none", (0.1,) * 3, (0.1,) * 3)[0] == (0.1,) * 3


@pytest.mark.parametrize("architecture", ["resnet1", "timm:no_such_network", "no.such.module:factory", "os:getcwd"])
def test_what_cannot_be_built_is_said_in_a_sentence(make, architecture):
    with pytest.raises(InputError):
        make(architecture)


def test_a_factory_of_ones_own_is_an_architecture(make):
    model = make("tests.entrypoints.tiny:make")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert len(model.head_parameters()) == 2
