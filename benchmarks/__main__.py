"""`python -m benchmarks`: each sub-command measures one thing; without one, the training step."""

import click

from benchmarks.step import step


@click.group(invoke_without_command=True)
@click.pass_context
def main(context: click.Context) -> None:
    """Ratios taken in one run on one machine, with the machine's description."""
    if context.invoked_subcommand is None:
        context.invoke(step)


main.add_command(step)

if __name__ == "__main__":
    main()
