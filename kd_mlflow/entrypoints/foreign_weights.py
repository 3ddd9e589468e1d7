"""Weights files that do not say how their network wants its pixels: measured on validation, said, and kept."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kd_mlflow.entrypoints.candidates import (
    AS_IT_IS,
    CLEARLY,
    SURELY,
    Candidate,
    Measured,
    Reading,
    above_chance,
    ahead,
    known_orders,
    measure,
    normalization_candidates,
    other_order,
    right,
)
from kd_mlflow.entrypoints.fingerprint import view_code_digest
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.errors import InputError
from kd_mlflow.models.classifier import Classifier, ModelSpec
from kd_mlflow.models.rearrange import sort_head, turn_channels
from kd_mlflow.models.zoo import Triple, build, stored_normalization
from kd_mlflow.tracking.runs import RunWriter
from kd_mlflow.training.checkpoint import file_sha256

log = logging.getLogger(__name__)

# Raised by hand when the same file may come out otherwise.
VERSION = 1
SHOWN = 4


class Preparation(BaseModel):
    """How a weights file is used on this data.

    Attributes
    ----------
    normalization:
        What its mean and std are called.
    channels:
        ``bgr`` where the first convolution was turned round to take red, green, blue.
    class_order:
        What the order of the file's classes is called; empty where it is the data's.
    rows:
        For every class of the data the row of the file's last layer; empty where that is its own.
    sentences:
        What a person is told.
    warned:
        Whether that should not be missed.
    candidates:
        What was compared: a row each with its accuracy on validation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    normalization: str
    mean: Triple
    std: Triple
    channels: Literal["rgb", "bgr"] = "rgb"
    class_order: str = AS_IT_IS
    rows: tuple[int, ...] = ()
    sentences: tuple[str, ...] = ()
    warned: bool = False
    candidates: tuple[dict[str, Any], ...] = ()

    @property
    def identity(self) -> str:
        """What of it decides the weights that are used."""
        return repr((self.mean, self.std, self.channels, self.rows))

    @property
    def tags(self) -> dict[str, str]:
        """For a run that uses the file, without a prefix."""
        return {
            "normalization": self.normalization,
            "channels": self.channels,
            "class_order": self.class_order or "as the data's",
        }

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """The description of a network with this normalization."""
        return spec.model_copy(update={"mean": self.mean, "std": self.std})

    def apply(self, model: Classifier) -> Classifier:
        """The file's network, turned to red, green, blue and to the data's classes; changes and returns it."""
        if self.channels == "bgr" and not turn_channels(model):
            raise InputError(f"The channels of {self.file} cannot be turned round; convert it to take RGB images.")
        if self.rows and not sort_head(model, self.rows):
            raise InputError(f"The classes of {self.file} cannot be sorted; put its last layer's rows into order.")
        return model


def preparation(
    session: Session, spec: ModelSpec, file: str, *, choice: str, default: str, side: str, whole: bool = False
) -> Preparation | None:
    """How to use a weights file; None for one whose pixels and classes are this package's own, or no file.

    Said once a command, and measured once a machine.

    Parameters
    ----------
    spec:
        The network, with the normalization that is used unless another is clearly better.
    choice:
        The option: ``auto`` measures where the file does not say.
    default:
        What the normalization of ``spec`` is called if it is not the file's own.
    side:
        ``teacher`` or ``student``.
    whole:
        Whether the file must hold the classifier too.

    Raises
    ------
    InputError
        The file does not fit the network.
    """
    path = Path(file)
    if file in ("none", "imagenet") or not path.is_file():
        return None
    key = _key(session, spec, path, choice, default, side)
    if key not in session.preparations:
        found = _kept(session, key) or _keep(session, key, _prepare(session, spec, path, choice, default, side, whole))
        session.preparations[key] = found
        for sentence in found.sentences if found else ():
            (session.terminal.warn if found.warned else session.terminal.say)(sentence)
    found = session.preparations[key]
    return None if found.normalization == "" else found


def record_preparations(writer: RunWriter, used: Sequence[Preparation], whose: str, suffix: str = "") -> None:
    """The choice as tags (several with commas between), the table of what was compared as an artifact.

    Parameters
    ----------
    whose:
        ``teacher``, or ``start`` for the weights that a training starts from.
    suffix:
        Of tags and file, where a run has several data sets.
    """
    if not used:
        return
    names = dict.fromkeys(name for one in used for name in one.tags)
    writer.tags({f"kd.{whose}_{name}{suffix}": ",".join(one.tags[name] for one in used) for name in names})
    writer.json(f"{whose}_weights{suffix}.json", [one.model_dump(mode="json") for one in used])


