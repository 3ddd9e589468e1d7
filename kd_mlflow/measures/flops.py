"""The arithmetic of one forward pass, counted operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = tuple[int, ...]


def count_flops(model: nn.Module, images: Tensor) -> int:
    """FLOPs of ``model(images)`` in eval mode: a multiplication and an addition are two.

    Convolutions, matrix products, recurrent layers and attention count; norms, activations and pooling do not.
    The model, its gradients, every module's mode and torch's random generators are as before afterwards.

    Parameters
    ----------
    model:
        On the device of ``images``.
    """
    with (
        _in_eval_mode(model),
        _without_gradients(model),
        _only_counted_operators(),
        _kept_generators(images.device),
        torch.inference_mode(False),
        torch.no_grad(),
        FlopCounterMode(display=False, custom_mapping=_formulas()) as counter,
    ):
        model(images)
    return counter.get_total_flops()


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Parameters that need no gradient for a while.

    Where one is handed to a module, as position embeddings are, the counter would hang a hook on its gradient.
    """
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learned:
            parameter.requires_grad = False
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad = True


@contextmanager
def _only_counted_operators() -> Iterator[None]:
    """Keep torch from fused operators that its counter has no formula for.

    In eval mode ``nn.MultiheadAttention`` and ``nn.TransformerEncoderLayer`` become one native operator, and recurrent
    layers one of MKL-DNN or cuDNN. The counter takes those for free.
    """
    libraries = (torch.backends.mkldnn, torch.backends.cudnn)
    fast_attention, enabled = torch.backends.mha.get_fastpath_enabled(), [library.enabled for library in libraries]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for library in libraries:
            library.enabled = False
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for library, was_enabled in zip(libraries, enabled, strict=True):
            library.enabled = was_enabled


@contextmanager
def _kept_generators(device: torch.device) -> Iterator[None]:
    on_device = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices=on_device, device_type=device.type if on_device else "cuda"):
        yield


def _formulas() -> dict[Any, Callable[..., int]]:
    """Formulas that the counter lacks: attention on other accelerators, and products with a vector."""
    aten = torch.ops.aten
    attention = ("_scaled_dot_product_attention_math_for_mps", "_scaled_dot_product_fused_attention_overrideable")
    formulas: dict[Any, Callable[..., int]] = {
        getattr(aten, name): _attention for name in attention if hasattr(aten, name)
    }
    return formulas | {aten.mv: _matrix_vector, aten.dot: _matrix_vector}


def _attention(query: Shape, key: Shape, value: Shape, *args: object, **options: object) -> int:
    """2·B·H·N·M·(D + E) for queries ``[B, H, N, D]``, keys ``[B, H, M, D]`` and values ``[B, H, M, E]``."""
    *heads, queries, width = query
    count = 1
    for size in heads:
        count *= size
    return 2 * count * queries * key[-2] * (width + value[-1])


def _matrix_vector(matrix: Shape, vector: Shape, *args: object, **options: object) -> int:
    count = 2
    for size in matrix:
        count *= size
    return count
