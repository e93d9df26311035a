"""`mlflow-ckpt pin`, `prune` and `gc`: what stays on the server, and what goes."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_ckpt.cli_bar import shown
from mlflow_ckpt.cli_options import (
    checkpoint_json,
    echo_json,
    guarded,
    json_option,
    needed_selector_argument,
    of_a_run,
    run_id_argument,
    uri_option,
    use,
)
from mlflow_ckpt.errors import CheckpointError

_COUNT = click.IntRange(min=1)


@click.command()
@run_id_argument
@needed_selector_argument
@click.option("--remove", is_flag=True, help="Unpin it.")
@json_option
@of_a_run
def pin(run_id: str, which: str, remove: bool, as_json: bool) -> None:
    """Keep one checkpoint, whatever a keep policy says.

    Prints its name.

    \b
    Example:
      mlflow-ckpt pin 2440a0191a3148b8a59dc32e1d92c259 epoch=5
      mlflow-ckpt pin 2440a0191a3148b8a59dc32e1d92c259 epoch=5 --remove
    """
    from mlflow_ckpt import pruning

    checkpoint = (pruning.unpin if remove else pruning.pin)(run_id, which)
    if as_json:
        echo_json({**checkpoint_json(checkpoint), "pinned": not remove})
    else:
        click.echo(checkpoint.name)


@click.command()
@run_id_argument
@click.option("--last", type=_COUNT, metavar="N", help="Keep the newest N. At least 1 stays.")
@click.option("--best", type=_COUNT, metavar="N", help="Keep the best N. At least 1 stays.")
@click.option("--every", type=_COUNT, metavar="N", help="Keep every N-th epoch.")
@click.option("--corrupt", is_flag=True, help="Delete what is marked as corrupt.")
@click.option("--series", metavar="NAME", help="Only this series.")
@click.option("--dry-run", is_flag=True, help="Show what would go. Deletes nothing.")
@json_option
@of_a_run
def prune(
    run_id: str,
    last: int | None,
    best: int | None,
    every: int | None,
    corrupt: bool,
    series: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete the checkpoints of a run that no rule keeps.

    Files and records go. Of --last, --best and --every, any keeps; without all three nothing goes
    but, with --corrupt, what is marked so. What is pinned, registered, the beginning of a fork, an
    end state or saved by hand always stays. Safe while the run is trained.

    \b
    Example:
      mlflow-ckpt prune 2440a0191a3148b8a59dc32e1d92c259 --last 3 --best 1 --dry-run
      mlflow-ckpt prune 2440a0191a3148b8a59dc32e1d92c259 --every 10 --series finetune
    """
    named = last or best or every
    if not named and not corrupt:
        raise click.UsageError("Give --last, --best, --every or --corrupt: what is to stay?")
    from mlflow_ckpt import keep_report, pruning
    from mlflow_ckpt.policy import Keep

    keep = Keep(last=last, best=best, every=every) if named else None
    with shown("deleting", "checkpoints"):
        found = pruning.prune(run_id, keep, series=series, corrupt=corrupt, dry_run=dry_run)
    if as_json:
        echo_json([each.to_dict() for each in found])
    else:
        keep_report.print_pruned(found, dry_run=dry_run)


@click.command()
@click.option("--experiment", metavar="NAME", help="Only this experiment, deleted or not.")
@click.option("--all", "everywhere", is_flag=True, help="Every experiment, and the local spool.")
@click.option("--deleted-runs", is_flag=True, help="Also of runs that could be restored.")
@click.option("--pinned", is_flag=True, help="Also what is pinned.")
@click.option("--undelivered", is_flag=True, help="With --all: also what exists here only.")
@click.option("--dry-run", is_flag=True, help="Show what would go. Deletes nothing.")
@click.option(
    "--spool",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="With --all: the spool.  [default: MLFLOW_CKPT_SPOOL, else the user's cache]",
)
@json_option
@uri_option("Whose.  [default: MLFLOW_TRACKING_URI, else ./mlflow.db]")
@guarded
def gc(
    experiment: str | None,
    everywhere: bool,
    deleted_runs: bool,
    pinned: bool,
    undelivered: bool,
    dry_run: bool,
    spool: Path | None,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """Delete the checkpoints of runs that are gone.

    `mlflow gc` leaves them. Run it before `mlflow gc` with --deleted-runs, or after it. What is
    registered, pinned, or holds a fork stays, and is named. Deletions that were broken off are
    finished.

    \b
    Example:
      mlflow-ckpt gc --all --deleted-runs --dry-run
      mlflow-ckpt gc --experiment digits
    """
    if (experiment is None) != everywhere:
        raise click.UsageError("Give --experiment or --all, one of them.")
    from mlflow_ckpt import keep_report, orphans

    use(tracking_uri)
    collector = orphans.Collector(
        deleted_runs=deleted_runs, pinned=pinned, undelivered=undelivered, dry_run=dry_run
    )
    found: list[orphans.Orphan] = []

    def show() -> None:
        if as_json:
            echo_json([each.to_dict() for each in found])
        else:
            keep_report.print_collected(found, dry_run=dry_run)

    try:
        with shown("looking", "checkpoints"):
            found.extend(collector.collect(experiment, spool))
    except CheckpointError:
        if found:  # What is gone is gone, whatever came then.
            show()
        raise
    show()
