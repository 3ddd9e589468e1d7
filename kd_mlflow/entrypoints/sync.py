"""`sync`: send what earlier commands could not."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from kd_mlflow.entrypoints.places import home
from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.spool import send_left


def sync(tracking_uri: str = "") -> dict[str, Any]:
    """Send the curves that wait on this machine to the store; what belongs to another one stays.

    Raises
    ------
    InputError
        The store cannot be reached.
    """
    found = send_left(connect(tracking_uri), home() / "spool")
    return {
        "sent": [asdict(one) for one in found if not one.error],
        "kept": [asdict(one) for one in found if one.error],
    }
