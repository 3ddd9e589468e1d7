"""timm's families show every tap that they have, at sizes of their own and others, and say what they lack."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import LinearHead
from kd_mlflow.models.inference import FastForward, freeze
from kd_mlflow.models.taps import NEEDS, Tapped

timm = pytest.importorskip("timm", reason="timm is not installed")

# One small network of each kind of head, of block and of layout.
SMALL = [
    "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "ghostnetv2_100", "lcnet_050", "hardcorenas_a",
    "starnet_s050", "repghostnet_050", "hgnetv2_b0", "efficientnet_lite0", "repvit_m0_9", "levit_128s",
    "deit_tiny_distilled_patch16_224", "vit_tiny_patch16_224", "swin_s3_tiny_224", "pit_ti_224", "mixer_s32_224",
]  # fmt: skip
LARGE = [
    "efficientnet_b0", "tf_efficientnetv2_b0", "efficientnet_es", "mobilenetv2_050", "mobilenetv3_large_100",
    "mobilenetv4_hybrid_medium", "ghostnet_050", "ghostnetv3_050", "lcnetv2_small", "tinynet_e", "fbnetc_100",
    "fbnetv3_b", "mnasnet_small", "mixnet_s", "rexnet_100", "repvgg_a0", "mobileone_s0", "fastvit_t8", "mobilevit_xxs",
    "mobilevitv2_050", "edgenext_xx_small", "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0",
    "pit_ti_distilled_224", "deit3_small_patch16_224", "vit_tiny_r_s16_p8_224", "vit_relpos_small_patch16_224",
    "vit_wee_patch16_reg1_gap_256", "beit_base_patch16_224", "eva02_tiny_patch14_224", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224", "convnext_atto",
    "convnextv2_atto", "regnetx_002", "regnety_002", "regnetz_005", "resnet18", "resnext50_32x4d", "seresnet18",
    "resnetv2_18", "resnest14d", "res2net50_48w_2s", "dla34", "dpn48b", "densenet121", "hrnet_w18_small", "vgg11_bn",
    "xception41", "eca_nfnet_l0", "nf_regnet_b0", "cspresnet50", "cs3darknet_s", "tresnet_m", "selecsls42",
    "gmlp_ti16_224", "resmlp_12_224", "poolformer_s12", "caformer_s18", "pvt_v2_b0",
    "twins_svt_small", "cait_xxs24_224", "xcit_nano_12_p16_224", "tnt_s_patch16_224", "nest_tiny", "visformer_tiny",
    "focalnet_tiny_srf", "davit_tiny", "gcvit_xxtiny", "hiera_tiny_224", "mambaout_femto", "inception_next_atto",
    "rdnet_tiny", "tiny_vit_5m_224", "nextvit_small", "shvit_s1", "swiftformer_xs", "convit_tiny",
    "vitamin_small_224", "fasternet_t0",
]  # fmt: skip


def pixels(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def told_by_timm(model, images) -> list[torch.Tensor]:
    """timm's own features, the last of them with the head's convolution where it has one at that resolution."""
    body, normalized = model.body, model.normalize(images)
    return [*body.forward_intermediates(normalized, intermediates_only=True), body.forward_features(normalized)]


def check(model, size: int) -> None:
    """Every tap: exact, as announced, with gradients, and gone afterwards."""
    model.eval()
    images, tapped = pixels(size), Tapped(model, NEEDS)
    with torch.no_grad():
        outputs, plain, told = tapped(images), model(images), told_by_timm(model, images)
    torch.testing.assert_close(outputs.logits, plain)
    answer = F.linear(outputs.pooled, model.head.weight.flatten(1), model.head.bias)
    torch.testing.assert_close(answer, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))
    widths = tapped.widths
    assert outputs.pooled.shape == (2, widths.pooled)
    assert [tuple(maps.shape[1:]) for maps in outputs.stages] == list(widths.stages)
    assert [maps.shape for maps in outputs.preactivations] == [maps.shape for maps in outputs.stages]
    assert 2 < len(outputs.stages) <= 4
    sides = [maps.shape[2] for maps in outputs.stages]
    assert sides == sorted(sides, reverse=True)
    for maps in outputs.stages:
        assert maps.shape[2] == maps.shape[3]
        assert any(maps.shape == known.shape and torch.allclose(maps, known, rtol=1e-4, atol=1e-5) for known in told)
    outputs = tapped(images)
    first = next(model.body.parameters())
    for values in (outputs.pooled, outputs.stages[0], outputs.preactivations[-1]):
        (gradient,) = torch.autograd.grad(values.square().mean(), first, retain_graph=True, allow_unused=True)
        assert gradient is not None
    assert all(values.requires_grad for values in [*outputs.stages, *outputs.preactivations])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_every_kind_of_network_shows_every_tap(make, name):
    check(make(f"timm:{name}", size=64), 64)


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_every_family_shows_every_tap(make, name, size):
    check(make(f"timm:{name}", size=size), size)


@pytest.mark.parametrize("name", ["resnet10t", "selecsls42", "mobilenetv4_conv_small_035"])
def test_a_last_map_of_one_pixel_is_not_taken_for_its_mean(make, name):
    outputs = Tapped(make(f"timm:{name}", size=32).eval(), NEEDS)(pixels(32))
    assert outputs.stages[-1].shape[2:] == (1, 1)
    assert torch.equal(outputs.preactivations[-1].relu(), outputs.stages[-1])
    assert (outputs.preactivations[-1] < 0).any()


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        ("mobilenetv3_small_050", F.hardswish),
        ("efficientnet_lite0", F.relu6),
        ("ghostnetv2_100", F.relu),
        ("lcnet_050", F.hardswish),
    ],
)
def test_the_activation_of_the_last_preactivation_is_the_last_stage(make, name, activation):
    outputs = Tapped(make(f"timm:{name}", size=64).eval(), NEEDS)(pixels(64))
    torch.testing.assert_close(activation(outputs.preactivations[-1]), outputs.stages[-1])
    assert (outputs.preactivations[-1] < 0).any()


def test_a_scale_and_shift_behind_the_activation_is_part_of_the_preactivation(make):
    model = make("timm:hgnetv2_b0", size=64).eval()
    for module in model.modules():
        if type(module).__name__ == "LearnableAffineBlock":
            torch.nn.init.constant_(module.scale, 1.5)
            torch.nn.init.constant_(module.bias, 0.25)
    outputs = Tapped(model, NEEDS)(pixels(64))
    torch.testing.assert_close(outputs.preactivations[-1].clamp_min(0.25), outputs.stages[-1])
    assert (outputs.preactivations[-1] < 0.25).any()


def test_several_classifier_layers_are_tapped_as_one_on_all_they_see(make):
    model = make("timm:deit_tiny_distilled_patch16_224", size=64)
    assert [type(head) for head in model.heads] == [LinearHead, LinearHead]
    assert model.head.in_features == 2 * 192
    assert len(model.head_parameters()) == 4
    assert Tapped(model, NEEDS).widths.pooled == 2 * 192


def test_blocks_that_change_nothing_yet_are_told_apart(make):
    model = make("timm:vit_tiny_patch16_224", size=64).eval()
    for block in model.body.blocks:
        torch.nn.init.zeros_(block.attn.proj.weight)
        torch.nn.init.zeros_(block.mlp.fc2.weight)
    tapped = Tapped(model, frozenset({"stages"}))
    with torch.no_grad():
        # As a training would: what the look could not tell apart is different now.
        for number, block in enumerate(model.body.blocks):
            block.mlp.fc2.bias.fill_(number + 1.0)
        stages, told = tapped(pixels(64)).stages, told_by_timm(model, pixels(64))
    for maps, number in zip(stages, (2, 5, 8, 11), strict=True):
        assert torch.equal(maps, told[number])


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224", "levit_128s"])
def test_a_traced_network_gives_every_tap(make, name):
    tapped = Tapped(freeze(make(f"timm:{name}", size=64)), NEEDS)
    fast, images = FastForward(tapped, "traced"), pixels(64)
    plain, quick = tapped(images), fast(images)
    assert fast.fast is not None
    for before, after in zip([plain.pooled, *plain.stages], [quick.pooled, *quick.stages], strict=True):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max()))


def test_a_file_of_other_classes_leaves_every_classifier_layer_fresh(make, tmp_path):
    source = make("timm:levit_128s", size=64, classes=7)
    torch.save(source.body.state_dict(), tmp_path / "weights.pt")
    loaded = make("timm:levit_128s", size=64, classes=5, weights=str(tmp_path / "weights.pt"))
    assert [head.out_features for head in loaded.heads] == [5, 5]
    assert torch.equal(loaded.body.stem.conv1.linear.weight, source.body.stem.conv1.linear.weight)


@pytest.mark.parametrize("name", ["no_such_network", "resnet18.no_such_tag"])
def test_a_name_that_timm_does_not_know_is_refused(make, name):
    with pytest.raises(InputError, match=f"timm cannot make '{name}'"):
        make(f"timm:{name}")


@pytest.mark.parametrize("name", ["ese_vovnet19b_slim_dw", "hgnet_tiny", "inception_v4"])
def test_rectified_maps_that_no_module_ends_are_refused_as_preactivations_alone(make, name):
    model = make(f"timm:{name}", size=96)
    with pytest.raises(InputError, match=f"'timm:{name}' has no pre-activations"):
        Tapped(model, NEEDS)
    assert len(Tapped(model, NEEDS - {"preactivations"}).widths.stages) == 4


def test_a_network_whose_logits_are_more_than_its_classifiers_has_no_pooled_features(make):
    model = make("timm:volo_d1_224", size=64)
    with pytest.raises(InputError, match="'timm:volo_d1_224' has no pooled features"):
        Tapped(model, frozenset({"pooled"}))
