"""Sampler and pruner of a study, set explicitly and drawn anew for every slot."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import pruners, samplers

from kd_mlflow.config import SearchConfig
from kd_mlflow.errors import InputError
from kd_mlflow.search.objectives import Objective
from kd_mlflow.search.space import Space

# They need every parameter in every trial.
WHOLE = ("gp", "cmaes", "qmc")
# The fewest with which a trial can be told to be worse before its last seed: four pairs give p = 0.0625 at best.
WILCOXON_SEEDS = 5


def check_search(
    config: SearchConfig, space: Space, objectives: Sequence[Objective], report: Mapping[str, Any]
) -> list[str]:
    """What of sampler and pruner does not fit; returns what a person should be told.

    Raises
    ------
    InputError
        The sampler cannot search this space, or the pruner these seeds.
    """
    outside = [f"{name} {value}" for name, value in space.outside(report).items()]
    if config.sampler in WHOLE and (space.conditional or outside):
        why = "with parameters of single methods" if space.conditional else f"without the report's {outside[0]}"
        raise InputError(f"--sampler {config.sampler} cannot search a space {why}; use tpe, random or grid.")
    if config.sampler == "cmaes" and (len(objectives) > 1 or any(one.kind == "choice" for one in space.parameters)):
        raise InputError("--sampler cmaes searches numbers for one objective; use tpe.")
    if config.pruner == "wilcoxon" and config.seeds < WILCOXON_SEEDS:
        raise InputError(f"--pruner wilcoxon compares seeds; give --seeds {WILCOXON_SEEDS} or more, or another pruner.")
    notes = []
    if prunes(config, objectives):
        return notes
    if config.pruner != "none" and len(objectives) > 1:
        notes.append("With several objectives no trial is pruned.")
    elif config.pruner not in ("none", "wilcoxon"):
        notes.append(f"No trial is pruned: {objectives[0].name} is not measured every epoch.")
    return notes


def prunes(config: SearchConfig, objectives: Sequence[Objective]) -> bool:
    """Whether trials can be pruned at all."""
    if config.pruner == "none" or len(objectives) > 1:
        return False
    return config.pruner == "wilcoxon" or objectives[0].measured_every_epoch


def make_sampler(config: SearchConfig, space: Space, objectives: int, slot: int, report_inside: bool) -> Any:
    """The sampler of one slot, seeded from (seed, slot): a study taken up again draws what it would have drawn."""
    seed = slot_seed(config.sampler_seed, slot)
    match config.sampler:
        case "tpe":
            multivariate = objectives == 1
            group = multivariate and (space.conditional or not report_inside)
            return samplers.TPESampler(seed=seed, multivariate=multivariate, group=group, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "qmc":
            # Its place in the sequence is kept in the storage: the sequence must stay the same one.
            return samplers.QMCSampler(
                seed=config.sampler_seed,
                scramble=True,
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
    return samplers.RandomSampler(seed=seed)


def make_pruner(config: SearchConfig, objectives: Sequence[Objective]) -> Any:
    """The pruner; a step is an epoch, or for Wilcoxon a seed."""
    if not prunes(config, objectives):
        return pruners.NopPruner()
    epochs = config.epochs * config.seeds
    match config.pruner:
        case "hyperband":
            return pruners.HyperbandPruner(min_resource=1, max_resource=epochs, reduction_factor=3)
        case "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=math.ceil(epochs / 5))
        case "percentile":
            return pruners.PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=math.ceil(epochs / 5))
    return pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=2)


def grid_points(config: SearchConfig, space: Space, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's values, then the grid in an order that the sampler's seed decides; empty for other samplers."""
    if config.sampler != "grid":
        return []
    points = [point for point in space.grid(config.method) if point != report]
    random.Random(config.sampler_seed).shuffle(points)  # nosec B311  # an order that can be repeated, no secret
    return [dict(report), *points]


def slot_seed(seed: int, slot: int) -> int:
    """32 bits out of both."""
    return int.from_bytes(hashlib.sha256(f"{seed} {slot}".encode()).digest()[:4], "big")
