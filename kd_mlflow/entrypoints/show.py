"""Results as a person reads them on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table as Grid
from rich.text import Text

from kd_mlflow.errors import harmless
from kd_mlflow.reports.efficiency import MARK, RATIOS, conditions, mark, mark_explained, ratio_words, with_spread

COMPARED = {
    "val/accuracy": "accuracy, validation",
    "test/accuracy": "accuracy, test",
    "test/macro_f1": "F1 (macro), test",
    "test/negative_log_likelihood": "negative log-likelihood, test",
    "test/calibration_error": "calibration error, test",
    "test/teacher_agreement": "agreement with the teacher, test",
    "efficiency/parameters_total": "parameters",
    **{f"efficiency/{name}": name.replace("_", " ").replace(" to ", " to the ") for name in RATIOS},
    "efficiency/latency_ms_b1_median": "latency of one image, ms",
    "efficiency/training_seconds": "training, s",
}
# What is measured for each network by itself says less than what is measured in turn, which stands in its place.
APART = "efficiency/latency_ms_b1_median"


def comparison(result: dict[str, Any]) -> Group:
    """Teacher, control and student side by side, and what that says; all figures are in the run's report."""
    networks = {role: result[role] for role in ("teacher", "control", "student") if result[role]}
    header = ["", *[f"{role}\n{network['architecture']}" for role, network in networks.items()]]
    if "control" in networks:
        header.append("student\n− control")
    sitting, rows = result["efficiency_in_turn"], []
    for key, label in COMPARED.items():
        part, _, name = key.partition("/")
        values = {role: network[part].get(name) for role, network in networks.items()}
        if name in RATIOS and not any(values.values()):
            continue
        if key == APART and sitting:
            marked = MARK if sitting["shared"] else ""
            cells = [_latency(sitting["networks"].get(role, {}), marked) for role in networks]
            rows.append([f"{label}, in turn", *cells])
            continue
        row = [label, *[_measured(network[part], name, network["shared_machine"]) for network in networks.values()]]
        if part != "efficiency" and values.get("control") is not None:
            row.append(f"{values['student'] - values['control']:+.4f}")
        rows.append(row)
    grid = _grid(header, rows, f"Run {result['run_id']}")
    marked = mark_explained({role: network["shared_machine"] for role, network in networks.items()})
    below = [result["verdict"], marked, conditions(sitting) if sitting else ""]
    return Group(grid, *[Text(line) for line in below if line])


def _measured(figures: dict[str, float], name: str, shared: dict[str, str]) -> str:
    """A figure, with its spread if it has one, and a mark if it was timed on a shared machine."""
    if name not in figures:
        return ""
    if name in RATIOS:
        return with_spread(figures[name], figures.get(f"{name}_spread"), RATIOS[name][1]) + mark(name, shared)
    spread = figures.get("latency_ms_b1_spread") if name == "latency_ms_b1_median" else None
    return _number(figures[name]) + (f" ± {_number(spread)}" if spread else "") + mark(name, shared)


def _latency(figures: dict[str, float], marked: str) -> str:
    return f"{_number(figures['latency_ms'])} ± {_number(figures['latency_ms_spread'])}{marked}" if figures else ""


def one_network(result: dict[str, Any]) -> Grid:
    """A network that was trained alone."""
    network = result["network"]
    rows = [[name, _number(value), _number(network["test"].get(name))] for name, value in network["val"].items()]
    return _grid(["", "validation", "test"], rows, f"Run {result['run_id']}")


def figures(result: dict[str, Any]) -> Grid:
    """The figures of one evaluation."""
    rows = [[name, _number(value)] for name, value in {**result["metrics"], **result["efficiency"]}.items()]
    return _grid(["", result["split"]], rows, f"Run {result['run_id']}")


