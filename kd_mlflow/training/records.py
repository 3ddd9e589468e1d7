"""Records of a teacher's outputs: as many bytes for every sample, whatever is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kd_mlflow.data.placing import to_device
from kd_mlflow.models.taps import Outputs

RecordPrecision = Literal["float16", "float32"]

# Up to so many classes every logit is kept, beyond it the largest and the mass of the rest.
WHOLE = 100
KEPT = 50


@dataclass(frozen=True)
class Codec:
    """How outputs become records and come back.

    Attributes
    ----------
    classes:
        K, the number of logits.
    pooled:
        D, the width of the pooled features; 0 if they are not kept.
    """

    classes: int
    pooled: int
    precision: RecordPrecision

    @property
    def dtype(self) -> np.dtype:
        """A record of one sample."""
        number = np.float16 if self.precision == "float16" else np.float32
        if self.classes <= WHOLE:
            fields = [("logits", number, (self.classes,))]
        else:
            place = np.uint16 if self.classes <= 2**16 else np.uint32
            fields = [("logits", number, (KEPT,)), ("rest", number), ("places", place, (KEPT,))]
        return np.dtype([*fields, ("pooled", number, (self.pooled,))] if self.pooled else fields)

    def fits(self, records: np.ndarray) -> bool:
        """Whether the records name no class that there is not."""
        return "places" not in records.dtype.names or int(records["places"].max(initial=0)) < self.classes

    def encode(self, outputs: Outputs) -> np.ndarray:
        """Records ``[B]`` of outputs with logits ``[B, K]`` and, if kept, pooled features ``[B, D]``."""
        logits = outputs.logits.detach().float()
        parts = {"logits": logits}
        if self.classes > WHOLE:
            parts["logits"], parts["places"] = logits.topk(KEPT, dim=1)
            parts["rest"] = logits.scatter(1, parts["places"], -torch.inf).logsumexp(dim=1)
        if self.pooled:
            parts["pooled"] = outputs.pooled.detach().float()
        records = np.zeros(len(logits), self.dtype)
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is_finite tells
            for name, values in parts.items():
                records[name] = values.cpu().numpy()
        return records

    def decode(self, records: np.ndarray, device: torch.device) -> Outputs:
        """The outputs in float32; classes that were not kept share the mass of the rest evenly."""
        kept = _tensor(records["logits"], device)
        logits = kept
        if self.classes > WHOLE:
            share = _tensor(records["rest"], device) - np.log(self.classes - KEPT)
            places = to_device(torch.from_numpy(records["places"].astype(np.int64)), device)
            logits = share[:, None].repeat(1, self.classes).scatter(1, places, kept)
        return Outputs(logits, _tensor(records["pooled"], device) if self.pooled else None)


def is_finite(records: np.ndarray) -> bool:
    """Whether every number came through; float16 ends at 65504."""
    return all(bool(np.isfinite(records[name]).all()) for name in records.dtype.names if name != "places")


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(values.astype(np.float32)), device)
