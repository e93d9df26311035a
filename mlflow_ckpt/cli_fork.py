"""`mlflow-ckpt fork`: a new run that goes on from a checkpoint of another one."""

from __future__ import annotations

import click

from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    of_a_run,
    param_option,
    run_id_argument,
    selector_argument,
)


@click.command()
@run_id_argument
@selector_argument
@param_option("Override a parameter of the run.")
@click.option("--name", metavar="TEXT", help="Name of the new run.")
@json_option
@of_a_run
def fork(run_id: str, which: str, params: dict[str, str], name: str | None, as_json: bool) -> None:
    """Make a new run that starts at a checkpoint of this one.

    SELECTOR is latest if left out. The run itself stays as it is. Prints the new run's ID, and on
    stderr how to continue it.

    \b
    Example:
      mlflow-ckpt fork 2440a0191a3148b8a59dc32e1d92c259 epoch=5 -P epochs=40 --name longer
    """
    from mlflow_ckpt import forking

    new = forking.fork(run_id, which, params=params, name=name)
    command = forking.continue_command(new)
    if as_json:
        echo_json({"run_id": new, "parent": run_id, "selector": which, "continue": command})
    else:
        click.echo(new)
        click.echo(f"Continue it with:\n  {command}", err=True)
