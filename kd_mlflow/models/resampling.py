"""Position embeddings that were learned at one image size, brought to another."""

from __future__ import annotations

import functools
import importlib
import logging
import math
import re
import sys
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from kd_mlflow.errors import InputError
from kd_mlflow.models.heads import head_names
from kd_mlflow.models.intermediates import is_timm

log = logging.getLogger(__name__)

# Parameters and tables with an entry for each position or distance, as timm and torchvision name them.
_POSITIONAL = re.compile(r"pos_?emb|pos_?enc|_pos\b|rel_?pos|position|attention_bias|attn_mask|rope|coords_table")


def resampled(body: nn.Module, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights whose position embeddings fit the body, where nothing but those differs in shape.

    timm's networks are resampled by timm's own functions, torchvision's ViT by torchvision's; where timm has none for
    a family, embeddings are interpolated bicubically on their grid. Tables that follow from the size are the body's
    own.

    Parameters
    ----------
    state:
        Tensors under the body's own names.
    source:
        What the weights are called in messages.

    Raises
    ------
    InputError
        The position embeddings of this network cannot be resampled.
    """
    state, own = dict(state), body.state_dict()
    names = _differing(body, state, own)
    if not names or not all(_POSITIONAL.search(name) for name in names):
        return state
    state |= _by_library(body, state, names, own)
    state |= {name: own[name] for name in names if name in dict(body.named_buffers())}
    for name in _differing(body, state, own):
        value = _interpolated(state[name], own[name]) if is_timm(body) else None
        if value is None or value.shape != own[name].shape:
            raise InputError(
                f"The weights in {source} were learned at another image size, and the positions in {name} "
                f"{list(state[name].shape)} cannot be brought to {list(own[name].shape)}; give --image-size the size "
                "they were learned at."
            )
        state[name] = value
    _say_resampled(source)
    return state


@functools.cache
def _say_resampled(source: str) -> None:
    """A command builds a network several times, and says this once."""
    log.warning("The position embeddings in %s were learned at another image size and are resampled.", source)


def _differing(body: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    heads = tuple(f"{name}." for name in head_names(body))
    return [
        name
        for name, value in state.items()
        if name in own and value.shape != own[name].shape and not (heads and name.startswith(heads))
    ]


def _by_library(
    body: nn.Module, state: dict[str, Tensor], names: list[str], own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What the library makes of the named tensors; those that it leaves as they are not among them."""
    try:
        if isinstance(body, VisionTransformer):
            made = interpolate_embeddings(body.image_size, body.patch_size, dict(state))
        elif is_timm(body):
            made = sys.modules[type(body).__module__].checkpoint_filter_fn(dict(state), body)
        else:
            return {}
    except Exception as error:  # a family without such a function, or one that stumbles over a part of the weights
        log.debug("%s are not resampled by the library: %s", names, error)
        return {}
    return {name: made[name] for name in names if name in made and made[name].shape == own[name].shape}


def _interpolated(value: Tensor, own: Tensor) -> Tensor | None:
    """``value`` on the grid of ``own``; None where neither has a square one.

    Embeddings are ``[1, N, C]`` with tokens before the grid's, ``[1, C, H, W]`` or ``[1, H, W, C]``; biases
    ``[heads, N]`` hold a number for each distance, as in LeViT.
    """
    layers = importlib.import_module("timm.layers")
    if value.dim() == own.dim() == 3 and value.shape[2] == own.shape[2]:
        side = math.isqrt(own.shape[1])
        prefix = own.shape[1] - side**2
        if not _is_square(value.shape[1] - prefix):
            return None
        return layers.resample_abs_pos_embed(value, [side, side], num_prefix_tokens=prefix)
    if value.dim() == own.dim() == 4 and value.shape[3] == own.shape[3]:
        return layers.resample_abs_pos_embed_nhwc(value, list(own.shape[1:3]))
    if value.dim() == own.dim() == 4 and value.shape[1] == own.shape[1]:
        return F.interpolate(value, size=own.shape[2:], mode="bicubic", antialias=True, align_corners=False)
    if value.dim() == own.dim() == 2 and _is_square(value.shape[1]) and _is_square(own.shape[1]):
        table = importlib.import_module("timm.layers.pos_embed_rel").resize_rel_pos_bias_table_levit
        return table(value.T, own.T.shape).T
    return None


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count
