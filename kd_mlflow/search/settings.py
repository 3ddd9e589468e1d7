"""What makes a study that study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kd_mlflow.config import SearchConfig
from kd_mlflow.errors import InputError
from kd_mlflow.search.objectives import Constraint, Objective
from kd_mlflow.search.space import Space

# Options that say where, when and how much, not what is searched: they may differ when a study goes on.
PLACE = {
    *("trials", "search", "space", "timeout", "heartbeat", "study", "storage", "checkpoints", "workers", "engine"),
    *("final_seeds", "experiment", "tracking_uri", "device", "name", "register_model", "reuse", "data", "cache_gb"),
    "follow_links",
}


@dataclass(frozen=True)
class Settings:
    """What makes a study that study: it cannot change when the study goes on.

    Attributes
    ----------
    config:
        The resolved options, as plain types.
    report:
        The source report's own values for what is searched.
    """

    config: dict[str, Any]
    space: list[dict[str, Any]]
    objectives: list[dict[str, str]]
    constraints: list[dict[str, Any]]
    report: dict[str, Any]
    dataset_digest: str

    @classmethod
    def of(
        cls,
        config: SearchConfig,
        space: Space,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
        report: Mapping[str, Any],
        dataset_digest: str,
    ) -> Settings:
        """The settings of a new study."""
        return cls(
            config.recorded(),
            space.to_json(),
            [asdict(one) for one in objectives],
            [asdict(one) for one in constraints],
            dict(report),
            dataset_digest,
        )

    @property
    def identity(self) -> list[Any]:
        """All that two studies must share to be one, besides the data."""
        config = {name: value for name, value in self.config.items() if name not in PLACE}
        return [config, self.space, self.objectives, self.constraints]

    def require_same(self, asked: Settings, name: str) -> None:
        """Raise an InputError that says what differs, unless ``asked`` is the same search."""
        if different := asked.difference(self):
            raise InputError(
                f"The study '{name}' searches something else than is asked for now: {different}; "
                "go on with it as it was, or choose another --study."
            )

    def difference(self, other: Settings) -> str:
        """In a few words all that differs; empty when both search the same."""
        found = []
        if self.space != other.space:
            ours, theirs = (", ".join(map(str, Space.from_json(one.space).parameters)) for one in (self, other))
            found.append(f"another space ({ours}, not {theirs})")
        if self.dataset_digest != other.dataset_digest:
            found.append("other data")
        terms = ("objectives", "constraints")
        found += [f"other {name}" for name in terms if getattr(self, name) != getattr(other, name)]
        for name, value in self.config.items():
            if name not in PLACE and other.config.get(name) != value:
                found.append(f"--{name.replace('_', '-')} {value}, not {other.config.get(name)}")
        return ", ".join(found)
