"""The names of the methods and where each is found; nothing heavy is imported for them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

GROUP = "kd_mlflow.distillers"
CONTROL = "labels"
METHODS = {
    "labels": "labels:Labels",
    "kd": "kd:KD",
    "fnkd": "fnkd:FNKD",
    "tskd": "tskd:TSKD",
    "ikd": "ikd:IKD",
    "rkd": "rkd:RKD",
    "ltkd": "ltkd:LTKD",
    "ctkd": "ctkd:CTKD",
    "ttsd": "ttsd:TTSD",
    "iakd": "iakd:IAKD",
    "kdfm": "kdfm:KDFM",
    "emkd": "emkd:EMKD",
    "joint": "joint:Joint",
    "dkd": "dkd:DKD",
    "lskd": "lskd:LSKD",
    "mlkd": "mlkd:MLKD",
    "dist": "dist:DIST",
    "fitnet": "fitnet:FitNet",
    "at": "at:AT",
    "sp": "sp:SP",
    "pkt": "pkt:PKT",
    "vid": "vid:VID",
    "crd": "crd:CRD",
    "reviewkd": "reviewkd:ReviewKD",
    "ofd": "ofd:OFD",
    "dml": "dml:DML",
    "byot": "byot:BYOT",
    "patient": "patient:Patient",
}


@lru_cache(maxsize=1)
def foreign() -> Mapping[str, EntryPoint]:
    """Methods that other installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in METHODS}


def method_names() -> list[str]:
    """Every method that can be asked for, in alphabetical order; nothing is imported for it."""
    return sorted({*METHODS, *foreign()} - {CONTROL})
