"""What a network shows of its inside: pooled features, stage maps, maps before their last activation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd_mlflow.errors import InputError
from kd_mlflow.models.architectures import is_factory
from kd_mlflow.models.classifier import Classifier, LinearHead
from kd_mlflow.models.heads import logits_are_the_heads_mean, mean_over_positions
from kd_mlflow.models.stages import Stage, eval_mode, find_stages, noise

NEEDS: frozenset[str] = frozenset({"logits", "pooled", "stages", "preactivations"})


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a tapped network gives; parts that were not asked for are None.

    Attributes
    ----------
    logits:
        ``[B, K]``.
    pooled:
        ``[B, D]``, the input of the classifier layer, before its dropout; averaged over space when the
        classifier is asked at every position. Inputs of several classifier layers are joined.
    stages:
        Up to four maps ``[B, C, H, W]``, the last of each resolution, from shallow to deep; in transformers with one
        resolution, those at the ends of four parts of the same depth, without the class token.
    preactivations:
        The same maps before their last activation. A stage that ends without one (a linear bottleneck,
        a residual sum) gives its map as it is.
    """

    logits: Tensor
    pooled: Tensor | None = None
    stages: list[Tensor] | None = None
    preactivations: list[Tensor] | None = None


class TapRefused(InputError):
    """A network has no such tap.

    Attributes
    ----------
    taps:
        The names of those that cannot be had.
    """

    def __init__(self, architecture: str, taps: Set[str], reason: str, remedy: str = "choose another method") -> None:
        super().__init__(f"'{architecture}' {reason}; {remedy}.")
        self.architecture, self.taps, self.reason = architecture, frozenset(taps), reason


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of the taps at the network's image size: D (0 without a classifier layer), (C, H, W) of every stage."""

    pooled: int
    stages: tuple[tuple[int, int, int], ...]


