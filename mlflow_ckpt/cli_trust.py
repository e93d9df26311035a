"""`mlflow-ckpt verify` and `resolve`: are the bytes right, and why this checkpoint."""

from __future__ import annotations

import click

from mlflow_ckpt.cli_bar import shown
from mlflow_ckpt.cli_complete import run_ids
from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    of_a_run,
    one_line,
    run_id_argument,
    selector_argument,
)
from mlflow_ckpt.errors import CheckpointError


@click.command()
@click.argument("run_id", metavar="[RUN_ID]", required=False, shell_complete=run_ids)
@click.option("--experiment", metavar="NAME", help="Every run of this experiment.")
@click.option("--series", metavar="NAME", help="Only this series of the run.")
@click.option("--no-mark", is_flag=True, help="Tell nobody: leave the tags as they are.")
@json_option
@of_a_run
def verify(
    run_id: str | None, experiment: str | None, series: str | None, no_mark: bool, as_json: bool
) -> None:
    """Read every byte again and compare the digests.

    A checkpoint with a fault is marked (ckpt.complete=corrupt): no selector returns it any more,
    and its files stay. One that is marked and whole again loses the mark. Exit code 1 on any
    fault, and where something could not be read; the JSON of a check that was broken off has what
    was seen by then, and an "error".

    \b
    Example:
      mlflow-ckpt verify 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt verify --experiment digits --json
    """
    if (run_id is None) == (experiment is None):
        raise click.UsageError("Give RUN_ID or --experiment, one of them.")
    if experiment and series:
        raise click.UsageError("--series is one of a run: give RUN_ID.")
    from mlflow_ckpt import progress, trust_report, verifying

    verdicts: list[verifying.Verdict] = []

    def seen(verdict: verifying.Verdict) -> None:
        verdicts.append(verdict)
        if not as_json:
            with progress.hidden():
                trust_report.print_verdict(verdict)

    try:
        with shown("reading"):
            if experiment:
                found = verifying.verify_experiment(experiment, mark=not no_mark, seen=seen)
            else:
                found = verifying.verify(run_id or "", series=series, mark=not no_mark, seen=seen)
    except CheckpointError as error:
        if as_json:
            broken_off = verifying.Verification(verdicts=tuple(verdicts)).to_dict()
            failure = {"error": one_line(error), "type": type(error).__name__}
            echo_json({**broken_off, "ok": False, **failure})
        raise
    if as_json:
        echo_json(found.to_dict())
    else:
        trust_report.print_verification(found)
    if not found.ok:
        raise SystemExit(1)


@click.command()
@run_id_argument
@selector_argument
@click.option("--why", is_flag=True, help="List the candidates, ties, NaNs and what was skipped.")
@json_option
@of_a_run
def resolve(run_id: str, which: str, why: bool, as_json: bool) -> None:
    """Print the URI of one checkpoint, or why it is that one.

    SELECTOR is latest if left out. The URI works in every MLflow API that takes one. --json has
    all that --why prints. Reads no file: see verify.

    \b
    Example:
      mlflow-ckpt resolve 2440a0191a3148b8a59dc32e1d92c259 best
      mlflow-ckpt resolve 2440a0191a3148b8a59dc32e1d92c259 'best(val_accuracy)' --why
    """
    if not (why or as_json):
        from mlflow_ckpt import resolver

        click.echo(resolver.resolve(run_id, which).uri)
        return
    from mlflow_ckpt import explaining, trust_report

    found = explaining.explain(run_id, which)
    if as_json:
        echo_json(found.to_dict())
    else:
        trust_report.print_explanation(found)
    if found.chosen is None:
        raise click.ClickException(found.problem)
