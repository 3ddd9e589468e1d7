"""The command line: one click command an entry point. Parses, validates, calls, prints; imports nothing heavy."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import rich_click as click

from kd_mlflow import __version__
from kd_mlflow.errors import InputError
from kd_mlflow.process import lead

if TYPE_CHECKING:
    from kd_mlflow.entrypoints.terminal import Terminal

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    # `mlflow run -P image_size=64` hands the name over as it was typed.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


METHOD_OPTIONS = "kd_mlflow.method_options"


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="kd-mlflow")
@click.option("--verbose", "-v", is_flag=True, help="Show what the parts log.")
def cli(verbose: bool) -> None:
    """Turn a large image classifier into a small one, and keep a record of every run in MLflow."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")
    # MLflow sets the root logger to ERROR on its way.
    logging.getLogger("kd_mlflow").setLevel(level)
    if not verbose:
        # What an outage means is said in a sentence of our own, not once for every attempt.
        for chatty in ("urllib3.connectionpool", "mlflow.store.db.utils"):
            logging.getLogger(chatty).setLevel(logging.CRITICAL)


class _ConfigCommand(click.RichCommand):
    """Takes its options from the config package, and that only when it is called, so that --help stays quick."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from kd_mlflow.options import model_options

        return [*model_options(self.name or ""), *super().get_params(ctx)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """A method's own options depend on the method: they are taken out here and checked once it is known."""
        from kd_mlflow.options import split_method_options

        own = {flag for parameter in self.get_params(ctx) for flag in parameter.opts}
        rest, ctx.meta[METHOD_OPTIONS] = split_method_options(args, own)
        return super().parse_args(ctx, rest)


_config_command = cli.command(cls=_ConfigCommand)
_json = click.option(
    "--json", "as_json", is_flag=True, panel="Options", help="Print one JSON object on stdout and nothing else there."
)
_resume = click.option(
    "--resume",
    type=str,
    is_flag=False,
    flag_value="newest",
    default=None,
    metavar="[RUN_ID]",
    panel="Options",
    help="Go on with the newest unfinished run of the same options, or with this one.",
)
_tracking = click.option("--tracking-uri", default="", help="MLflow tracking URI.")


@_config_command
@_json
def prepare(as_json: bool, **values: Any) -> None:
    """Decode the images once into a store that trainings map into memory."""
    config = _config("prepare", values)
    from kd_mlflow.entrypoints.prepare import describe, prepare_data

    result = prepare_data(config, _terminal())
    _print(result, as_json, describe)


@_config_command
@_resume
@_json
def teacher(as_json: bool, resume: str | None, **values: Any) -> None:
    """Train a teacher with labels, and register it as NAME-teacher."""
    config, resume = _resumable("teacher", values, resume)
    from kd_mlflow.entrypoints.show import one_network
    from kd_mlflow.entrypoints.train import train_teacher

    result = train_teacher(config, resume=resume, terminal=_terminal())
    _print(result.to_json(), as_json, one_network)


@_config_command
@_resume
@_json
def student(as_json: bool, resume: str | None, **values: Any) -> None:
    """Train a student with labels only: the control."""
    config, resume = _resumable("student", values, resume)
    from kd_mlflow.entrypoints.show import one_network
    from kd_mlflow.entrypoints.train import train_student

    result = train_student(config, resume=resume, terminal=_terminal())
    _print(result.to_json(), as_json, one_network)


@_config_command
@_resume
@_json
def distill(as_json: bool, resume: str | None, **values: Any) -> None:
    """Distil a student from a teacher, beside the same student trained with labels only."""
    config, resume = _resumable("distill", values, resume)
    from kd_mlflow.entrypoints.distill import distill as run
    from kd_mlflow.entrypoints.show import comparison

    result = run(config, resume=resume, terminal=_terminal())
    _print(result.to_json(), as_json, comparison)


@_config_command
@click.option("--csv", "as_csv", is_flag=True, panel="Options", help="Print the table as CSV on stdout.")
@_resume
@_json
def compare(as_json: bool, as_csv: bool, resume: str | None, **values: Any) -> None:
    """Compare methods over seeds and data sets with the labels-only control, and say whether it is more than chance."""
    if as_json and as_csv:
        raise InputError("Give --json or --csv, not both.")
    config, resume = _resumable("compare", values, resume)
    from kd_mlflow.entrypoints.compare import compare as run
    from kd_mlflow.entrypoints.show import compared

    result = run(config, resume=resume, terminal=_terminal())
    if as_csv:
        click.echo(result.to_csv(), nl=False)
    else:
        _print(result.to_json(), as_json, compared)


