"""`python -m benchmarks`: each sub-command measures one thing; without one, the training step."""

import click

from benchmarks.demonstration import demonstration
from benchmarks.inference import inference
from benchmarks.memory import memory
from benchmarks.pipeline import pipeline
from benchmarks.processes import processes
from benchmarks.search import search
from benchmarks.startup import startup
from benchmarks.step import step
from benchmarks.tracking import tracking


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Ratios taken in one run on one machine, with the machine's description."""
    if context.invoked_subcommand is None:
        context.invoke(step)


for command in (step, pipeline, search, tracking, startup, memory, inference, processes, demonstration):
    main.add_command(command)

if __name__ == "__main__":
    main()
