"""Many commands one after the other, each in a process forked from one that has imported what commands import.

Reads a JSON list of argument lists from standard input and writes a JSON list of ``[exit code, standard error]``.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

from kd_mlflow.cli import main


def run(arguments: list[str]) -> tuple[int, str]:
    """One command, as a process of its own."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["kd-mlflow", *arguments]
            try:
                main()
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        err.seek(0)
        return code, err.read().decode()


if __name__ == "__main__":
    results = [run(arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps(results))
