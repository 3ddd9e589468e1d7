"""Curriculum temperature (Li et al., AAAI 2023, arXiv 2211.16231)."""

from __future__ import annotations

from dataclasses import replace

from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.hosts import HostOptions, LearnedTemperature
from kd_mlflow.distillers.options import Source, setting
from kd_mlflow.distillers.temperatures import BoundedTemperature, InstanceTemperature, require_bounds


class CTKDOptions(HostOptions):
    """Options of CTKD."""

    instance: bool = setting(
        False,
        "A temperature for each sample, from the standardized logits of both networks: a reconstruction, since the "
        "authors' code has no such form.",
    )


class CTKD(LearnedTemperature):
    """A temperature learned to make the task harder for the student, with growing strength."""

    source = Source(
        "Li, Li, Yang, Zhao, Song, Luo, Li, Yang: Curriculum Temperature for Knowledge Distillation, AAAI",
        2023,
        "authors' code",
        "2211.16231",
    )
    Options = CTKDOptions

    def __init__(self, context: Context, options: CTKDOptions) -> None:
        require_bounds("ctkd", options.lowest, options.highest)
        if options.instance:
            # What is recorded and reported of this run, not of the method.
            self.source = replace(self.source, evidence="reconstruction")
            temperature = InstanceTemperature(options.lowest, options.highest, options.start, context.num_classes)
        else:
            temperature = BoundedTemperature(options.lowest, options.highest, options.start)
        super().__init__(context, options, temperature, strength=1.0, t2_in_graph=True)
