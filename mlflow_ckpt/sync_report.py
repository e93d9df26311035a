"""Show a person what waits in a spool, and what became of it when it was delivered.

One line a journal: on stdout if nothing is left of it, else on stderr, with the reason. With
JSON, stdout holds that and nothing else. Sizes are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import click

from mlflow_ckpt import progress, syncing
from mlflow_ckpt.cli_bar import shown
from mlflow_ckpt.cli_options import echo_json, one_line
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import SpoolError
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store, portable_uri
from mlflow_ckpt.sync_outcome import Outcome, Record, Tally, amount, counted, where_of
from mlflow_ckpt.syncing import Waiting
from mlflow_ckpt.table import human_bytes


@dataclass(frozen=True, kw_only=True)
class Scope:
    """Which journals are meant.

    Attributes:
        run_id: Only this run; `None` means those of the current tracking server.
        folder: The spool; `None` takes the one that a `fit` would take.
        everywhere: Whether to take the runs of all tracking servers.
    """

    run_id: str | None = None
    folder: Path | None = None
    everywhere: bool = False

    @property
    def spool(self) -> Path:
        return (self.folder or Spool().folder()).absolute()

    @property
    def command(self) -> str:
        """What delivers it."""
        words = ["mlflow-ckpt sync", self.run_id, "--all" if self.everywhere else None]
        words.append(f"--spool {self.folder}" if self.folder else None)
        return " ".join(word for word in words if word)

    def look(self) -> list[Waiting]:
        """What waits; no server is asked.

        Raises:
            SpoolError, FormatTooNew: If the spool, or a journal in it, cannot be read.
        """
        spool = self.spool
        if spool.exists() and not (spool.is_dir() and os.access(spool, os.R_OK | os.X_OK)):
            raise SpoolError(
                f"Expected a folder that this user may read. Received: {spool}. Name another one "
                "with --spool or MLFLOW_CKPT_SPOOL, or ask as the user whose spool it is."
            )
        return syncing.look(self.run_id, spool, everywhere=self.everywhere)

    def nothing(self) -> str:
        """Say that nothing waits, and where more does."""
        if self.run_id or self.everywhere:
            of = f" of run {self.run_id}" if self.run_id else ""
            return f"Nothing{of} waits in {self.spool}."
        text = f"Nothing waits for {portable_uri(Store().uri)} in {self.spool}."
        others = syncing.look(None, self.spool, everywhere=True)
        if not others:
            return text
        return (
            f"{text} For other tracking servers: {_sum(others)}. See: mlflow-ckpt sync --all "
            + (f"--spool {self.folder} --dry-run" if self.folder else "--dry-run")
        )


# --- what waits ---------------------------------------------------------------


def print_waiting(scope: Scope, *, as_json: bool = False) -> None:
    """Print what waits; no server is asked.

    Raises:
        SpoolError, FormatTooNew: See `Scope.look`.
    """
    found = scope.look()
    if as_json:
        echo_json([_record(waiting) for waiting in found])
    elif not found:
        click.echo(scope.nothing())
    else:
        for waiting in found:
            click.echo("\n".join(_describe(waiting)) + "\n")
        click.echo(f"{_sum(found)} in all. Deliver with: {scope.command}")


def _record(waiting: Waiting) -> Record:
    return {
        "run_id": waiting.run_id,
        "series": waiting.series,
        "tracking_uri": waiting.tracking_uri,
        "path": str(waiting.journal.path),
        "checkpoints": list(waiting.checkpoints),
        "other_entries": waiting.entries - len(waiting.checkpoints),
        "refused": list(waiting.refused),
        "bytes": waiting.bytes,
        "fault": one_line(waiting.fault) if waiting.fault else None,
    }


def _describe(waiting: Waiting) -> Iterator[str]:
    yield f"{where_of(waiting)}, for {waiting.tracking_uri or 'the current tracking server'}"
    yield f"  checkpoints    {', '.join(waiting.checkpoints) or 'none'}"
    yield f"  other entries  {waiting.entries - len(waiting.checkpoints)}"
    if waiting.fault:
        yield f"  unreadable     {one_line(waiting.fault)}"
    for reason in waiting.refused:
        yield f"  refused        {' '.join(reason.split())}"
    yield f"  on disk        {human_bytes(waiting.bytes)} in {waiting.journal.path}"


def _sum(found: Sequence[Waiting]) -> str:
    text = amount(sum(len(waiting.checkpoints) for waiting in found), sum(w.entries for w in found))
    return f"{text} of {counted(len(found), 'series', 'series')}"


# --- what became of it --------------------------------------------------------


def deliver(scope: Scope, *, as_json: bool = False) -> bool:
    """Deliver what waits and print what became of it; whether nothing is left.

    Raises:
        SpoolError, FormatTooNew: See `Scope.look`.
        StoreError: If a tracking server cannot be named.
    """
    found = scope.look()
    if not found and not as_json:
        click.echo(scope.nothing())
    outcomes: list[Outcome] = []
    tally = Tally.of(found)

    def told(waiting: Waiting, entry: Entry) -> None:
        tally.told(waiting, entry)
        progress.turn_to(tally.text, measured=True)

    with shown(tally.text) if found else nullcontext():
        progress.expect(sum(tally.sizes.values()))
        for synced in syncing.sync(
            scope.run_id, scope.spool, everywhere=scope.everywhere, told=told
        ):
            outcome = Outcome.of(synced, tally)
            outcomes.append(outcome)
            if outcome.complete and not as_json:
                with progress.hidden():
                    click.echo(outcome.line())
    for outcome in outcomes:
        if not outcome.complete:
            click.echo(f"Error: {outcome.line()}", err=True)
    if as_json:
        echo_json([outcome.record() for outcome in outcomes])
    return all(outcome.complete for outcome in outcomes)
