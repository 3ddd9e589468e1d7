"""What options are made of: a frozen model, fields with their help, lists as the command line gives them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SEEDS = 2**32 - 1


def _split_names(value: Any) -> Any:
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


# One name or several with commas between, as the command line and MLproject give them.
Names = Annotated[tuple[str, ...], BeforeValidator(_split_names)]


def _split_terms(value: Any) -> Any:
    return tuple(value.replace(";", " ").split()) if isinstance(value, str) else value


# Terms that may hold commas themselves, with blanks or semicolons between: temperature=1:20 method=kd,dkd.
Terms = Annotated[tuple[str, ...], BeforeValidator(_split_terms)]


class Options(BaseModel):
    """A frozen set of options that refuses names it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def recorded(self) -> dict[str, Any]:
        """What may be written down, as plain types: all but the places, whose URLs may hold passwords."""
        return self.model_dump(mode="json", exclude={"tracking_uri", "offline", "storage", "checkpoints"})


def option(
    default: Any, text: str, *, panel: str | None, common: bool = False, separator: str = ",", **bounds: Any
) -> Any:
    """A field with its help, the panel it is listed under (None: no option of its own), whether MLproject names it.

    ``separator`` stands between the values of a list that is given as several options.
    """
    extra = {"panel": panel, "common": common, "separator": separator}
    return Field(default=default, description=text, json_schema_extra=extra, **bounds)
