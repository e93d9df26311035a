"""`mlflow-ckpt prove`: the one command that trains, on a tracking server of its own."""

from __future__ import annotations

from typing import Any

import click

from mlflow_ckpt.cli_options import (
    guarded,
    json_option,
    original_environment,
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
@json_option
@guarded
def prove(**arguments: Any) -> None:
    """Prove that a project resumes exactly.

    PROJECT is what `mlflow run` takes. It is trained once to the end and once killed by SIGKILL
    and started again with the same run ID. Every variable is compared after every batch, then the
    metric history. Exit code 1 if anything differs.

    \b
    Example:
      mlflow-ckpt prove projects/digits -P epochs=3
      mlflow-ckpt prove . --kill-at 120,300 --json
    """
    from mlflow_ckpt.proving import prove_project

    if not prove_project(**arguments, environment=original_environment()):
        raise SystemExit(1)
