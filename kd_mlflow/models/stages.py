"""Where a network's stages end and what they end with, found by looking at one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleUnit

from kd_mlflow.models.calls import Call, record
from kd_mlflow.models.classifier import Classifier
from kd_mlflow.models.intermediates import library_maps
from kd_mlflow.models.layouts import CHANNELS_FIRST, CHANNELS_LAST, Layout, layout_of, token_layout

STAGES = 4
# So that five halvings of the resolution can be told apart.
SMALLEST_LOOK = 32
RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
ACTIVATIONS = (*RECTIFIERS, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Softplus)
PASSED_OVER = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.BatchNorm2d, nn.LayerNorm, nn.Dropout)
# timm's own names, some of which are classes of its own that do the same.
ACTIVATION_NAMES = frozenset({kind.__name__ for kind in ACTIVATIONS} | {"Swish", "HardSwish", "QuickGELU", "GELUTanh"})
# Its scale and shift follow a rectifier, and so may be applied to what came before it.
AFFINE_NAMES = frozenset({"LearnableAffineBlock"})
SUMS = frozenset({"add", "add_", "__add__", "__iadd__", "__radd__"})


@dataclass(frozen=True)
class Stage:
    """The end of a stage.

    Attributes
    ----------
    module, call, item:
        The map is what ``module`` returns at its ``call``-th call of a forward pass, from 0; of several values, that
        at place ``item``.
    layout:
        How the returned values become a map ``[B, C, H, W]``.
    activation:
        The module that made the map out of its pre-activation; None if none did.
    after:
        What stands between activation and map and is applied to the pre-activation instead: a max-pooling, which
        commutes with a rectifier, ``pool(relu(z)) = relu(pool(z))``, or a learned scale and shift.
    units:
        ShuffleNet's units, whose maps are woven from rectified halves.
    hidden:
        Rectified, but by nothing that can be tapped.
    overwritten:
        A later step works in place on the map.
    """

    module: nn.Module
    call: int
    item: int | None = None
    layout: Layout = CHANNELS_FIRST
    activation: nn.Module | None = None
    after: nn.Module | None = None
    units: tuple[ShuffleUnit, ...] = ()
    hidden: bool = False
    overwritten: bool = False

    def map_of(self, returned: Tensor | Sequence[Tensor]) -> Tensor:
        """The map ``[B, C, H, W]`` out of what ``module`` returned."""
        return self.layout.map_of(returned if self.item is None else returned[self.item])

    def activations(self) -> list[nn.Module]:
        """The modules whose inputs make up the pre-activation."""
        ends = [branch[-1] for unit in self.units for branch in (unit.branch1, unit.branch2) if len(branch)]
        return [self.activation] if self.activation is not None else ends

    @property
    def rectified(self) -> bool:
        """Whether the map has no negative values, by what made it."""
        scaled = self.after is not None and not isinstance(self.after, nn.MaxPool2d)
        return self.hidden or bool(self.units) or (isinstance(self.activation, (nn.ReLU, nn.ReLU6)) and not scaled)


def find_stages(model: Classifier) -> tuple[Stage, ...]:
    """The deepest four resolutions, each with the last block that has it; empty if there are none to be told apart.

    timm says of its networks what their features are. In others blocks are what stands directly in the body or in
    plain Sequentials; inside a block the resolution may change half-way, and there is nothing there to distil. Norms
    that only prepare the next stage, global pooling and all from the classifier on do not count. A body without such
    blocks is searched through and through. A transformer with one resolution has four stages of as many blocks each.
    """
    calls, maps = _look(model)
    places = _told(calls, maps)
    if len(places) < 2:
        blocks, modules = set(_blocks(model.body)), set(model.body.modules())
        places = _ends(calls, blocks) or _ends(calls, modules) or _quarters(calls, model.body)
    return tuple(_stage(calls, place, layout) for place, layout in places)


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


def quarters(count: int) -> list[int]:
    """The last places of each quarter of ``count``; all of them where there are no more than four."""
    return [round(count * (part + 1) / STAGES) - 1 for part in range(STAGES)] if count > STAGES else list(range(count))


Place = tuple[int, Layout]


def _look(model: Classifier) -> tuple[list[Call], list[Tensor]]:
    """All calls of one forward pass up to the classifier layer, and the features that timm tells."""
    size = model.spec.image_size
    try:
        return _look_at(model, max(size, SMALLEST_LOOK))
    except Exception:
        if size >= SMALLEST_LOOK:
            raise
        # Some networks take no size but their own, and say so by errors of many kinds.
        return _look_at(model, size)


def _look_at(model: Classifier, size: int) -> tuple[list[Call], list[Tensor]]:
    with eval_mode(model):
        images = noise(model, size)
        return record(model, images), library_maps(model.body, model.normalize(images))


def _told(calls: list[Call], maps: list[Tensor]) -> list[Place]:
    """Where in ``calls`` the features that timm tells come from: the last of each resolution, or quarters of one."""
    if len({features.shape[2] for features in maps}) > 1:
        last = {features.shape[2]: number for number, features in enumerate(maps)}
        chosen = [last[side] for side in sorted(last, reverse=True)][-STAGES:]
    else:
        chosen = quarters(len(maps))
    places = [_source(calls, maps, number) for number in chosen]
    return [place for place in places if place is not None]


def _source(calls: list[Call], maps: list[Tensor], number: int) -> Place | None:
    """The call that returned the features of this number, in any layout.

    A block that changes nothing before it is trained returns what the block before it did. So a call counts first if
    its class was called as often as there are features, and this is its turn; else the last call counts. Global pooling
    does not: of a map of one pixel it returns the same values.
    """
    layouts = ((place, layout_of(call.output, maps[number])) for place, call in enumerate(calls))
    matches = [
        (place, layout) for place, layout in layouts if layout is not None and not _averages(calls[place].module)
    ]
    rows: dict[tuple[type, int | None], list[int]] = {}
    for place, call in enumerate(calls):
        rows.setdefault((type(call.module), call.item), []).append(place)
    for place, layout in reversed(matches):
        row = rows[type(calls[place].module), calls[place].item]
        if len(row) == len(maps) and row[number] == place:
            return place, layout
    return matches[-1] if matches else None


def _averages(module: nn.Module) -> bool:
    return "Pool" in type(module).__name__ and not isinstance(module, nn.MaxPool2d)


def _blocks(module: nn.Module) -> list[nn.Module]:
    found = []
    for child in module.children():
        found.append(child)
        if type(child) is nn.Sequential:
            found += _blocks(child)
    return found


def _ends(calls: list[Call], candidates: set[nn.Module]) -> list[Place]:
    """Places in ``calls`` of the last map of each resolution, shallow to deep; none if there are fewer than two."""
    ends: dict[int, Place] = {}
    for place, call in enumerate(calls):
        layout = next((known for known in (CHANNELS_FIRST, CHANNELS_LAST) if known.fits(call.output.shape)), None)
        if layout is not None and call.module in candidates and not isinstance(call.module, PASSED_OVER):
            ends[call.output.shape[2]] = place, layout
    return [ends[size] for size in sorted(ends, reverse=True)][-STAGES:] if len(ends) > 1 else []


def _quarters(calls: list[Call], body: nn.Module) -> list[Place]:
    """Ends of the quarters of the longest row of alike modules that give tokens of one shape."""
    first = {call.module: place for place, call in reversed(list(enumerate(calls)))}
    rows = [[first[module] for module in row if module in first] for row in _alike(body)]
    alike = [row for row in rows if len(row) > 1 and len({calls[place].output.shape for place in row}) == 1]
    row = max(alike, key=len, default=[])
    layout = token_layout(calls[row[0]].output.shape) if row else None
    return [(row[place], layout) for place in quarters(len(row))] if layout is not None else []


def _alike(body: nn.Module) -> Iterator[list[nn.Module]]:
    """Modules of one class that stand in one list."""
    for container in body.modules():
        if isinstance(container, (nn.Sequential, nn.ModuleList)):
            for kind in dict.fromkeys(type(child) for child in container):
                yield [child for child in container if type(child) is kind]


def _stage(calls: list[Call], place: int, layout: Layout) -> Stage:
    end = calls[place]
    stage = Stage(end.module, end.number, end.item, layout, overwritten=end.output._version != end.version)
    made_by = _makers(calls[: place + 1], end.output)
    activation = next((call.module for call in made_by if _activates(call.module)), None)
    if activation is not None:
        return replace(stage, activation=activation)
    after = next((call for call in made_by if _keeps_order(call.module)), None)
    if after is not None:
        before = _makers(calls[:place], after.source)
        activation = next((call.module for call in before if isinstance(call.module, RECTIFIERS)), None)
        return replace(stage, activation=activation, after=after.module if activation is not None else None)
    if isinstance(end.module, nn.Sequential) and all(isinstance(unit, ShuffleUnit) for unit in end.module):
        return replace(stage, units=tuple(end.module))
    hidden = not stage.overwritten and end.function not in SUMS and bool((end.output >= 0).all())
    return replace(stage, hidden=hidden)


def _activates(module: nn.Module) -> bool:
    return isinstance(module, ACTIVATIONS) or type(module).__name__ in ACTIVATION_NAMES


def _keeps_order(module: nn.Module) -> bool:
    return isinstance(module, nn.MaxPool2d) or type(module).__name__ in AFFINE_NAMES


def _makers(calls: list[Call], output: Tensor | None) -> list[Call]:
    """The calls that returned this very tensor: its maker, what worked on it in place, and what holds them."""
    return [call for call in calls if call.output is output]
