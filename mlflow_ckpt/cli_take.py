"""`mlflow-ckpt pull` and `export`: take one checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlflow_ckpt.cli_bar import shown
from mlflow_ckpt.cli_options import (
    checkpoint_json,
    echo_json,
    hushed,
    json_option,
    needed_selector_argument,
    of_a_run,
    run_id_argument,
    selector_argument,
)

if TYPE_CHECKING:
    from mlflow_ckpt.exporting import Format
    from mlflow_ckpt.record import Checkpoint

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
@json_option
@of_a_run
def pull(run_id: str, which: str, dst: Path, as_json: bool) -> None:
    """Download one checkpoint, every byte verified.

    SELECTOR is latest if left out. Prints the folder, in which plain Keras opens
    data/model.keras.

    \b
    Example:
      mlflow-ckpt pull 2440a0191a3148b8a59dc32e1d92c259 best --dst checkpoints
    """
    from mlflow_ckpt import downloading

    with shown("downloading"):
        checkpoint, path = downloading.pull(run_id, which, dst)
    _print(checkpoint, path, as_json=as_json)


@click.command()
@run_id_argument
@needed_selector_argument
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
@json_option
@of_a_run
def export(run_id: str, which: str, format: Format, dst: Path, as_json: bool) -> None:
    """Write one checkpoint in a format of other tools.

    It is rebuilt from the stored one. Prints the path that it wrote.

    \b
    Example:
      mlflow-ckpt export 2440a0191a3148b8a59dc32e1d92c259 best --format h5 --dst best.h5
      mlflow-ckpt export 2440a0191a3148b8a59dc32e1d92c259 final --format saved_model --dst served
    """
    with hushed():
        from mlflow_ckpt import exporting

    with shown("reading"):
        checkpoint, path = exporting.write(run_id, which, dst, format=format)
    _print(checkpoint, path, as_json=as_json, format=format)


def _print(checkpoint: Checkpoint, path: Path, *, as_json: bool, **more: str) -> None:
    if as_json:
        echo_json({**checkpoint_json(checkpoint), **more, "path": str(path)})
    else:
        click.echo(path)