@_config_command
@click.option("--status", "show", is_flag=True, panel="Options", help="Only say how far the study is.")
@click.option("--stop", is_flag=True, panel="Options", help="Ask every worker to stop at its next epoch.")
@click.option(
    "--render",
    type=click.Choice(["slurm", "kubernetes"]),
    default=None,
    panel="Options",
    help="Print a launch file for --workers workers on a cluster.",
)
@_json
def search(show: bool, stop: bool, render: str | None, as_json: bool, **values: Any) -> None:
    """Search temperature, alpha, learning rate and more over real distillations, and register the best student."""
    config = _config("search", values)
    if sum([show, stop, render is not None]) > 1:
        raise InputError("Give one of --status, --stop and --render.")
    from kd_mlflow.entrypoints.search import launch_file, look_at_study, stop_study
    from kd_mlflow.entrypoints.search import search as run
    from kd_mlflow.entrypoints.show import searched, study_status, study_stopped

    if show:
        _print(look_at_study(config), as_json, study_status)
    elif stop:
        _print(stop_study(config), as_json, study_stopped)
    elif render:
        click.echo(launch_file(config, render), nl=False)
    else:
        result = run(config, terminal=_terminal())
        _print(result.to_json(), as_json, searched)
        if result.ending == "interrupted":
            sys.exit(130)


@_config_command
def search_worker(**values: Any) -> None:
    """Do trials of a study that `search` started, here or on another machine, until it has them all."""
    config = _config("search-worker", values)
    from kd_mlflow.entrypoints.search_worker import work

    work(config, terminal=_terminal())


@cli.command()
@click.argument("name", required=False)
@_json
def methods(name: str | None, as_json: bool) -> None:
    """The distillation methods, or one of them with its options: source, evidence, needs."""
    from kd_mlflow.entrypoints.methods import list_methods
    from kd_mlflow.entrypoints.show import method_list

    result = list_methods(name)
    _print(result, as_json, method_list)


@_config_command
@_json
def evaluate(as_json: bool, **values: Any) -> None:
    """Measure an existing model on a split, in a run of its own."""
    config = _config("evaluate", values)
    from kd_mlflow.entrypoints.evaluate import evaluate as run
    from kd_mlflow.entrypoints.show import figures

    result = run(config, terminal=_terminal())
    _print(result.to_json(), as_json, figures)


@cli.command()
@click.argument("model")
@click.argument("folder", type=click.Path(path_type=Path))
@_tracking
@_json
def pull(model: str, folder: Path, tracking_uri: str, as_json: bool) -> None:
    """Fetch a registered MODEL (NAME@champion, NAME/3, models:/…) into FOLDER, digests verified."""
    from kd_mlflow.entrypoints.deploy import pull_model

    result = pull_model(model, folder, tracking_uri)
    _print(result, as_json, lambda r: f"{r['model']} version {r['version']} is in {r['folder']}")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top-k", default=3, show_default=True, type=click.IntRange(min=1), help="Classes an image.")
@click.option("--batch-size", default=32, show_default=True, type=click.IntRange(min=1), help="Images a batch.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@_json
def predict(folder: Path, images: Sequence[Path], top_k: int, batch_size: int, device: str, as_json: bool) -> None:
    """Name what the model in FOLDER sees in IMAGES (files or folders of them)."""
    from kd_mlflow.entrypoints.deploy import predict_images
    from kd_mlflow.entrypoints.show import predictions

    result = predict_images(folder, images, top_k, batch_size, device, _terminal())
    _print(result, as_json, predictions)
    if not result["predictions"]:
        raise InputError("None of the files could be read as an image.")


@cli.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "pt2"]),
    default=None,
    help="Format; left out, the file's suffix tells.",
)
@_tracking
@_json
def export(model: str, file: Path, kind: str | None, tracking_uri: str, as_json: bool) -> None:
    """Write MODEL (a pulled folder or a registered model) to FILE, and compare it with the module."""
    from kd_mlflow.entrypoints.deploy import export_model

    result = export_model(model, file, kind, tracking_uri)
    _print(result, as_json, lambda r: f"{r['file']} ({r['format']}): largest difference {r['max_difference']:.2g}")


