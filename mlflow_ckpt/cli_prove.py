"""`mlflow-ckpt prove`: the one command that trains, on a tracking server of its own."""

from __future__ import annotations

import os
from typing import Any

import click

from mlflow_ckpt.cli_options import (
    be_quiet,
    debug_option,
    json_option,
    one_line,
    param_option,
    uri_option,
)


def _batches(
    _: click.Context, __: click.Parameter, words: tuple[str, ...]
) -> tuple[int, ...] | None:
    try:
        return tuple(int(number) for word in words for number in word.split(",")) or None
    except ValueError:
        raise click.BadParameter(f"Expected N[,N...]. Received: {words!r}") from None


@click.command()
@click.argument("project", metavar="PROJECT")
@click.option(
    "-e", "--entry-point", metavar="NAME", default="main", show_default=True, help="What trains."
)
@param_option("A parameter of the entry point.")
@click.option(
    "--kill-at",
    "kills",
    metavar="N[,N...]",
    multiple=True,
    callback=_batches,
    help="Training batches after which to kill it.  [default: one third and two thirds]",
)
@uri_option("Where the runs are recorded, and stay.  [default: a temporary database]")
@debug_option
@json_option
def prove(*, debug: bool, **arguments: Any) -> None:
    """Prove that a project resumes exactly.

    PROJECT is what `mlflow run` takes. It is trained once to the end and once killed by SIGKILL
    and started again with the same run ID. Every variable is compared after every batch, then the
    metric history. Exit code 1 if anything differs.

    \b
    Example:
      mlflow-ckpt prove projects/digits -P epochs=3
      mlflow-ckpt prove . --kill-at 120,300 --json
    """
    environment = dict(os.environ)  # Ours is about to be made quiet.
    be_quiet()
    try:
        from mlflow_ckpt.proving import prove_project

        exact = prove_project(**arguments, environment=environment)
    except Exception as error:
        if debug:
            raise
        raise click.ClickException(one_line(error)) from error
    if not exact:
        raise SystemExit(1)
