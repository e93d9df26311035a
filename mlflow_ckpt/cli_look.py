"""`mlflow-ckpt list` and `show`: what checkpoints there are, and one of them in full."""

from __future__ import annotations

import click

from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    of_a_run,
    run_id_argument,
    selector_argument,
)


@click.command("list")
@run_id_argument
@click.option("--series", metavar="NAME", help="Only this series.")
@json_option
@of_a_run
def list_(run_id: str, series: str | None, as_json: bool) -> None:
    """List the checkpoints of a run, latest and best marked.

    The oldest comes first. On a terminal the table takes its width and names the columns it
    left out. Its times are local. With --json they are UTC, and the keys are the columns of
    list_checkpoints().

    \b
    Example:
      mlflow-ckpt list 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt list 2440a0191a3148b8a59dc32e1d92c259 --series finetune --json
    """
    from mlflow_ckpt import report

    if as_json:
        echo_json(report.records(run_id, series))
    else:
        report.print_checkpoints(run_id, series)


@click.command()
@run_id_argument
@selector_argument
@json_option
@of_a_run
def show(run_id: str, which: str, as_json: bool) -> None:
    """Show one checkpoint: metrics, files, model, versions.

    SELECTOR is latest if left out. With --json: the keys of `list --json`, and the manifest.

    \b
    Example:
      mlflow-ckpt show 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt show 2440a0191a3148b8a59dc32e1d92c259 'best(val_accuracy)@finetune'
    """
    from mlflow_ckpt import report

    if as_json:
        echo_json(report.describe(run_id, which))
    else:
        report.print_checkpoint(run_id, which)
