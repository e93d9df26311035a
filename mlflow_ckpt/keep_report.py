"""Show a person what was pruned or collected, and what stays and why. Sizes are bytes."""

from __future__ import annotations

from collections.abc import Sequence

import click

from mlflow_ckpt.orphans import Orphan
from mlflow_ckpt.pruning import Pruned
from mlflow_ckpt.table import Column, console, human_bytes, print_columns


def print_pruned(found: Sequence[Pruned], *, dry_run: bool) -> None:
    """A table of all that was looked at, and the sum."""
    word = "would go" if dry_run else "deleted"
    if found:
        _print(
            Column(title="name", cells=[each.checkpoint.name for each in found]),
            _sizes([each.checkpoint.bytes for each in found]),
            Column(title="", cells=[word if each.gone else "stays" for each in found]),
            Column(title="why", cells=[", ".join(each.why) for each in found]),
        )
    gone = [each.checkpoint for each in found if each.gone]
    size = human_bytes(sum(checkpoint.bytes for checkpoint in gone))
    click.echo(f"{len(gone)} of {len(found)} checkpoints, {size}: {word}.")


def print_collected(found: Sequence[Orphan], *, dry_run: bool) -> None:
    """A table of the orphans, and the sum."""
    word = "would go" if dry_run else "deleted"
    if not found:
        click.echo("Nothing was left behind.")
        return
    _print(
        Column(title="run", cells=[each.run_id for each in found]),
        Column(title="what", cells=[each.kind for each in found]),
        Column(title="name", cells=[each.name for each in found]),
        _sizes([each.bytes for each in found]),
        Column(title="", cells=[word if each.gone else "stays" for each in found]),
        Column(title="why", cells=[each.why for each in found]),
    )
    gone = [each for each in found if each.gone]
    size = human_bytes(sum(each.bytes for each in gone))
    click.echo(f"{len(gone)} of {len(found)} left-overs, {size}: {word}.")


def _sizes(counts: Sequence[int]) -> Column:
    cells = [human_bytes(count) if count else "-" for count in counts]
    return Column(title="size", cells=cells, right=True)


def _print(*columns: Column) -> None:
    print_columns(console(), columns)