def notes_of(used: Sequence[Preparation]) -> list[str]:
    """What the report says of them."""
    return [sentence for one in used for sentence in one.sentences]


def _key(session: Session, spec: ModelSpec, path: Path, *facts: str) -> str:
    everything = (VERSION, file_sha256(path), str(path), spec.model_dump_json(), session.store.digest)
    content = repr((*everything, session.precision, session.device.type, view_code_digest(), facts))
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _kept(session: Session, key: str) -> Preparation | None:
    try:
        return Preparation.model_validate_json((session.home / "weights-files" / f"{key}.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _keep(session: Session, key: str, made: Preparation) -> Preparation:
    """Written whole or not at all; without it the file is measured again, no worse."""
    target = session.home / "weights-files" / f"{key}.json"
    beside = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(made.model_dump_json(), encoding="utf-8")
        os.replace(beside, target)
    except OSError as error:
        log.info("%s cannot be written: %s", target, error)
    return made


def _prepare(
    session: Session, spec: ModelSpec, path: Path, choice: str, default: str, side: str, whole: bool
) -> Preparation:
    stored = stored_normalization(spec.architecture, path) if choice == "auto" else None
    name = "its own" if stored else choice if choice != "auto" else default
    plain = Preparation(file=str(path), normalization=name, mean=spec.mean, std=spec.std)
    option = f"--{side}-normalization" if side == "teacher" else "--normalization"
    try:
        model = build(spec, str(path), seed=0, whole=True, side=side)
    except InputError:
        if whole:
            raise
        # The classifier starts anew, and nothing can be measured; what does not fit at all is said here.
        build(spec, str(path), seed=0, side=side)
        if stored or choice != "auto":
            return plain.model_copy(update={"normalization": ""})
        said = f"{path} does not say how its pixels were normalized: {name} is used ({option} sets it)."
        return plain.model_copy(update={"sentences": (said,)})
    session.terminal.say(f"Looking on validation at how {path} takes pixels and orders classes.")
    fixed = stored is not None or choice != "auto"
    choices = [(name, spec.mean, spec.std)] if fixed else _with_default(session, name)
    candidates = [Candidate(*one, reversed_channels) for reversed_channels in (False, True) for one in choices]
    measured = measure(session, model, candidates, known_orders(spec.classes))
    return _decide(model, measured, plain, fixed, option)


def _with_default(session: Session, default: str) -> list[tuple[str, Triple, Triple]]:
    """The usual normalizations, the default first: of two that are level the earlier is taken."""
    usual = normalization_candidates((session.store.mean, session.store.std))
    return sorted(usual, key=lambda one: one[0] != default)


def _decide(model: Classifier, measured: Measured, plain: Preparation, fixed: bool, option: str) -> Preparation:
    """The default, unless another reading is clearly ahead of it and of chance."""
    readings, labels = measured.readings, measured.labels
    readings.sort(key=lambda one: (-one.right.sum(), one.order != AS_IT_IS, one.candidate.reversed_channels))
    best, first = readings[0], measured.candidates[0]
    default = Reading(first, AS_IT_IS, right(first, labels, measured.orders[AS_IT_IS]))
    level = [one for one in readings if not ahead(best.right, one.right, CLEARLY)]
    chosen, wanted = default, None
    at_default = first in measured.alive and not ahead(best.right, default.right, CLEARLY)
    if not at_default and above_chance(best.right, labels):
        level.sort(key=lambda one: (one.order != AS_IT_IS, one.candidate.reversed_channels, -one.right.sum()))
        wanted = level[0]
        chosen = wanted if _usable(model, measured, wanted) else _nearest(readings, wanted, default)
    made = plain.model_copy(
        update={
            "normalization": chosen.candidate.name,
            "mean": chosen.candidate.mean,
            "std": chosen.candidate.std,
            "channels": "bgr" if chosen.candidate.reversed_channels else "rgb",
            "class_order": chosen.order,
            "rows": _inverse(measured.orders[chosen.order]) if chosen.order else (),
            "candidates": tuple(measured.table),
        }
    )
    sentences = [_chosen(made, measured, chosen, default, fixed, option)] if not fixed or chosen is not default else []
    alarms = _alarms(measured, chosen, wanted, made, model.spec.classes)
    return made.model_copy(update={"sentences": (*sentences, *alarms), "warned": bool(alarms) or chosen is not default})


def _usable(model: Classifier, measured: Measured, wanted: Reading) -> bool:
    """Whether the network can be turned to it exactly, and another order of classes is beyond doubt."""
    if wanted.candidate.reversed_channels and not turn_channels(model, back=True):
        return False
    if wanted.order == AS_IT_IS:
        return True
    if not sort_head(model, tuple(range(len(model.spec.classes)))):
        return False
    straight = [one.right for one in measured.readings if one.order == AS_IT_IS]
    sure = all(ahead(wanted.right, one, SURELY) for one in straight)
    better = other_order(measured, wanted.right, len(model.spec.classes))
    return sure and above_chance(wanted.right, measured.labels, SURELY) and better is None


def _nearest(readings: Sequence[Reading], wanted: Reading, default: Reading) -> Reading:
    """The same normalization without what cannot be done."""
    for one in readings:
        same = (one.candidate.mean, one.candidate.std) == (wanted.candidate.mean, wanted.candidate.std)
        if same and one.order == AS_IT_IS and not one.candidate.reversed_channels:
            return one
    return default


def _chosen(made: Preparation, measured: Measured, chosen: Reading, default: Reading, fixed: bool, option: str) -> str:
    """What is used and why, with the figures of the best few."""
    ranked = sorted(measured.candidates, key=lambda one: -_accuracy(measured, one, chosen.order))
    shown = [*dict.fromkeys([chosen.candidate, default.candidate, *ranked])][:SHOWN]
    figures = ", ".join(f"{_accuracy(measured, one, chosen.order):.1%} with {one.title}" for one in shown)
    told = f"on {len(measured.labels)} validation images it is right on {figures}"
    begin = f"{made.file} does not say how its pixels were normalized; {told}"
    if chosen is default:
        why = "none is clearly ahead of it" if above_chance(default.right, measured.labels) else "none is clearly ahead"
        return f"{begin}: {made.normalization} is kept, for {why} ({option} sets another)."
    if fixed:
        begin = f"{made.file}: {told}"
    ways = [f"{chosen.candidate.title} is used"]
    if chosen.order:
        ways.append(f"its classes stand in {chosen.order}, and its last layer's rows are put into the data's order")
    if chosen.candidate.reversed_channels:
        ways.append("its first layer is turned round to take red, green, blue")
    return f"{begin}: {'; '.join(ways)} ({option} sets the normalization)."


def _accuracy(measured: Measured, one: Candidate, order: str) -> float:
    return float(right(one, measured.labels, measured.orders[order]).mean())


def _alarms(
    measured: Measured,
    chosen: Reading,
    wanted: Reading | None,
    made: Preparation,
    classes: Sequence[str],
) -> list[str]:
    """What is seen and not mended."""
    alarms = []
    if wanted and wanted.candidate.reversed_channels and not chosen.candidate.reversed_channels:
        alarms.append(
            f"{made.file} seems to want blue, green, red ({wanted.accuracy:.1%} so, {chosen.accuracy:.1%} as it is), "
            "and its first layer is no plain convolution that could be turned round; convert it to take RGB images."
        )
    if (better := other_order(measured, chosen.right, len(classes))) is None:
        return alarms
    held, meant = better
    swapped = [f"images of {classes[k]!r} are called {classes[row]!r}" for row, k in enumerate(meant) if row != k]
    if swapped:
        more = f" and {len(swapped) - SHOWN} more" if len(swapped) > SHOWN else ""
        alarms.append(
            f"{made.file} seems to have its classes in another order than the data: {', '.join(swapped[:SHOWN])}{more}"
            f"; read that way it is right on {held.mean():.1%} of {len(held)} validation images, as it is on "
            f"{chosen.accuracy:.1%}. It is used as it is; sort the rows of its last layer as the data's classes are."
        )
    return alarms


def _inverse(meant: Sequence[int]) -> tuple[int, ...]:
    """For every class the row that means it, of the class that every row means."""
    rows = [0] * len(meant)
    for row, meaning in enumerate(meant):
        rows[meaning] = row
    return tuple(rows)
