"""FLOPs are those of the arithmetic, by formulas and by a counter of other make, whatever torch fuses."""

from __future__ import annotations

import logging

import pytest
import torch
import torchvision
from torch import nn

from kd_mlflow.measures.efficiency import measure
from kd_mlflow.measures.flops import count_flops


def transformer_flops(*, tokens: int, width: int, hidden: int, depth: int) -> int:
    """Of the blocks: query, key, value and output; scores and weighted sum; the two layers of the MLP."""
    block = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * hidden
    return 2 * depth * block


def vit_flops(*, size: int, patch: int, width: int, hidden: int, depth: int, classes: int) -> int:
    patches = (size // patch) ** 2
    embedding = 2 * patches * 3 * patch**2 * width
    return (
        embedding + transformer_flops(tokens=patches + 1, width=width, hidden=hidden, depth=depth) + 2 * width * classes
    )


def swin_flops(*, size: int, width: int, depths: tuple[int, ...], window: int, classes: int) -> int:
    """Windows of ``window`` tokens a side attend within; 2x2 tokens merge into one of twice the width."""
    side, total = size // 4, 2 * (size // 4) ** 2 * 3 * 16 * width
    for number, depth in enumerate(depths):
        if number:
            side, width = side // 2, 2 * width
            total += 2 * side**2 * 2 * width * width
        windows = (side // window) ** 2
        total += windows * transformer_flops(tokens=window**2, width=width, hidden=4 * width, depth=depth)
    return total + 2 * width * classes


def test_vit_b_16_has_35_gflops():
    counted = count_flops(torchvision.models.vit_b_16(), torch.zeros(1, 3, 224, 224))
    assert counted == vit_flops(size=224, patch=16, width=768, hidden=3072, depth=12, classes=1000)
    assert counted / 1e9 == pytest.approx(35.13, abs=0.005)


def test_attention_in_windows_counts_too():
    counted = count_flops(torchvision.models.swin_t(), torch.zeros(1, 3, 224, 224))
    assert counted == swin_flops(size=224, width=96, depths=(2, 2, 6, 2), window=7, classes=1000)


def test_the_recorded_figure_is_that_of_the_whole_transformer():
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = torchvision.models.VisionTransformer(64, 16, 2, 4, 64, 128, num_classes=5)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.network(images / 255)

    metrics = measure(Pixels(), image_size=64, device=torch.device("cpu"), batch_size=2, seconds=0.05).metrics
    assert metrics["flops"] == vit_flops(size=64, patch=16, width=64, hidden=128, depth=2, classes=5)


LENGTH, WIDTH, HIDDEN = 5, 8, 16
SEQUENCE = torch.zeros(1, LENGTH, WIDTH)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.LSTM(WIDTH, HIDDEN, batch_first=True), 2 * LENGTH * 4 * HIDDEN * (WIDTH + HIDDEN)),
        (nn.GRU(WIDTH, HIDDEN, batch_first=True), 2 * LENGTH * 3 * HIDDEN * (WIDTH + HIDDEN)),
        (
            nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, batch_first=True),
            transformer_flops(tokens=LENGTH, width=WIDTH, hidden=HIDDEN, depth=1),
        ),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 2, HIDDEN, batch_first=True), 3),
            transformer_flops(tokens=LENGTH, width=WIDTH, hidden=HIDDEN, depth=3),
        ),
    ],
    ids=["LSTM", "GRU", "TransformerEncoderLayer", "TransformerEncoder"],
)
@pytest.mark.parametrize("trainable", [True, False])
def test_layers_that_torch_runs_as_one_operator_are_counted(layer, expected, trainable):
    assert count_flops(layer.requires_grad_(trainable), SEQUENCE) == expected


class ScaledDotProduct(nn.Module):
    """Two heads of width 4 for queries and 6 for values, over 7 keys."""

    def forward(self, queries: torch.Tensor) -> torch.Tensor:
        keys, values = queries.new_ones(1, 2, 7, 4), queries.new_ones(1, 2, 7, 6)
        return nn.functional.scaled_dot_product_attention(queries, keys, values)


@pytest.mark.parametrize("inference", [True, False])
def test_attention_alone_counts_its_two_products_in_every_mode_of_autograd(inference):
    with torch.inference_mode(inference):
        assert count_flops(ScaledDotProduct(), torch.zeros(1, 2, 5, 4)) == 2 * 2 * 5 * 7 * (4 + 6)


class Shifted(nn.Module):
    """Hands a parameter to a module, as networks do with position embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, 4))
        self.layer = nn.Linear(4, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(features) + self.layer(self.shift)


def test_a_parameter_that_goes_into_a_module_is_no_hindrance():
    model = Shifted()
    assert count_flops(model, torch.zeros(1, 4)) == 2 * 2 * 4 * 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_counting_leaves_no_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 2))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    count_flops(model, torch.rand(1, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled
    assert torch.is_grad_enabled()


def test_a_network_that_fails_is_left_in_its_mode_and_torch_in_its_settings():
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="shapes"):
        count_flops(model, torch.zeros(1, 4))
    assert model[1].training
    assert torch.backends.mha.get_fastpath_enabled()


FAMILIES = [
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "levit_128s", "pit_ti_224", "efficientformerv2_s0",
    "efficientvit_b0", "efficientvit_m0", "mobilevit_xxs", "mobilevitv2_050", "mobilenetv4_hybrid_medium",
    "edgenext_xx_small", "fastvit_t8", "cait_xxs24_224", "vit_base_patch16_siglip_224",
    "xcit_nano_12_p16_224", "pvt_v2_b0", "twins_svt_small",
    "maxvit_rmlp_pico_rw_256", "coatnet_pico_rw_224", "mixer_s32_224", "gmlp_ti16_224", "poolformer_s12",
    "convnext_atto", "resnet18", "efficientnet_b0", "regnety_002", "densenet121", "halonet26t", "botnet26t_256",
]  # fmt: skip
# Multiply-adds of these alone: the other counter adds norms and pooling.
PRODUCTS = ("conv", "linear", "matmul", "einsum", "mm", "bmm", "addmm")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_twice_the_multiply_adds_of_another_counter(name, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    fvcore = pytest.importorskip("fvcore.nn", reason="fvcore is not installed")
    monkeypatch.setattr(logging.getLogger("fvcore.nn.jit_analysis"), "disabled", True)
    model = timm.create_model(name, pretrained=False).eval()
    images = torch.zeros(1, 3, model.pretrained_cfg["input_size"][-1], model.pretrained_cfg["input_size"][-1])
    counted = count_flops(model, images)
    # The other counter knows no fused attention.
    timm.layers.set_fused_attn(False)
    try:
        plain = timm.create_model(name, pretrained=False).eval()
    finally:
        timm.layers.set_fused_attn(True)
    operators = fvcore.FlopCountAnalysis(plain, images).by_operator()
    multiply_adds = sum(operators[name] for name in PRODUCTS)
    assert counted == pytest.approx(2 * multiply_adds, rel=1e-3)
