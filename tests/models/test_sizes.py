"""Networks of a fixed size are built for the size that is asked for, or the sentence names sizes that work."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch.nn.functional import interpolate

from kd_mlflow.errors import InputError
from kd_mlflow.models.artifact import load_model, save_model
from kd_mlflow.models.weights import load_weights

IMAGES = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def timm():
    return pytest.importorskip("timm", reason="timm is not installed")


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_s3_tiny_224", "levit_128s", "pit_ti_224",
        "efficientformerv2_s0", "vit_wee_patch16_reg1_gap_256", "test_vit",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [96])
def test_timms_transformers_are_built_for_the_size_asked_for(timm, make, name, size):
    model = make(f"timm:{name}", size=size).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "swin_v2_t"])
def test_torchvisions_transformers_are_built_for_the_size_asked_for(make, name):
    assert make(name, size=64).eval()(IMAGES).shape == (2, 5)


def test_maxvit_names_the_sizes_that_it_takes(make):
    with pytest.raises(InputError, match=r"'maxvit_t' cannot take images of 64 px .* takes 224 and 448 px"):
        make("maxvit_t", size=64)


def test_a_network_of_one_size_names_it(timm, make):
    with pytest.raises(InputError, match=r"efficientformer_l1' cannot take images of 64 px .* takes 224 px: give"):
        make("timm:efficientformer_l1", size=64)


def test_a_size_between_those_that_work_names_its_neighbors(timm, make):
    with pytest.raises(InputError, match="takes 32, 64, 96, 128, 224 and 448 px"):
        make("timm:efficientformerv2_s0", size=80)


def test_images_too_small_for_a_network_name_larger_ones(make):
    with pytest.raises(
        InputError, match=r"'squeezenet1_1' cannot take images of 16 px .* takes 32, 64, 224 and 448 px"
    ):
        make("squeezenet1_1", size=16)


def test_a_factory_is_called_once_however_many_sizes_are_tried(make, monkeypatch):
    calls = []
    monkeypatch.setattr("tests.models.test_sizes.CALLS", calls)
    with pytest.raises(InputError, match="takes 64 px: give"):
        make("tests.models.test_sizes:for_64_px", size=60)
    assert calls == [5]


CALLS: list[int] = []


def for_64_px(num_classes: int) -> torch.nn.Module:
    CALLS.append(num_classes)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 8, 8), torch.nn.Flatten(), torch.nn.Linear(128, num_classes))


@pytest.mark.parametrize("name", ["test_vit", "pit_ti_224", "levit_128s", "efficientformerv2_s0"])
def test_weights_of_another_size_have_their_positions_resampled(timm, make, tmp_path, caplog, name):
    file = tmp_path / "weights.pt"
    torch.save(make(f"timm:{name}", size=224, classes=7, seed=1).body.state_dict(), file)
    model = make(f"timm:{name}", size=64, weights=str(file), seed=2)
    assert model.eval()(IMAGES).shape == (2, 5)
    assert caplog.text.count("position embeddings in") == 1


def test_resampled_positions_are_interpolated_on_their_grid(timm, make, tmp_path):
    file, source = tmp_path / "weights.pt", make("timm:vit_tiny_patch16_224", size=224, seed=1)
    torch.save(source.body.state_dict(), file)
    old, new = source.body.pos_embed, make("timm:vit_tiny_patch16_224", size=64, weights=str(file)).body.pos_embed
    assert new.shape == (1, 1 + 16, 192)
    assert torch.equal(new[:, :1], old[:, :1])
    grid = old[:, 1:].reshape(1, 14, 14, 192).permute(0, 3, 1, 2)
    expected = interpolate(grid, size=(4, 4), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(new[:, 1:], expected.flatten(2).transpose(1, 2))


def vit(size: int, patch: int = 16) -> torchvision.models.VisionTransformer:
    return torchvision.models.VisionTransformer(size, patch, 1, 2, 32, 64, num_classes=5)


def test_torchvisions_vit_has_its_positions_resampled(caplog):
    source, body = vit(96).requires_grad_(False), vit(64).requires_grad_(False)
    load_weights(body, source.state_dict(), "weights.pt", {})
    assert body.encoder.pos_embedding.shape == (1, 1 + 16, 32)
    assert torch.equal(body.encoder.pos_embedding[:, 0], source.encoder.pos_embedding[:, 0])
    assert torch.equal(body.conv_proj.weight, source.conv_proj.weight)
    assert "resampled" in caplog.text


@pytest.mark.fault("weights of another network", "they are refused, and nothing is resampled")
def test_weights_that_differ_in_more_than_positions_are_refused():
    with pytest.raises(InputError, match=r"do not fit: shapes differ in .*conv_proj"):
        load_weights(vit(64), vit(96, patch=32).state_dict(), "weights.pt", {})


@pytest.mark.fault("positions that are on no square grid", "one sentence names them and the way out")
def test_positions_that_cannot_be_resampled_are_named(timm, make, tmp_path):
    file, state = tmp_path / "weights.pt", make("timm:pit_ti_224", size=64).body.state_dict()
    torch.save(state | {"pos_embed": torch.zeros(1, 3, 9, 9)}, file)
    with pytest.raises(InputError, match=r"another image size, and the positions in pos_embed \[1, 3, 9, 9\]"):
        make("timm:pit_ti_224", size=64, weights=str(file))


def test_a_saved_transformer_comes_back_at_its_size(timm, make, tmp_path):
    model = make("timm:test_vit", size=64).eval()
    save_model(tmp_path / "model", model, program=False)
    assert torch.equal(load_model(tmp_path / "model").eval()(IMAGES), model(IMAGES))


def test_a_folder_from_before_transformers_were_built_for_their_size_still_loads(timm, make, tmp_path):
    model = make("timm:test_vit4", size=64).eval()
    older = timm.create_model("test_vit4", num_classes=5)
    older.load_state_dict(older.state_dict() | {"head.bias": torch.arange(5.0)})
    model.body = older.eval()
    save_model(tmp_path / "model", model, program=False)
    assert torch.equal(load_model(tmp_path / "model").eval()(IMAGES), model(IMAGES))
