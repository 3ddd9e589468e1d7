"""Where a network's stages end and what they end with, found by looking at one image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleUnit

from kd_mlflow.models.classifier import Classifier

STAGES = 4
# So that five halvings of the resolution can be told apart.
SMALLEST_LOOK = 32
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
ACTIVATIONS = (*RECTIFIERS, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus)
PASSED_OVER = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.BatchNorm2d, nn.LayerNorm, nn.Dropout)


@dataclass(frozen=True)
class Stage:
    """The end of a stage.

    Attributes
    ----------
    module, call:
        The map is what ``module`` returns at its ``call``-th call of a forward pass, from 0.
    activation:
        The module that made the map out of its pre-activation; None if none did.
    pool:
        The max-pooling between activation and map. It commutes with a rectifier:
        ``pool(relu(z)) = relu(pool(z))``.
    units:
        ShuffleNet's units, whose maps are woven from rectified halves.
    hidden:
        Rectified, but by nothing that can be tapped.
    overwritten:
        A later step works in place on the map.
    """

    module: nn.Module
    call: int
    activation: nn.Module | None = None
    pool: nn.MaxPool2d | None = None
    units: tuple[ShuffleUnit, ...] = ()
    hidden: bool = False
    overwritten: bool = False

    def activations(self) -> list[nn.Module]:
        """The modules whose inputs make up the pre-activation."""
        ends = [branch[-1] for unit in self.units for branch in (unit.branch1, unit.branch2) if len(branch)]
        return [self.activation] if self.activation is not None else ends


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    number: int
    source: Tensor | None
    output: Tensor
    version: int


def find_stages(model: Classifier) -> tuple[Stage, ...]:
    """The deepest four resolutions, each with the last block that has it; empty if there are fewer than two.

    Blocks are what stands directly in the body or in plain Sequentials; inside a block the resolution may
    change half-way, and there is nothing there to distil. Norms that only prepare the next stage, global
    pooling and all from the classifier on do not count. A body without such blocks is searched through
    and through.
    """
    calls = _look(model)
    ends = _ends(calls, set(_blocks(model.body)))
    if len(ends) < 2:
        ends = _ends(calls, set(model.body.modules()))
    return tuple(_stage(calls, place) for place in ends) if len(ends) > 1 else ()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode and nothing recorded for autograd; each has its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def noise(model: Classifier, size: int) -> Tensor:
    """One random image ``[1, 3, size, size]``, uint8, always the same."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=generator)
    return image.to(model.mean.device)


def _blocks(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        found.append(child)
        if type(child) is nn.Sequential:
            found += _blocks(child)
    return found


def _look(model: Classifier) -> list[_Call]:
    """All calls that return one tensor, in the order in which they end, up to the classifier layer."""
    size = model.spec.image_size
    try:
        return _record(model, max(size, SMALLEST_LOOK))
    except RuntimeError:
        # Some networks take no size but their own.
        return _record(model, size)


def _record(model: Classifier, size: int) -> list[_Call]:
    calls: list[_Call] = []
    counts: Counter[nn.Module] = Counter()
    head, head_seen = model.head, False

    def note(module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        nonlocal head_seen
        head_seen = head_seen or module is head
        if isinstance(output, Tensor) and not head_seen:
            source = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            calls.append(_Call(module, counts[module], source, output, output._version))
        counts[module] += 1

    with ExitStack() as attached, eval_mode(model):
        for module in model.body.modules():
            if module is not model.body or isinstance(module, nn.Sequential):
                attached.enter_context(module.register_forward_hook(note))
        model(noise(model, size))
    return calls


def _ends(calls: list[_Call], candidates: set[nn.Module]) -> list[int]:
    """Places in ``calls`` of the last map of each resolution, shallow to deep."""
    ends: dict[int, int] = {}
    for place, call in enumerate(calls):
        shape = call.output.shape
        # Networks with channels last have maps that are not square here.
        square = len(shape) == 4 and shape[2] == shape[3]
        if square and call.module in candidates and not isinstance(call.module, PASSED_OVER):
            ends[shape[2]] = place
    return [ends[size] for size in sorted(ends, reverse=True)][-STAGES:]


def _stage(calls: list[_Call], place: int) -> Stage:
    end = calls[place]
    made_by = _makers(calls[: place + 1], end.output)
    activation = next((call.module for call in made_by if isinstance(call.module, ACTIVATIONS)), None)
    pool, units = None, ()
    pooling = next((call for call in made_by if isinstance(call.module, nn.MaxPool2d)), None)
    if pooling is not None:
        before = _makers(calls[:place], pooling.source)
        activation = next((call.module for call in before if isinstance(call.module, RECTIFIERS)), None)
        pool = pooling.module if activation is not None else None
    elif isinstance(end.module, nn.Sequential) and all(isinstance(unit, ShuffleUnit) for unit in end.module):
        units = tuple(end.module)
    overwritten = end.output._version != end.version
    plain = activation is None and not units and not overwritten
    hidden = plain and bool((end.output >= 0).all())
    return Stage(end.module, end.number, activation, pool, units, hidden, overwritten)


def _makers(calls: list[_Call], output: Tensor | None) -> list[_Call]:
    """The calls that returned this very tensor: its maker, what worked on it in place, and what holds them."""
    return [call for call in calls if call.output is output]
