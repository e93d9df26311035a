"""The command line `mlflow-ckpt`: look at the checkpoints of a run and take one out.

Commands only parse and print. MLflow, Keras and rich take seconds to import, so every
import that needs one of them stands inside a command, and `--help` answers at once.

Exit codes: 1 with one line on stderr for a failure, 2 for a wrong command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ckpt import __version__
from mlflow_ckpt.cli_keep import gc, pin, prune
from mlflow_ckpt.cli_options import (
    echo_json,
    json_option,
    of_a_run,
    param_option,
    run_id_argument,
    selector_argument,
)
from mlflow_ckpt.cli_prove import prove
from mlflow_ckpt.cli_sync import sync
from mlflow_ckpt.cli_trust import resolve, verify

if TYPE_CHECKING:
    from mlflow_ckpt.exporting import Format

# Those of `exporting.Format`, whose module brings Keras; a test compares the two.
FORMATS = ("keras", "weights", "h5", "saved_model", "tf")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 96})
@click.version_option(__version__, prog_name="mlflow-ckpt", message="%(prog)s %(version)s")
def main() -> None:
    """Look at the checkpoints of an MLflow run, and take them out.

    RUN_ID is the ID of an MLflow run. SELECTOR names one of its checkpoints: latest, final,
    best, best(METRIC[,min|max]), step=N or epoch=N, then @SERIES if the run has several.

    \b
    Example:
      mlflow-ckpt list 2440a0191a3148b8a59dc32e1d92c259
      mlflow-ckpt show 2440a0191a3148b8a59dc32e1d92c259 best
    """


for command in (gc, pin, prove, prune, resolve, sync, verify):
    main.add_command(command)


@main.command("list")
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


@main.command()
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


@main.command()
@run_id_argument
@selector_argument
@click.option(
    "--dst",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Folder in which the checkpoint gets a folder of its own.",
)
@of_a_run
def pull(run_id: str, which: str, dst: Path) -> None:
    """Download one checkpoint, every byte verified.

    SELECTOR is latest if left out. Prints the folder, in which plain Keras opens
    data/model.keras.

    \b
    Example:
      mlflow-ckpt pull 2440a0191a3148b8a59dc32e1d92c259 best --dst checkpoints
    """
    from mlflow_ckpt.loader import download

    click.echo(download(run_id, which, dst))


@main.command()
@run_id_argument
@click.argument("which", metavar="SELECTOR")
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    required=True,
    help="weights writes .weights.h5, h5 Keras's legacy HDF5, tf a TensorFlow checkpoint.",
)
@click.option(
    "--dst",
    metavar="PATH",
    type=click.Path(path_type=Path),
    required=True,
    help="File, folder (saved_model) or prefix (tf) to write. It must not exist yet.",
)
@of_a_run
def export(run_id: str, which: str, format: Format, dst: Path) -> None:
    """Write one checkpoint in a format of other tools.

    It is rebuilt from the stored one. Prints the path that it wrote.

    \b
    Example:
      mlflow-ckpt export 2440a0191a3148b8a59dc32e1d92c259 best --format h5 --dst best.h5
      mlflow-ckpt export 2440a0191a3148b8a59dc32e1d92c259 final --format saved_model --dst served
    """
    from mlflow_ckpt import exporting

    click.echo(exporting.export(run_id, which, dst, format=format))


@main.command()
@run_id_argument
@selector_argument
@param_option("Override a parameter of the run.")
@click.option("--name", metavar="TEXT", help="Name of the new run.")
@of_a_run
def fork(run_id: str, which: str, params: dict[str, str], name: str | None) -> None:
    """Make a new run that starts at a checkpoint of this one.

    SELECTOR is latest if left out. The run itself stays as it is. Prints the new run's ID, and on
    stderr how to continue it.

    \b
    Example:
      mlflow-ckpt fork 2440a0191a3148b8a59dc32e1d92c259 epoch=5 -P epochs=40 --name longer
    """
    from mlflow_ckpt import forking

    new = forking.fork(run_id, which, params=params, name=name)
    click.echo(new)
    click.echo(f"Continue it with:\n  {forking.continue_command(new)}", err=True)
