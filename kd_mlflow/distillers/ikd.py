"""Individual knowledge distillation, the counterpart of RKD (Belinga et al., 2024; Park et al., CVPR 2019)."""

from __future__ import annotations

from kd_mlflow.distillers.kd import KD
from kd_mlflow.distillers.options import Source


class IKD(KD):
    """Matches every sample's own output, for classification plain KD: what RKD is compared with."""

    source = Source(
        "Belinga et al.: individual and relational distillation compared, Computers 13(8)", 2024, "paper", "1904.05068"
    )
