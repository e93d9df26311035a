"""`mlflow-ckpt diff`: how one checkpoint differs from another."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

import click

from mlflow_ckpt.cli_complete import run_ids
from mlflow_ckpt.cli_options import echo_json, json_option, of_a_run

if TYPE_CHECKING:
    from mlflow_ckpt.diff_report import Sort


class _Trouble(click.ClickException):
    """A failure that must not look like a difference."""

    exit_code = 2


class _Diff(click.Command):
    """One that ends as `diff` does, if it is asked to: trouble is no difference."""

    def invoke(self, ctx: click.Context) -> Any:
        if not ctx.params["exit_code"]:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (click.UsageError, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except click.ClickException as error:
            raise _Trouble(error.message) from error
        except Exception:  # noqa: BLE001 (--debug: Python would end with the code of a difference)
            traceback.print_exc(file=sys.stderr)
            ctx.exit(_Trouble.exit_code)


@click.command(cls=_Diff)
@click.argument("a", metavar="A", shell_complete=run_ids)
@click.argument("b", metavar="B", shell_complete=run_ids)
@click.option(
    "--layers",
    "rows",
    metavar="N",
    type=click.IntRange(min=1),
    help="Rows that a table has at most.  [default: 20]",
)
@click.option("--all", "all_rows", is_flag=True, help="Every row.")
@click.option(
    "--sort",
    type=click.Choice(["change", "order"]),
    default="change",
    show_default=True,
    help="The most changed layer first, or the order of the model.",
)
@click.option("--variables", is_flag=True, help="A row for every variable, not every layer.")
@click.option("--exit-code", is_flag=True, help="End with 1 if they differ, with 2 on trouble.")
@json_option
@of_a_run
def diff(
    a: str,
    b: str,
    rows: int | None,
    all_rows: bool,
    sort: Sort,
    variables: bool,
    exit_code: bool,
    as_json: bool,
) -> None:
    """Compare two checkpoints, layer by layer.

    Shows how architecture, optimizer, parameters and metrics differ, and how far each layer's
    weights are from each other. A and B are RUN_ID for its latest, RUN_ID/SELECTOR, or a ckpt:/
    URI; B may be a selector alone, of the run of A. Neither model is loaded: their files are
    verified and read in blocks.

    The relative change of a layer is the norm of B - A by that of A. What is NaN or infinite is
    counted, and left out of it. --json has every layer and variable, whatever the options say.

    The exit code is 0 whether they differ or not. With --exit-code it is 0 if they hold the same
    model in the same state, bit by bit, 1 if not, and 2 if that could not be found out.

    \b
    Example:
      mlflow-ckpt diff 2440a0191a3148b8a59dc32e1d92c259/epoch=5 best
      mlflow-ckpt diff 2440a0191a3148b8a59dc32e1d92c259 9b1c61f0a3c44a0c8a4f0e6d25f7a911 --all
      mlflow-ckpt diff ckpt:/experiment/digits/best 2440a0191a3148b8a59dc32e1d92c259/final
    """
    if rows is not None and all_rows:
        raise click.UsageError("Give --layers or --all, one of them.")
    from mlflow_ckpt import differing
    from mlflow_ckpt.cli_bar import shown

    with shown("reading"):
        found = differing.diff(a, b)
    if as_json:
        echo_json(found.to_dict())
    else:
        from mlflow_ckpt.diff_report import View, print_comparison

        limit = None if all_rows else rows or 20
        print_comparison(found, View(rows=limit, sort=sort, variables=variables))
    if exit_code and not found.equal:
        raise SystemExit(1)
