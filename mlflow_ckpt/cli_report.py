"""`mlflow-ckpt report`: a page about the checkpoints of a run, for people to look at."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_ckpt.cli_options import echo_json, json_option, of_a_run, run_id_argument


@click.command()
@run_id_argument
@click.option(
    "--dst",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write an HTML file, and nothing to the run.",
)
@json_option
@of_a_run
def report(run_id: str, dst: Path | None, as_json: bool) -> None:
    """Bring the page about a run's checkpoints up to date.

    It is the run's artifact checkpoints/report.html, which the MLflow UI shows: curves with the
    checkpoints on them, a timeline of fits, resumes and forks, sizes, stalls, and what was
    verified. A fit refreshes it by itself. The file needs no network. Prints where it lies.

    \b
    Example:
      mlflow-ckpt report 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt report 2440a0191a3148b8a59dc32e1d92c259 --dst report.html
    """
    from mlflow_ckpt import reporter

    written = reporter.write(run_id, dst)
    if as_json:
        echo_json(written.to_dict())
    else:
        click.echo(written.where)
