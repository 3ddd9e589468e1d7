"""`compare`: methods over seeds and data sets, each held against the same student trained with labels alone."""

from __future__ import annotations

import csv
import gc
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

from kd_mlflow.config import CompareConfig, DistillConfig
from kd_mlflow.distillers.names import CONTROL, method_names
from kd_mlflow.distillers.registry import method_class
from kd_mlflow.entrypoints.comparisons import cell_of, record_comparison, report_rows
from kd_mlflow.entrypoints.fingerprint import request_fingerprint
from kd_mlflow.entrypoints.in_turn import measure_cells
from kd_mlflow.entrypoints.network import check
from kd_mlflow.entrypoints.recipes import student_recipe, warm_up_notes, with_resolved_method
from kd_mlflow.entrypoints.record import data_source, record_setup
from kd_mlflow.entrypoints.runs import NEWEST, open_run
from kd_mlflow.entrypoints.session import Session
from kd_mlflow.entrypoints.students import teacher_tags, train_or_reuse_student
from kd_mlflow.entrypoints.teachers import (
    Teacher,
    find_teachers,
    prospective_teachers,
    teacher_notes,
    weak_teacher_note,
)
from kd_mlflow.entrypoints.terminal import Terminal
from kd_mlflow.entrypoints.train import train_or_reuse
from kd_mlflow.errors import GuardError, InputError
from kd_mlflow.reports.comparison import METRICS, Cell, Comparison, LeftOut
from kd_mlflow.reports.data import RunView
from kd_mlflow.tracking.runs import RunWriter, read_run

ALL = "all"
_CSV_COLUMNS = [
    *("data", "method", "evidence", "seeds", "runs"),
    *(f"{part}/{key}" for key in METRICS for part in ("mean", "sd")),
    *(
        f"{name}/{part}"
        for name in ("minus_control", "minus_kd")
        for part in ("mean", "low", "high", "seeds", "p_value")
    ),
    "minus_control_val",
]

CACHED = (
    "Teachers' outputs come out of a cache where a method allows it: the seconds a batch of such methods leave out the "
    "teacher's forward pass. --teacher-cache off measures every method with it."
)


