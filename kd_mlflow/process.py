"""How the process of a command begins and ends: signals, the process above it, exit codes. Imports nothing heavy."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import rich_click as click

from kd_mlflow.errors import KdMlflowError, harmless


def lead(command: Callable[[], Any], whole: bool) -> NoReturn:
    """Run a command line and leave with the documented exit code.

    Parameters
    ----------
    command:
        Parses and runs it, and gives back an exit code or None.
    whole:
        Whether the process has nothing else to do and may end at once.
    """
    leaving = {"code": 1}
    if whole:
        # Registered first, it is called last.
        atexit.register(_leave, leaving)
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    sys.unraisablehook = _unraisable
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    if os.environ.get("MLFLOW_RUN_ID") or os.environ.get("KD_MLFLOW_STOP_WITH"):
        from kd_mlflow.entrypoints.parent import stop_with_parent

        stop_with_parent()
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _join(int(os.environ.get("RANK", "0")))
        code = command()
    except KdMlflowError as error:
        code = _fail(str(error), error.exit_code)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code = _fail("Interrupted; --resume (for a search: the same command) goes on from the last checkpoint.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        sentence = _about_home(error)
        if sentence is None:
            raise
        code = _fail(str(sentence), sentence.exit_code)
    except SystemExit as end:
        code = end.code
    leaving["code"] = int(code or 0)
    sys.exit(leaving["code"])


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _unraisable(lost: Any) -> None:
    """A signal that struck inside a finaliser, where Python drops exceptions, is sent once more."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    number = signal.Signals[str(lost.exc_value) or "SIGINT"]
    again = threading.Timer(0.05, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _leave(leaving: dict[str, int]) -> None:
    """All is written and closed: taking the interpreter apart, PyTorch and all, would take seconds and serve nobody."""
    logging.shutdown()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(leaving["code"])


def _join(rank: int) -> None:
    """Lead the processes that train together; all but the first only do what they are told."""
    if rank:
        from kd_mlflow.entrypoints.rank import serve

        sys.exit(serve())
    from kd_mlflow.entrypoints.processes import join_torchrun

    join_torchrun()


def _about_home(error: OSError) -> KdMlflowError | None:
    """The sentence for a file or folder below the home that cannot be written; None for any other error."""
    from kd_mlflow.places import unusable_home

    return unusable_home(error)


def _fail(sentence: str, code: int) -> int:
    click.echo(f"kd-mlflow: {harmless(sentence)}", err=True)
    return code
