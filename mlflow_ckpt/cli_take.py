"""`mlflow-ckpt pull` and `export`: take one checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ckpt.cli_options import of_a_run, run_id_argument, selector_argument

if TYPE_CHECKING:
    from mlflow_ckpt.exporting import Format

# Those of `exporting.Format`, whose module brings Keras; a test compares the two.
FORMATS = ("keras", "weights", "h5", "saved_model", "tf")


@click.command()
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


@click.command()
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
