from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.stack import Team


@pytest.fixture(scope="session")
def team() -> Iterator[Team]:
    with tempfile.TemporaryDirectory(prefix="kd-team-") as folder:
        team = Team(Path(folder))
        yield team
        team.close()
