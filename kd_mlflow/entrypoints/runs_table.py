"""`runs`: the store's runs as a leaderboard."""

from __future__ import annotations

from typing import Any

from kd_mlflow.tracking.client import connect
from kd_mlflow.tracking.leaderboard import leaderboard


def list_runs(
    tracking_uri: str = "",
    *,
    role: str | None = None,
    status: str | None = None,
    experiment: str | None = None,
    filter_string: str = "",
    sort: str = "val_accuracy",
    ascending: bool = False,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """One object a run, in all states, best first."""
    return leaderboard(
        connect(tracking_uri, any_version=True),
        role=role,
        status=status,
        experiment=experiment,
        filter_string=filter_string,
        sort=sort,
        ascending=ascending,
        limit=limit,
    )
