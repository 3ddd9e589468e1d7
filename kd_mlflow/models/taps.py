"""What a network shows of its inside: pooled features, stage maps, maps before their last activation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier, ConvHead

Need = Literal["logits", "pooled", "stages", "preactivations"]
NEEDS: frozenset[str] = frozenset({"logits", "pooled", "stages", "preactivations"})
STAGES = 4
PASSED_OVER = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.BatchNorm2d, nn.LayerNorm, nn.Dropout, ConvHead)


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a tapped network gives; parts that were not asked for are None.

    Attributes
    ----------
    logits:
        ``[B, K]``.
    pooled:
        ``[B, D]``, the input of the classifier layer, before its dropout.
    stages:
        Up to four maps ``[B, C, H, W]``, the last of each resolution, from shallow to deep.
    preactivations:
        The same maps before their last ReLU; a stage that ends without one gives its map as it is.
    """

    logits: Tensor
    pooled: Tensor | None = None
    stages: list[Tensor] | None = None
    preactivations: list[Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of the taps at the network's image size: D, and (C, H, W) of every stage."""

    pooled: int
    stages: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where a stage ends, and the ReLU it ends with, if it does."""

    module: nn.Module
    shape: tuple[int, int, int]
    relu: nn.ReLU | None


class Tapped:
    """A network together with the taps that a method needs.

    Nothing is attached for logits alone. Taps are hooks that are there for the length of a call, so
    that the network stays what it was; its logits are the same with and without them.

    Raises
    ------
    InputError
        The network has no classifier layer or no stages to tap.
    """

    def __init__(self, model: Classifier, needs: frozenset[str]) -> None:
        unknown = needs - NEEDS
        if unknown:
            raise ValueError(f"unknown taps {sorted(unknown)}")
        self.model = model
        self.needs = needs
        self._stages: list[_Stage] = []
        if needs - {"logits"}:
            name = model.spec.architecture
            if "pooled" in needs and model.head is None:
                raise InputError(
                    f"'{name}' has no classifier layer whose input could be tapped; choose another method."
                )
            if needs & {"stages", "preactivations"}:
                self._stages = find_stages(model)
                if len(self._stages) < 2:
                    raise InputError(f"'{name}' has no stages of maps that could be tapped; choose another method.")

    @property
    def widths(self) -> Widths:
        """Found by looking at one image, not typed in."""
        seen: dict[str, Any] = {}
        with ExitStack() as attached:
            if self.model.head is not None:
                attached.enter_context(_hook(self.model.head, lambda inputs, _: seen.update(pooled=inputs[0])))
            _look(self.model)
        pooled = seen["pooled"].shape[1] if "pooled" in seen else 0
        return Widths(pooled, tuple(stage.shape for stage in self._stages or find_stages(self.model)))

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs for images ``[B, 3, H, W]`` in pixel units."""
        if not self.needs - {"logits"}:
            return Outputs(self.model(images))
        pooled: list[Tensor] = []
        maps: list[Tensor | None] = [None] * len(self._stages)
        before: list[Tensor | None] = [None] * len(self._stages)
        with ExitStack() as attached:
            if "pooled" in self.needs and self.model.head is not None:
                attached.enter_context(_hook(self.model.head, lambda inputs, _: pooled.append(inputs[0].flatten(1))))
            for place, stage in enumerate(self._stages):
                attached.enter_context(_hook(stage.module, _keep(maps, place)))
                if "preactivations" in self.needs and stage.relu is not None:
                    attached.enter_context(_out_of_place(stage.relu))
                    attached.enter_context(_hook(stage.relu, _keep_input(before, place)))
            logits = self.model(images)
        stages = [value for value in maps if value is not None]
        last = [own if own is not None else after for own, after in zip(before, stages, strict=True)]
        return Outputs(
            logits,
            pooled[-1] if pooled else None,
            stages if "stages" in self.needs else None,
            last if "preactivations" in self.needs else None,
        )


def find_stages(model: Classifier) -> list[_Stage]:
    """The deepest four resolutions, each with the last block that has it, found by looking at one image.

    Blocks are what stands directly in the body or in plain Sequentials; inside a block the resolution may
    change half-way, and there is nothing there to distil. Norms that only prepare the next stage, and
    global pooling, do not count. A body without such blocks is searched through and through.
    """
    stages = _stages_among(model, _blocks(model.body))
    return stages if len(stages) > 1 else _stages_among(model, list(model.body.modules())[1:])


def _blocks(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        found.append(child)
        if type(child) is nn.Sequential:
            found += _blocks(child)
    return found


def _stages_among(model: Classifier, modules: list[nn.Module]) -> list[_Stage]:
    outputs: list[tuple[nn.Module, Tensor]] = []
    relus: list[tuple[nn.ReLU, Tensor]] = []
    with ExitStack() as attached:
        for module in modules:
            attached.enter_context(_hook(module, _note(module, outputs)))
        for module in model.body.modules():
            if isinstance(module, nn.ReLU):
                attached.enter_context(_out_of_place(module))
                attached.enter_context(_hook(module, _note(module, relus)))
        _look(model)
    ends: dict[int, tuple[nn.Module, Tensor]] = {}
    for module, output in outputs:
        if output.dim() == 4 and output.shape[2] == output.shape[3] and not isinstance(module, PASSED_OVER):
            ends[output.shape[2]] = (module, output)
    # Maps only ever shrink on the way: the order of resolutions is the order of depth.
    found = [ends[size] for size in sorted(ends, reverse=True)][-STAGES:]
    return [
        _Stage(module, tuple(output.shape[1:]), next((relu for relu, made in relus if made is output), None))
        for module, output in found
    ]


def _note(module: nn.Module, notes: list[tuple[Any, Tensor]]) -> Callable[[Any, Any], None]:
    def note(inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            notes.append((module, output))

    return note


@torch.no_grad()
def _look(model: Classifier) -> None:
    """One black image through the network in eval mode; modes are as they were afterwards."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    size = model.spec.image_size
    try:
        model(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=model.mean.device))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _hook(module: nn.Module, take: Callable[[Any, Any], None]) -> RemovableHandle:
    return module.register_forward_hook(lambda _, inputs, output: take(inputs, output))


def _keep(maps: list[Tensor | None], place: int) -> Callable[[Any, Any], None]:
    def keep(inputs: Any, output: Any) -> None:
        maps[place] = output

    return keep


def _keep_input(maps: list[Tensor | None], place: int) -> Callable[[Any, Any], None]:
    def keep(inputs: Any, output: Any) -> None:
        # A block may call one ReLU several times; the last call is the one that ends it.
        maps[place] = inputs[0]

    return keep


class _out_of_place:
    """For a while a ReLU leaves its input alone, so that the input can be kept."""

    def __init__(self, relu: nn.ReLU) -> None:
        self.relu = relu
        self.inplace = relu.inplace

    def __enter__(self) -> None:
        self.relu.inplace = False

    def __exit__(self, *_: object) -> None:
        self.relu.inplace = self.inplace
