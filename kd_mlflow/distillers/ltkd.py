"""LT-KD: a temperature learned against the student (Bao, Tong, Du and Wang, ICNC-FSKD 2024).

A reconstruction from the abstract on the ground of CTKD: the factor T² is kept out of the temperature's
gradient, so that the student sees ordinary distillation while T falls from a high start.
"""

from __future__ import annotations

from kd_mlflow.distillers.base import Context
from kd_mlflow.distillers.hosts import HostOptions, LearnedTemperature
from kd_mlflow.distillers.options import Source, setting
from kd_mlflow.distillers.temperatures import BoundedTemperature, require_bounds


class LTKDOptions(HostOptions):
    """Options of LT-KD."""

    difficulty: float = setting(1.0, "Factor μ of the temperature's reversed gradient.", ge=0)
    t2_in_graph: bool = setting(False, "Let the factor T² move the temperature, too, as in CTKD.")


class LTKD(LearnedTemperature):
    """A temperature learned against the student, from high to low (reconstruction)."""

    source = Source("Bao, Tong, Du, Wang: LT-KD, ICNC-FSKD", 2024, "reconstruction")
    Options = LTKDOptions

    def __init__(self, context: Context, options: LTKDOptions) -> None:
        require_bounds("ltkd", options.lowest, options.highest)
        temperature = BoundedTemperature(options.lowest, options.highest, options.start)
        super().__init__(context, options, temperature, strength=options.difficulty, t2_in_graph=options.t2_in_graph)