class Tapped:
    """A network together with the taps that a method needs.

    Nothing is attached for logits alone. Taps are hooks that are there for the length of a call, so
    that the network stays what it was; its logits are the same with and without them. ``logits`` is another form of
    the network, which is asked where nothing but logits is needed.

    Raises
    ------
    InputError
        The network has no classifier layer or no stages to tap, or rectifies where it cannot be tapped.
    """

    def __init__(
        self, model: Classifier, needs: frozenset[str], logits: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        unknown = needs - NEEDS
        if unknown:
            raise ValueError(f"unknown taps {sorted(unknown)}")
        self.model = model
        self.needs = needs
        self.logits = logits or model
        self._stages: tuple[Stage, ...] = ()
        name = model.spec.architecture
        if "pooled" in needs:
            _check_pooled(model)
        if needs & {"stages", "preactivations"}:
            self._stages = find_stages(model)
        if not self._stages and needs & {"stages", "preactivations"}:
            raise TapRefused(name, needs & {"stages", "preactivations"}, "has no stages of maps that could be tapped")
        if "preactivations" in needs and any(stage.hidden for stage in self._stages):
            reason = (
                "has no pre-activations that could be tapped, since its blocks end with several joined or with "
                "functions instead of modules"
            )
            raise TapRefused(name, {"preactivations"}, reason)

    @property
    def widths(self) -> Widths:
        """Found by looking at one image, not typed in."""
        stages = self._stages or find_stages(self.model)
        taps = _Taps(self.model.heads, stages, preactivations=False)
        with eval_mode(self.model), taps.attached():
            self.model(noise(self.model, self.model.spec.image_size))
        pooled = 0 if taps.pooled is None else taps.pooled.shape[1]
        maps = [taps.maps[stage].shape for stage in stages]
        return Widths(pooled, tuple((channels, height, width) for _, channels, height, width in maps))

    def __call__(self, images: Tensor) -> Outputs:
        """Outputs for images ``[B, 3, H, W]`` in pixel units."""
        if not self.needs - {"logits"}:
            return Outputs(self.logits(images))
        heads = self.model.heads if "pooled" in self.needs else ()
        taps = _Taps(heads, self._stages, preactivations="preactivations" in self.needs)
        with taps.attached():
            logits = self.model(images)
        return Outputs(
            logits,
            taps.pooled,
            [taps.maps[stage] for stage in self._stages] if "stages" in self.needs else None,
            [taps.before[stage] for stage in self._stages] if "preactivations" in self.needs else None,
        )


class _Taps:
    """What is caught during one forward pass."""

    def __init__(self, heads: tuple[nn.Module, ...], stages: tuple[Stage, ...], *, preactivations: bool) -> None:
        self.heads = heads
        self.stages = stages
        self.activations = {module for stage in stages for module in stage.activations()} if preactivations else set()
        self.preactivations = preactivations
        self.features: dict[nn.Module, Tensor] = {}
        self.maps: dict[Stage, Tensor] = {}
        self.before: dict[Stage, Tensor] = {}
        self._latest: dict[nn.Module, Tensor] = {}
        self._calls: Counter[nn.Module] = Counter()

    @property
    def pooled(self) -> Tensor | None:
        """``[B, D]``; None when the classifier layers were not watched."""
        features = [self.features[head] for head in self.heads]
        return torch.cat(features, dim=1) if len(features) > 1 else next(iter(features), None)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on the taps, and activations that leave their inputs alone, for a while."""
        with ExitStack() as stack:
            for head in self.heads:
                stack.enter_context(head.register_forward_pre_hook(self._at_head))
            for module in self.activations:
                stack.enter_context(_out_of_place(module))
                stack.enter_context(module.register_forward_pre_hook(self._at_activation))
            for module in {stage.module for stage in self.stages}:
                stack.enter_context(module.register_forward_hook(self._at_stage))
            yield

    def _at_head(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.features[head] = mean_over_positions(head, inputs[0])

    def _at_activation(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A block may call one activation several times; at its end this is the call that ended it.
        self._latest[module] = inputs[0]

    def _at_stage(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | Sequence[Tensor]) -> None:
        number = self._calls[module]
        self._calls[module] += 1
        for stage in self.stages:
            if stage.module is module and stage.call == number:
                maps = stage.map_of(output)
                self.maps[stage] = maps.clone() if stage.overwritten else maps
                if self.preactivations:
                    self.before[stage] = self._preactivation(stage)

    def _preactivation(self, stage: Stage) -> Tensor:
        if stage.units:
            return self._woven(stage)
        if stage.activation is None:
            return self.maps[stage]
        before = self._latest[stage.activation]
        # Past the module's hooks, which belong to the forward pass.
        return stage.layout.map_of(before if stage.after is None else stage.after.forward(before))

    def _woven(self, stage: Stage) -> Tensor:
        """ShuffleNet's units: one half is the branch, the other the left half of what came in (or a branch too)."""
        woven = None
        for unit in stage.units:
            if unit.stride == 1 and woven is not None:
                left = woven.chunk(2, dim=1)[0]
            else:
                left = self._latest[unit.branch1[-1]]
            both = torch.cat((left, self._latest[unit.branch2[-1]]), dim=1)
            woven = nn.functional.channel_shuffle(both, 2)
        return woven


def _check_pooled(model: Classifier) -> None:
    """Refuse a network whose logits are not what its classifier layers answer to the pooled features.

    A person's own network may go on to change their answer; SqueezeNet, whose classifier is a convolution in front of
    a rectifier, is let through too: its features are what the layer sees.
    """
    name = model.spec.architecture
    if not model.heads:
        raise TapRefused(name, {"pooled"}, "has no classifier layer whose input could be tapped")
    linear = all(isinstance(head, LinearHead) for head in model.heads)
    if linear and not is_factory(name) and not logits_are_the_heads_mean(model):
        reason = "has no pooled features that could be tapped, since other layers than its classifier add to the logits"
        raise TapRefused(name, {"pooled"}, reason)


@contextmanager
def _out_of_place(module: nn.Module) -> Iterator[None]:
    """For a while an activation leaves its input alone, so that the input can be kept."""
    inplace = getattr(module, "inplace", False)
    if inplace:
        module.inplace = False
    try:
        yield
    finally:
        if inplace:
            module.inplace = True
