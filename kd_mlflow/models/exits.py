"""Networks with exits: a small classifier behind every stage, and how their answers become one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier, Exits
from kd_mlflow.models.stages import eval_mode, find_stages, noise
from kd_mlflow.models.taps import Tapped, _Taps

BOTTLENECK = 128
# Votes that all classes share, so that no class has probability 0.
FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class ExitOutputs:
    """What all E exits say, from shallow to deep; the last is the network's own head.

    Attributes
    ----------
    logits:
        E times ``[B, K]``.
    features:
        E times ``[B, D]``, the inputs of the linear layers that make the logits.
    """

    logits: list[Tensor]
    features: list[Tensor]


def soft_vote(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the exits' probabilities, ``[B, K]``, from E times ``[B, K]`` logits."""
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    each = torch.stack([F.log_softmax(own, dim=1, dtype=wide) for own in logits])
    return each.logsumexp(dim=0) - math.log(len(logits))


def vote(logits: Sequence[Tensor]) -> Tensor:
    """Log of each class's share of the votes, ``[B, K]``, one vote an exit; ties fall to the deepest exit.

    Exit e of E, from 0, weighs ``1 + 2^e / 2^(E+1)``: the fractions of all exits make less than half a
    vote, and that of one exit more than those of all before it.
    """
    count, classes = len(logits), logits[0].shape[1]
    numbers = torch.arange(classes, device=logits[0].device)
    votes = sum(
        (own.argmax(dim=1, keepdim=True) == numbers).float() * (1 + 2 ** (e - count - 1))
        for e, own in enumerate(logits)
    )
    total = count + (1 - 2**-count) / 2
    return ((votes + FLOOR / classes) / (total + FLOOR)).log()


class ExitBranch(nn.Module):
    """From a stage's map ``[B, C, H, W]`` to features ``[B, D]`` and logits ``[B, K]``.

    A bottleneck as in BYOT (Zhang et al. 2019): 1x1 to 128 channels, ``window`` x ``window`` with that stride,
    1x1 to D, each with BatchNorm and ReLU; then the mean over space and a linear layer.
    """

    def __init__(self, channels: int, window: int, width: int, classes: int) -> None:
        super().__init__()
        self.bottleneck = nn.Sequential(
            *_convolution(channels, BOTTLENECK, 1),
            *_convolution(BOTTLENECK, BOTTLENECK, window),
            *_convolution(BOTTLENECK, width, 1),
        )
        self.head = nn.Linear(width, classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        features = self.bottleneck(maps).mean(dim=(2, 3))
        return features, self.head(features)


class ExitBranches(nn.ModuleList):
    """The branches of a network, one for every stage before the last.

    A window is as wide as the stage's map is larger than the last one's: 8, 4, 2 for ResNets at 224 px.

    Raises
    ------
    InputError
        The network has no classifier layer, fewer than two stages, or not the exit that its spec names.
    """

    def __init__(self, network: Classifier) -> None:
        spec = network.spec
        tapped = Tapped(network, frozenset({"stages", "pooled"}))
        with eval_mode(network):
            seen = tapped(noise(network, spec.image_size))
        _check_mode(spec.exits, len(seen.stages), spec.architecture)
        width, last_side = seen.pooled.shape[1], seen.stages[-1].shape[2]
        super().__init__(
            ExitBranch(maps.shape[1], _window(maps.shape[2], last_side), width, network.num_classes)
            for maps in seen.stages[:-1]
        )
        self._stages = find_stages(network)
        # In a tuple, so that it does not become a submodule: the network holds its exits, not they the network.
        self._network = (network,)

    def forward(self, images: Tensor) -> ExitOutputs:
        """All exits for images ``[B, 3, H, W]`` in pixel units, in one pass through the network."""
        (network,) = self._network
        taps = _Taps(network.heads, self._stages, preactivations=False)
        with taps.attached():
            last = network.body(network.normalize(images))
        early = [branch(taps.maps[stage]) for branch, stage in zip(self, self._stages, strict=False)]
        return ExitOutputs([*[logits for _, logits in early], last], [*[own for own, _ in early], taps.pooled])

    def answer(self, images: Tensor) -> Tensor:
        """The one ``[B, K]`` that the network's spec names."""
        logits, mode = self(images).logits, self._network[0].spec.exits
        if mode == "soft":
            return soft_vote(logits)
        if mode == "hard":
            return vote(logits)
        return logits[-1] if mode == "final" else logits[int(mode.removeprefix("exit")) - 1]


def with_exits(model: Classifier, mode: Exits, seed: int) -> Classifier:
    """The same body with fresh branches, which depend on the seed alone; torch's generator is left as it was.

    Parameters
    ----------
    mode:
        Which answer the network gives (see :class:`kd_mlflow.models.classifier.ModelSpec`).

    Raises
    ------
    InputError
        The network cannot have exits, or not this one.
    """
    made = _sharing(model, mode)
    if mode == "none":
        return made
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        branches = ExitBranches(made)
    made.exits = branches.to(model.mean.device, model.mean.dtype).train(model.training)
    return made


def plain(model: Classifier) -> Classifier:
    """The same body without exits."""
    return _sharing(model, "none")


def _sharing(model: Classifier, mode: Exits) -> Classifier:
    """Another network around the same body and buffers, in the same mode."""
    made = Classifier(model.spec.model_copy(update={"exits": mode}), model.body)
    made.mean, made.std = model.mean, model.std
    made.run_id, made.frozen, made.training = model.run_id, model.frozen, model.training
    return made


def _check_mode(mode: Exits, count: int, architecture: str) -> None:
    possible = ["final", "soft", "hard", *[f"exit{number}" for number in range(1, count)]]
    if mode not in possible:
        raise InputError(f"'{architecture}' has no '{mode}' among its {count} exits; use {', '.join(possible)}.")


def _window(side: int, last_side: int) -> int:
    return min(side, max(1, round(side / last_side)))


def _convolution(channels: int, width: int, window: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, window, window, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