@cli.command()
@click.option("--role", default=None, help="teacher, control, student, evaluate, …")
@click.option("--status", default=None, help="RUNNING, FINISHED, FAILED or KILLED.")
@click.option("--experiment", default=None, help="Only this experiment.")
@click.option("--filter", "filter_string", default="", help="An MLflow filter: metrics.`test/accuracy` > 0.9")
@click.option("--sort", default="val_accuracy", show_default=True, help="A column, or any metric's name.")
@click.option("--ascending", is_flag=True, help="Smallest first.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), help="Rows.")
@_tracking
@_json
def runs(as_json: bool, tracking_uri: str, **values: Any) -> None:
    """A leaderboard of the runs in the store, by figures alone: distill and compare tell differences from chance."""
    from kd_mlflow.entrypoints.runs_table import list_runs
    from kd_mlflow.entrypoints.show import leaderboard

    result = list_runs(tracking_uri, **values)
    _print(result, as_json, leaderboard)


@cli.command()
@click.argument("run_id")
@_tracking
@_json
def resume(run_id: str, tracking_uri: str, as_json: bool) -> None:
    """Go on with an unfinished run of teacher, student, distill or compare; its own options are all it needs."""
    from kd_mlflow.entrypoints.runs import command_of_run

    command, run_id = command_of_run(tracking_uri, run_id)
    own = [f"--resume={run_id}", *(["--json"] if as_json else [])]
    place = ["--tracking-uri", tracking_uri] if tracking_uri else []
    cli.commands[command].main([*own, *place], prog_name=f"kd-mlflow {command}", standalone_mode=False)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Only say which they are.")
@click.option(
    "--silent", default=60, show_default=True, help="Minutes without a word after which a run of another machine ends."
)
@_tracking
@_json
def reap(dry_run: bool, silent: int, tracking_uri: str, as_json: bool) -> None:
    """End the runs of processes that were killed or are silent, and say which can be resumed."""
    from kd_mlflow.entrypoints.reap import reap as run
    from kd_mlflow.entrypoints.show import reaped

    _print(run(tracking_uri, silent_minutes=silent, dry_run=dry_run), as_json, reaped)


@cli.command()
@click.argument("run_id")
@_tracking
@_json
def delete(run_id: str, tracking_uri: str, as_json: bool) -> None:
    """Delete a run, all runs below it, and their checkpoints; `mlflow runs restore` brings runs back."""
    from kd_mlflow.entrypoints.reap import delete as run

    result = run(run_id, tracking_uri)
    _print(result, as_json, lambda r: "\n".join(f"Deleted {one['run_id']} ({one['role']})" for one in r["deleted"]))


@cli.command()
@_tracking
@_json
def sync(tracking_uri: str, as_json: bool) -> None:
    """Send what earlier commands could not, because the tracking store was away, and what was done with --offline."""
    from kd_mlflow.entrypoints.show import synced
    from kd_mlflow.entrypoints.sync import sync as run

    result = run(tracking_uri)
    _print(result, as_json, synced)
    if result["kept"]:
        sys.exit(1)


@cli.command()
@click.option("--data", default="digits", show_default=True, help="Data to look for, as for distill.")
@_tracking
@_json
def doctor(data: str, tracking_uri: str, as_json: bool) -> None:
    """What works on this machine, what does not, and what to do about it."""
    from kd_mlflow.entrypoints.doctor import examine
    from kd_mlflow.entrypoints.show import findings

    result = examine(data, tracking_uri)
    _print(result, as_json, findings)
    if not result["ok"]:
        sys.exit(1)


def _config(command: str, values: dict[str, Any], file: Path | None = None) -> Any:
    from kd_mlflow.options import config_from, with_method_options

    found = click.get_current_context().meta[METHOD_OPTIONS]
    return with_method_options(config_from(command, values, file), found)


def _resumable(command: str, values: dict[str, Any], resume: str | None) -> tuple[Any, str | None]:
    """The options; those of the run itself when a run id is given."""
    if not resume and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
        resume = "newest"  # torchrun starts everybody again when one died
    if resume in (None, "", "false"):
        return _config(command, values), None
    if resume in ("newest", "true"):
        return _config(command, values), "newest"
    from kd_mlflow.entrypoints.runs import config_of_run

    with config_of_run(values.get("tracking_uri") or "", resume) as file:
        return _config(command, values, file), resume


def _terminal() -> Terminal:
    from kd_mlflow.entrypoints.terminal import Terminal

    return Terminal()


def _print(result: Any, as_json: bool, show: Callable[[Any], Any]) -> None:
    if as_json:
        click.echo(json.dumps(result, default=str, allow_nan=False))
    else:
        from rich.console import Console

        Console(highlight=False, markup=False).print(show(result), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with the documented exit code."""
    lead(lambda: cli.main(arguments, prog_name="kd-mlflow", standalone_mode=False), whole=arguments is None)
