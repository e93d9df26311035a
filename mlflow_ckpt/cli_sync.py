"""`mlflow-ckpt sync`: the one command that needs no run to be named, only a spool."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_ckpt.cli_complete import run_ids
from mlflow_ckpt.cli_options import guarded, json_option, uri_option


@click.command()
@click.argument("run_id", metavar="[RUN_ID]", required=False, shell_complete=run_ids)
@click.option("--all", "everywhere", is_flag=True, help="The runs of every tracking server.")
@click.option("--dry-run", is_flag=True, help="List what waits. Asks no server.")
@click.option(
    "--spool",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it waits.  [default: MLFLOW_CKPT_SPOOL, else the user's cache]",
)
@json_option
@uri_option("Whose runs, without RUN_ID.  [default: MLFLOW_TRACKING_URI, else ./mlflow.db]")
@guarded
def sync(
    run_id: str | None,
    everywhere: bool,
    dry_run: bool,
    spool: Path | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Deliver what waits for a server that was away.

    Without RUN_ID: of the runs of the current tracking server. Each series goes to the server it
    was meant for, and what that refused before is tried again. It is safe at any time: who else
    delivers or trains the same series is found, and waited for or left alone. Exit code 1 if
    something is left, with the reason on stderr.

    \b
    Example:
      mlflow-ckpt sync --dry-run
      mlflow-ckpt sync 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt sync --all --spool /scratch/spool --json
    """
    if run_id and everywhere:
        raise click.UsageError("Give RUN_ID or --all: a run's series are one server's.")
    from mlflow_ckpt import sync_report
    from mlflow_ckpt.cli_address import named
    from mlflow_ckpt.store import use_tracking_uri

    if tracking_uri is not None:
        use_tracking_uri(tracking_uri)
    run_id = named({"run_id": run_id})["run_id"]
    scope = sync_report.Scope(run_id=run_id, folder=spool, everywhere=everywhere)
    if dry_run:
        sync_report.print_waiting(scope, as_json=as_json)
    elif not sync_report.deliver(scope, as_json=as_json):
        raise SystemExit(1)