def searched(result: dict[str, Any]) -> Group:
    """The best of a search, and what came of it on fresh seeds."""
    counts, best, finals = result["trials"], result["best"], result["finals"]
    said = [f"{counts['finished']} of {counts['total']} trials ({counts['pruned']} pruned, {counts['failed']} failed)"]
    rows = [[name, _number(value)] for name, value in {**best["values"], **best["params"]}.items()] if best else []
    title = f"Best: trial {best['number']}" if best else "No trial is complete"
    parts = [Text(f"Study {result['study']}: {said[0]}; run {result['run_id']}"), _grid(["", ""], rows, title)]
    if finals:
        header = ["", "seed", "accuracy, validation", "accuracy, test", "run"]
        lines = []
        for run in finals["runs"]:
            accuracies = [_number(run[f"{split}/accuracy"]) for split in ("val", "test")]
            lines.append([run["candidate"], str(run["seed"]), *accuracies, run["run_id"]])
        parts += [_grid(header, lines, "On fresh seeds"), Text(finals["verdict"])]
        parts += _in_use(finals["efficiency_in_turn"])
    elif result["ending"] in ("stopped", "interrupted"):
        parts.append(Text("The same command goes on with it."))
    return Group(*parts)


def study_stopped(result: dict[str, Any]) -> str:
    """What `--stop` did."""
    if result["state"] == "finished":
        return f"{result['study']} has all its trials: there is nothing to stop."
    return f"{result['study']} stops at every worker's next epoch."


def study_status(result: dict[str, Any]) -> Group:
    """A study as it stands."""
    from kd_mlflow.entrypoints.search_view import duration, trial_line

    counts = result["trials"]
    names = ("complete", "pruned", "failed", "running", "waiting", "abandoned")
    said = ", ".join(f"{counts[name]} {name}" for name in names if counts[name])
    standing = f"{counts['finished']} of {counts['total']} trials" + (f" ({said})" if said else "")
    lines = [f"Study {result['study']}: {result['state']}, {standing}"]
    if result["seconds_left"]:
        lines.append(f"About {duration(result['seconds_left'])} left")
    if result["best"]:
        lines.append(f"Best: {trial_line(result['best'])}")
    lines += [f"Running: {trial_line(trial)}" for trial in result["running"]]
    lines += [f"Last: {trial_line(trial)}" for trial in result["last"]]
    return Group(*[Text(line) for line in lines])


def predictions(result: dict[str, Any]) -> Grid:
    """A line an image."""
    rows = [
        [item["path"], ", ".join(f"{top['class']} {top['probability']:.3f}" for top in item["top"])]
        for item in result["predictions"]
    ]
    rows += [[item["path"], f"not readable: {item['reason']}"] for item in result["unreadable"]]
    return _grid(["image", "classes"], rows)


RANKED = {
    "val/accuracy": "val",
    "test/accuracy": "test",
    "test/macro_f1": "F1",
    "efficiency/training_seconds_per_batch": "s a\nbatch",
}


def compared(result: dict[str, Any]) -> Group:
    """A table for each data set with its verdict; every figure is in the run's report and CSV."""
    parts: list[Any] = []
    for dataset in result["datasets"]:
        rows = []
        for row in result["rows"]:
            if row["data"] == dataset["data"]:
                figures = [_spread(row["mean"].get(key), row["sd"].get(key)) for key in RANKED]
                figures[-1] += mark("training_seconds_per_batch", row["shared"])
                rows.append([row["method"], *figures, _difference(row["minus_control"]), _difference(row["minus_kd"])])
        header = ["", *RANKED.values(), "test\n− control", "test\n− kd"]
        parts += [_grid(header, rows, f"{dataset['data']}, run {result['run_id']}"), Text(dataset["verdict"])]
        shared = {row["method"]: row["shared"] for row in result["rows"] if row["data"] == dataset["data"]}
        parts += [Text(line) for line in [mark_explained(shared)] if line]
        parts += _in_use(dataset["efficiency_in_turn"])
        parts += [Text(f"{one['method']}: left out. {one['reason']}") for one in dataset["left_out"]]
    return Group(*parts)


