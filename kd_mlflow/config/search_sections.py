"""The sections of options that only searches have."""

from __future__ import annotations

from typing import Literal

from kd_mlflow.config.fields import SEEDS, Names, Options, Terms, option


class SearchOptions(Options):
    """What is searched, by what, and for how long."""

    trials: int = option(
        20,
        "Finished trials the study shall have in all: complete, pruned or failed by an error.",
        panel="Search",
        common=True,
        ge=1,
        le=100_000,
    )
    search: Terms = option(
        (),
        "A parameter and where to look: temperature=1:20:log, batch-size=32,64, method=kd,dkd, dkd-beta=0.5:8, or one "
        "value to fix it; several with blanks between. Changes or adds to temperature, alpha and learning rate.",
        panel="Search",
        common=True,
        separator=" ",
    )
    space: str = option("", "A YAML file with the whole space, instead of those three.", panel="Search")
    objectives: Names = option(
        ("val/accuracy",),
        "A validation or efficiency metric, or several for a Pareto set; NAME:min or NAME:max where it is not plain.",
        panel="Search",
        common=True,
        min_length=1,
    )
    constraint: Terms = option(
        (),
        "What a trial must keep to: efficiency/latency_ms_b1_median<5; several with blanks between.",
        panel="Search",
        separator=" ",
    )
    seeds: int = option(1, "Seeds each trial is averaged over, from --seed on.", panel="Search", ge=1, le=100)
    final_seeds: int = option(
        3, "Seeds, none of them the search's, on which the best is trained again; 0 for none.", panel="Search", ge=0
    )
    sampler: Literal["tpe", "gp", "random", "grid", "qmc", "cmaes"] = option(
        "tpe", "How the next trial is chosen.", panel="Search", common=True
    )
    pruner: Literal["hyperband", "median", "percentile", "wilcoxon", "none"] = option(
        "hyperband", "How hopeless trials are found early.", panel="Search", common=True
    )
    sampler_seed: int = option(0, "Seed of the sampler.", panel="Search", ge=0, le=SEEDS)
    timeout: float = option(0.0, "Seconds after which no trial goes on; 0 for no limit.", panel="Search", ge=0)
    heartbeat: int = option(
        30,
        "Seconds between two signs of life; a worker silent for four times as long is taken for dead.",
        panel="Search",
        ge=1,
    )


class StudyOptions(Options):
    """Where the study is kept, and its name."""

    study: str = option(
        "", "Name of the study; empty: made from the data and from what is searched.", panel="Search", common=True
    )
    storage: str = option(
        "",
        "sqlite:///FILE or postgresql://… for many machines; empty: KD_MLFLOW_STORAGE or optuna.db beside mlflow.db.",
        panel="Search",
        common=True,
    )
    checkpoints: str = option(
        "",
        "Folder or URL that all workers reach, where a trial's checkpoints lie; empty: KD_MLFLOW_CHECKPOINTS, else "
        "KD_MLFLOW_HOME.",
        panel="Search",
    )


class WorkerOptions(Options):
    """Who does the trials."""

    workers: int = option(
        1,
        "Processes on this machine that do trials; 0 leaves them to `search-worker` elsewhere.",
        panel="Search",
        common=True,
        ge=0,
        le=1024,
    )
    engine: Literal["processes", "ray"] = option("processes", "What starts the workers.", panel="Search")
