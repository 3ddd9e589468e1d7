"""The classifier layers of a body: found, marked, and held against the logits."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from kd_mlflow.models.classifier import Classifier, ConvHead, LinearHead
from kd_mlflow.models.intermediates import is_timm
from kd_mlflow.models.stages import eval_mode, noise


def mark_heads(body: nn.Module, count: int, dropout: float) -> bool:
    """Turn the classifier layers, linear or 1x1 convolutions with ``count`` outputs, into the marked kind.

    Those are what timm names as such; in other networks the last such layer. A layer that is the whole
    body stays as it is.

    Returns
    -------
    bool
        Whether there was one.
    """
    names = _classifier_names(body, count)
    for name in names:
        _mark(body, name, count, dropout)
    return bool(names)


def head_names(body: nn.Module) -> list[str]:
    """The paths of the marked classifier layers inside the body."""
    return [name for name, module in body.named_modules() if isinstance(module, (LinearHead, ConvHead))]


def mean_over_positions(layer: nn.Module, values: Tensor) -> Tensor:
    """``[B, D]`` of a classifier layer's input or output, ``[B, D, H, W]`` of a convolution, else ``[B, ..., D]``."""
    if values.dim() == 2:
        return values
    return values.flatten(2).mean(2) if isinstance(layer, nn.Conv2d) else values.flatten(1, -2).mean(1)


def logits_are_the_heads_mean(model: Classifier) -> bool:
    """Whether the logits are the mean over what the classifier layers answer, at every position they are asked at.

    Random answers are put in the place of the layers' own for one image, and the logits held against their mean.
    """
    answers: list[Tensor] = []
    generator = torch.Generator().manual_seed(0)

    def answer(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given = torch.randn(output.shape, generator=generator).to(output)
        answers.append(mean_over_positions(layer, given))
        return given

    with ExitStack() as stack, eval_mode(model):
        for layer in model.heads:
            stack.enter_context(layer.register_forward_hook(answer))
        logits = model.body(model.normalize(noise(model, model.spec.image_size)))
    return bool(answers) and torch.allclose(logits, torch.stack(answers).mean(0), rtol=1e-2, atol=1e-2)


def _classifier_names(body: nn.Module, count: int) -> list[str]:
    paths = {module: name for name, module in body.named_modules() if _could_be_head(module, count) and name}
    named = [[layer for layer in module.modules() if layer in paths] for module in _library_classifiers(body)]
    layers = [inside[-1] for inside in named if inside] or list(paths)[-1:]
    return [paths[layer] for layer in dict.fromkeys(layers)]


def _library_classifiers(body: nn.Module) -> list[nn.Module]:
    """What timm names as the classifier: one module, or several whose answers the network joins."""
    if not is_timm(body):
        return []
    entry = getattr(body, "pretrained_cfg", None)
    paths = entry.get("classifier") if isinstance(entry, Mapping) else None
    paths = (paths,) if isinstance(paths, str) else paths or ()
    modules = dict(body.named_modules())
    listed = [modules[path] for path in paths if path in modules]
    if listed or not hasattr(body, "get_classifier"):
        return listed
    named = body.get_classifier()
    parts = named if isinstance(named, (tuple, list, nn.ModuleList)) else (named,)
    return [part for part in parts if isinstance(part, nn.Module)]


def _could_be_head(module: nn.Module, count: int) -> bool:
    if isinstance(module, nn.Linear):
        return module.out_features == count and type(module).forward in _linear_forwards()
    if type(module) is not nn.Conv2d or module.out_channels != count:
        return False
    return module.kernel_size == (1, 1) and module.padding == (0, 0) and module.groups == 1


def _linear_forwards() -> list[object]:
    """What linear layers do that only multiply: timm's own differs from torch's in TorchScript alone."""
    layers = sys.modules.get("timm.layers")
    return [nn.Linear.forward] if layers is None else [nn.Linear.forward, layers.Linear.forward]


def _mark(body: nn.Module, name: str, count: int, dropout: float) -> None:
    parent_name, _, own_name = name.rpartition(".")
    parent, plain = body.get_submodule(parent_name), body.get_submodule(name)
    if isinstance(plain, nn.Linear):
        head: LinearHead | ConvHead = LinearHead(plain.in_features, count, plain.bias is not None, device="meta")
    else:
        head = ConvHead(plain.in_channels, count, 1, plain.stride, bias=plain.bias is not None, device="meta")
    head.weight, head.bias = plain.weight, plain.bias
    head.dropout = dropout
    head.train(plain.training)
    if isinstance(parent, nn.Sequential):
        before = list(parent)[max(0, list(parent).index(plain) - 1)]
        if isinstance(before, nn.Dropout):
            # The family's own dropout at this place gives way to the one that was asked for.
            before.p = 0.0
    setattr(parent, own_name, head)