def _in_use(sitting: dict[str, Any] | None) -> list[Text]:
    """A line for each distinct network beside the reference, and how it was measured."""
    if not sitting:
        return []
    names = [name for name in sitting["networks"] if name != sitting["reference"]]
    lines = [f"{name}: of the {sitting['reference']}'s {ratio_words(sitting, name)}" for name in names]
    return [Text(line) for line in (*lines, conditions(sitting))]


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f}\n±{deviation:.3f}"


def _difference(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{value['mean']:+.3f}\n{value['low']:+.3f} … {value['high']:+.3f}"


def method_list(methods: list[dict[str, Any]]) -> Group | Grid:
    """A line a method; one alone with its options."""
    if len(methods) == 1:
        return _one_method(methods[0])
    rows = [
        [
            method["name"],
            method["summary"],
            f"{method['paper'].partition(':')[0]}, {method['year']}",
            method["evidence"],
        ]
        for method in methods
    ]
    return _grid(["method", "what", "source", "held against"], rows)


def _one_method(method: dict[str, Any]) -> Group:
    teachers = {0: "No teacher.", 1: "One teacher."}.get(method["teachers"]["most"], "One or more teachers.")
    link = f" (arXiv {method['link']})" if method["link"] else ""
    facts = [
        method["summary"],
        f"Source: {method['paper']}, {method['year']}{link}",
        f"Held against: {method['evidence']}. Needs: {', '.join(method['needs'])}. {teachers}",
        method["limits"],
    ]
    rows = []
    for option in method["options"]:
        values = [*option["choices"], *[f"{sign} {bound}" for sign, bound in option["bounds"].items()]]
        rows.append([option["flag"], _plain(option["default"]), " ".join(values), option["help"]])
    options = _grid(["option", "default", "values", ""], rows) if rows else Text("It has no options of its own.")
    return Group(*[Text(fact) for fact in facts if fact], options)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(str(item) for item in value) if isinstance(value, list) else str(value)


def leaderboard(rows: list[dict[str, Any]]) -> str:
    """A line a run."""
    if not rows:
        return "There are no runs of kd-mlflow in this store."
    columns = [
        "run_id",
        "role",
        "status",
        "data",
        "architecture",
        "method",
        "val_accuracy",
        "test_accuracy",
        "test_macro_f1",
        "start",
    ]
    cells = [[_number(row.get(name)) for name in columns] for row in rows]
    lines = [[name.replace("_", " ") for name in columns], *cells]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    # Plain lines: a run id that is folded into a column cannot be copied.
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def reaped(result: dict[str, Any]) -> str:
    """A line a run."""
    lines = []
    for one in result["runs"]:
        said = f"Run {one['run_id']} ({one['role']}, {one['name']}): its process is gone"
        said += f"; {one['epochs']} epochs are kept" if one["epochs"] else ""
        lines.append(said + (f"; go on with `{one['resume']}`" if one["resume"] else ""))
    return "\n".join(lines) or "Every running run of this machine has its process."


def synced(result: dict[str, Any]) -> str:
    """A line a run."""
    lines = [f"Run {one['run_id']}: {one['records']} records sent" for one in result["sent"]]
    lines += [f"Run {one['run_id']}: kept. {one['error']}" for one in result["kept"]]
    lines += [f"Run {one['origin']} ({one['role']}, {one['name']}): sent as {one['run_id']}" for one in result["runs"]]
    lines += [f"Registered {one['name']} version {one['version']} as {one['alias']}" for one in result["models"]]
    return "\n".join(lines) or "Nothing waits to be sent."


def findings(result: dict[str, Any]) -> Grid:
    """What works, what does not, and what to do."""
    rows = [[item["state"], item["name"], item["found"], item["advice"]] for item in result["checks"]]
    return _grid(["", "what", "found", "what to do"], rows)


def _grid(header: list[str], rows: list[list[str]], title: str | None = None) -> Grid:
    grid = Grid(title=title, title_justify="left")
    for name in header:
        grid.add_column(name, overflow="fold")
    for row in rows:
        grid.add_row(*[Text(harmless(str(cell))) for cell in row], *[""] * (len(header) - len(row)))
    return grid


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)
