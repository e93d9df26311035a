"""`mlflow-ckpt doctor`: is everything fit for checkpoints, and what to type if not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mlflow_ckpt.cli_complete import run_ids
from mlflow_ckpt.cli_options import echo_json, guarded, json_option, uri_option

if TYPE_CHECKING:
    from mlflow_ckpt.finding import Finding

_MIB = 1 << 20
_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}
_NAME = 21


@click.command()
@click.argument("run_id", metavar="[RUN_ID]", required=False, shell_complete=run_ids)
@click.option("--experiment", metavar="NAME", help="Whose artifacts to try, instead of a run's.")
@click.option(
    "--size",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    metavar="MIB",
    help="Of the file that measures a disk or a store.",
)
@click.option("--no-capture", is_flag=True, help="Leave the snapshot out, which imports Keras.")
@json_option
@uri_option("What to ask.  [default: MLFLOW_TRACKING_URI, else ./mlflow.db]")
@guarded
def doctor(
    run_id: str | None,
    experiment: str | None,
    size: int,
    no_capture: bool,
    as_json: bool,
    tracking_uri: str | None,
) -> None:
    """See whether everything here is fit for checkpoints.

    Versions, how a snapshot is taken, the spool and its disk, the tracking server, who one is
    there, and the artifact store's speed and whether it can delete. One line each, and what to
    do below it. Exit code 1 if there is a problem; a warning is none. A server that does not
    answer is said within 20 seconds, an artifact store within 2 minutes. Nothing is left behind
    but what a store cannot delete, which is named.

    \b
    Example:
      mlflow-ckpt doctor --experiment digits
      mlflow-ckpt doctor 2440a0191a3148b8a59dc32e1d92c259 --size 64
      mlflow-ckpt doctor --no-capture --json
    """
    if run_id and experiment:
        raise click.UsageError("Give RUN_ID or --experiment: a run's experiment is its own.")
    from mlflow_ckpt import doctoring
    from mlflow_ckpt.cli_address import named

    wanted = doctoring.Wanted(
        tracking_uri=tracking_uri,
        run_id=named({"run_id": run_id})["run_id"] if run_id else None,
        experiment=experiment,
        size=size * _MIB,
        capture=not no_capture,
    )
    found: list[Finding] = []
    with _shown() as told:
        for finding in doctoring.examine(wanted, told):
            found.append(finding)
            if not as_json:
                told("")
                _print(finding)
    _end(found, as_json=as_json)
    code = int(any(finding.verdict == "problem" for finding in found))
    if doctoring.still_waits():
        # The threads of a client that tries again for minutes would be waited for.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        raise SystemExit(code)


def _end(found: list[Finding], *, as_json: bool) -> None:
    count = {v: sum(f.verdict == v for f in found) for v in ("problem", "warning")}
    if as_json:
        worst = next((verdict for verdict, number in count.items() if number), "ok")
        echo_json({"verdict": worst, "findings": [finding.record() for finding in found]})
        return
    words = [f"{n} {v}{'s' if n > 1 else ''}" for v, n in count.items() if n]
    click.echo(f"\n{' and '.join(words) or 'All is well'}.")


def _print(finding: Finding) -> None:
    """One line, and what to do below it; in colours where somebody sees them."""
    verdict = click.style(f"{finding.verdict:<9}", fg=_STYLES[finding.verdict])
    click.echo(f"{verdict}{finding.name:<{_NAME}}{finding.text}")
    if finding.advice:
        click.echo(f"{'':9}{'':{_NAME}}-> {finding.advice}")


@contextmanager
def _shown() -> Iterator[Callable[[str], None]]:
    """Say on stderr what is being done, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from mlflow_ckpt.table import console

    on = console(stderr=True)
    with on.status("") as status:

        def told(text: str) -> None:
            if text:
                status.update(f"{text} ...")
                status.start()
            else:
                status.stop()

        yield told
