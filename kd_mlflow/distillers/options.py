"""What a method says of itself: its source, how sure the reading is, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_origin

from pydantic import Field, model_validator

from kd_mlflow.config import Options

Evidence = Literal["authors' code", "paper", "third-party code", "reconstruction"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a method comes from.

    Attributes
    ----------
    paper:
        Authors, title and venue.
    year:
        Of publication.
    evidence:
        What this implementation was held against; ``reconstruction`` where the source leaves the
        choices open, so that its published figures must not be quoted for it.
    link:
        An arXiv number, where there is one.
    """

    paper: str
    year: int
    evidence: Evidence
    link: str = ""


def setting(default: Any, text: str, **bounds: Any) -> Any:
    """A field of a method's options, with its help and its bounds."""
    return Field(default=default, description=text, **bounds)


class MethodOptions(Options):
    """A method's own options: frozen, checked, their help in the fields.

    A field becomes ``--METHOD-FIELD`` on the command line and ``method_options:`` in YAML. Fields named
    ``temperature`` are also set by the common ``--temperature``.
    """

    @model_validator(mode="before")
    @classmethod
    def _split(cls, values: Any) -> Any:
        """``1,2,3`` for a tuple, as the command line gives it."""
        if not isinstance(values, dict):
            return values
        split = dict(values)
        for name, field in cls.model_fields.items():
            if get_origin(field.annotation) is tuple and isinstance(values.get(name), str):
                split[name] = tuple(part for part in values[name].split(",") if part)
        return split


class SoftTargetOptions(MethodOptions):
    """Of methods that weigh softened targets against labels by one number, which ``--alpha`` sets too."""

    temperature: float = setting(4.0, "Temperature that softens both distributions.", gt=0)
    alpha: float = setting(0.7, "Weight of the distillation term; 1 - alpha on the cross-entropy.", ge=0, le=1)