@dataclass(frozen=True)
class CompareResult:
    """What `compare` gives back; a row a method and data set, the control among them.

    Attributes
    ----------
    datasets:
        For each data set its teacher, winner (by validation), verdict, and the methods that gave no run.
    gains:
        For several data sets: a row each, with what it is like and what every method gained.
    """

    run_id: str
    rows: list[dict[str, Any]]
    datasets: list[dict[str, Any]]
    gains: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """One JSON object."""
        return {"run_id": self.run_id, "rows": self.rows, "datasets": self.datasets, "gains": self.gains}

    def to_csv(self) -> str:
        """The rows with one column a figure."""
        flat = [_flat(row) for row in self.rows]
        out = io.StringIO()
        writer = csv.DictWriter(out, _CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(flat)
        return out.getvalue()


def compare(config: CompareConfig, *, resume: str | None = None, terminal: Terminal | None = None) -> CompareResult:
    """Train or reuse every method at every seed on every data set, and say which differences are more than chance.

    >>> from kd_mlflow.config import CompareConfig
    >>> compare(CompareConfig(data="photos/", methods="kd,dkd,fnkd", seeds=3)).rows   # doctest: +SKIP

    Parameters
    ----------
    resume:
        None, ``newest`` (the newest unfinished comparison that was asked for the same way), or a run id.
        Finished cells are reused with or without it; it also goes on with the cell that was cut off.

    Raises
    ------
    InputError
        A method that was named cannot do what was asked for; with ``all`` such methods are left out.
    """
    terminal = terminal or Terminal(quiet=True)
    methods, cells = _methods(config), {}
    for data in config.data:
        cells[data] = {method: with_resolved_method(config.cell(data, method, config.seed)) for method in methods}
    sessions = {data: Session.open(cells[data][methods[0]], terminal, new_run=not resume) for data in config.data}
    first = sessions[config.data[0]]
    left_out = {data: _refused(sessions[data], config, cells[data]) for data in config.data}
    for data, refused in left_out.items():
        if refused.keys() >= cells[data].keys():
            raise InputError(
                f"No method can be compared on {data!r}; the first, for one: {next(iter(refused.values()))}"
            )
    digests = " ".join(session.store.digest for session in sessions.values())
    key = ("kd.request", request_fingerprint(config, digests))
    name = f"compare {', '.join(config.methods)}"
    with open_run(first, "compare", key, resume=resume, owner=True, name=name, config=config) as writer:
        comparisons, labels = [], _labels(sessions)
        for data, session in sessions.items():
            session.experiment = first.experiment
            record_setup(session, writer, config)
            writer.tags({"kd.data_source": ", ".join(map(data_source, sessions.values()))})
            own = {method: cell for method, cell in cells[data].items() if method not in left_out[data]}
            comparisons.append(_one_dataset(session, labels[data], writer, config, own, left_out[data], resume))
        rows, datasets, gains = report_rows(comparisons)
        record_comparison(writer, config, comparisons)
    return CompareResult(writer.run_id, rows, datasets, gains)


def _methods(config: CompareConfig) -> list[str]:
    """The methods, each once; the control is always there and is none of them."""
    asked = method_names() if ALL in config.methods else list(dict.fromkeys(config.methods))
    methods = [method for method in asked if method != CONTROL]
    for method in methods:
        method_class(method)
    if not methods:
        raise InputError("--methods names no method; `kd-mlflow methods` lists them.")
    return methods


def _refused(session: Session, config: CompareConfig, cells: dict[str, DistillConfig]) -> dict[str, str]:
    """Methods that these networks do not allow, each with its reason, before anything is trained.

    Raises
    ------
    InputError
        Such a method was asked for by name.
    """
    teachers = prospective_teachers(session, next(iter(cells.values())))
    if teachers is None:
        return {}
    return _checked(session, config, cells, teachers)[0]


def _checked(
    session: Session, config: CompareConfig, cells: dict[str, DistillConfig], teachers: Sequence[Any]
) -> tuple[dict[str, str], list[str]]:
    """Refused methods with their reasons, and what is said of the others: their late terms, those without effect."""
    reasons, notes = {}, []
    for method, cell in cells.items():
        try:
            without_effect = check(session, student_recipe(cell, session), teachers if _taught(method) else ())
            notes += [*warm_up_notes(cell), *without_effect]
        except InputError as error:
            if ALL not in config.methods:
                raise
            reasons[method] = str(error)
    return reasons, notes


def _labels(sessions: dict[str, Session]) -> dict[str, str]:
    """A name of its own for each data set: photos, photos-2."""
    labels: dict[str, str] = {}
    for data, session in sessions.items():
        name = session.store.name
        others = (f"{name}-{number}" for number in count(2))
        labels[data] = next(one for one in chain([name], others) if one not in labels.values())
    return labels


def _one_dataset(
    session: Session,
    label: str,
    writer: RunWriter,
    config: CompareConfig,
    cells: dict[str, DistillConfig],
    refused: dict[str, str],
    resume: str | None,
) -> Comparison:
    """The teacher, then for every seed the control and each method on the same data, order and weights."""
    others = NEWEST if resume else None
    any_cell = next(iter(cells.values()), None)
    teachers = _teachers(session, writer, any_cell, others) if any(map(_taught, cells)) else []
    refused_now, notes = _checked(session, config, cells, [teacher.network.model for teacher in teachers])
    refused = refused | refused_now
    finished: list[Cell] = []
    for note in notes:
        session.terminal.warn(note)
    notes += teacher_notes(session, writer, config, teachers, f".{session.store.digest[:12]}")
    notes += [CACHED] if teachers and config.teacher_cache != "off" else []
    left_out = [LeftOut(method, reason) for method, reason in refused.items()]
    for seed in range(config.seed, config.seed + config.seeds):
        seeded = {m: cell.model_copy(update={"seed": seed}) for m, cell in cells.items() if m not in refused}
        control = _control(session, writer, next(iter(seeded.values())), others)
        if seed == config.seed:
            notes += _notes(session, writer, config, teachers, control)
        finished.append(cell_of(control, CONTROL, seed))
        for method, cell in seeded.items():
            try:
                taught = teachers if _taught(method) else []
                view = train_or_reuse_student(session, writer, cell, taught, control, others)
            except GuardError as error:
                session.terminal.warn(f"{method}, seed {seed}: {error}")
                left_out.append(LeftOut(method, f"Seed {seed}: {error}"))
            else:
                finished.append(cell_of(view, method, seed))
            gc.collect()
    store, figures = session.store, teachers[0].view.metrics if teachers else {}
    finished, sitting = measure_cells(session, writer, teachers[0].network.model if teachers else None, finished)
    if sitting and "teacher" in sitting.networks:
        figures = figures | {f"efficiency/{name}": value for name, value in sitting.ratios("teacher").items()}
    return Comparison(
        data=label,
        classes=len(store.classes),
        images_per_class=len(store.splits["train"]) / len(store.classes),
        image_size=store.image_size,
        teacher=figures,
        cells=tuple(finished),
        left_out=tuple(left_out),
        student=config.student,
        teacher_name=teachers[0].view.architecture if teachers else "",
        notes=tuple(notes),
        sitting=sitting,
    )


def _control(session: Session, writer: RunWriter, cell: DistillConfig, resume: str | None) -> RunView:
    """The control of one seed; one that this comparison has already is not trained again by a resume."""
    tag = f"kd.control.{session.store.digest[:12]}.{cell.seed}"
    known = read_run(session.client, writer.run_id).tags.get(tag)
    control = train_or_reuse(session, cell, "control", resume=resume, known=known)
    writer.tags({tag: control.run_id})
    return control


def _notes(
    session: Session, writer: RunWriter, config: CompareConfig, teachers: list[Teacher], control: RunView
) -> list[str]:
    """What the control says of the teacher."""
    note = weak_teacher_note(config, teachers, control)
    writer.tags({f"kd.weak_teacher.{session.store.digest[:12]}": str(bool(note)).lower()})
    if note:
        session.terminal.warn(note)
    return [note] if note else []


def _teachers(session: Session, writer: RunWriter, cell: DistillConfig, resume: str | None) -> list[Teacher]:
    """The teachers for this data; once chosen they stay the same, however often the comparison is resumed."""
    tag = f"kd.teacher.{session.store.digest[:12]}"
    chosen = read_run(session.client, writer.run_id).tags.get(tag, "")
    teachers = find_teachers(session, cell, resume=resume, fixed=chosen)
    writer.tags({tag: teacher_tags(teachers)["kd.teacher"]})
    return teachers


def _taught(method: str) -> bool:
    return method_class(method).teacher_count[1] > 0


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = " ".join(map(str, value)) if isinstance(value, list) else value
    return flat
