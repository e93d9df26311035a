"""The command line `mlflow-ckpt`: look at the checkpoints of a run and take one out.

Commands only parse and print. MLflow, Keras and rich take seconds to import, so every
import that needs one of them stands inside a command, and `--help` answers at once.

Exit codes: 1 with one line on stderr for a failure, 2 for a wrong command line.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_ckpt import __version__
from mlflow_ckpt.errors import CheckpointError

if TYPE_CHECKING:
    from mlflow_ckpt.exporting import Format

# Those of `exporting.Format`, whose module brings Keras; a test compares the two.
FORMATS = ("keras", "weights", "h5", "saved_model", "tf")

# Only what the environment leaves open. MLflow's seven retries would make a person wait
# for minutes to learn that no server answers.
_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


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


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options that every command has, and end its failures as one line."""

    @click.option(
        "--tracking-uri",
        metavar="URI",
        help="Where the run is recorded.  [default: MLFLOW_TRACKING_URI, else ./mlflow.db]",
    )
    @click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
    @functools.wraps(function)
    def run(*, tracking_uri: str | None, debug: bool, **arguments: Any) -> None:
        _quiet()
        try:
            from mlflow_ckpt.store import use_tracking_uri

            use_tracking_uri(tracking_uri)
            function(**arguments)
        except BrokenPipeError:
            raise
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(_one_line(error)) from error

    return run


def _quiet() -> None:
    """Keep other libraries from talking; to be called before they are imported."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("absl").setLevel(logging.ERROR)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, (CheckpointError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


_run_id = click.argument("run_id", metavar="RUN_ID")
_selector = click.argument("which", metavar="[SELECTOR]", default="latest")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


@main.command("list")
@_run_id
@click.option("--series", metavar="NAME", help="Only this series.")
@_json
@_common
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
        _echo_json(report.records(run_id, series))
    else:
        report.print_checkpoints(run_id, series)


@main.command()
@_run_id
@_selector
@_json
@_common
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
        _echo_json(report.describe(run_id, which))
    else:
        report.print_checkpoint(run_id, which)


@main.command()
@_run_id
@_selector
@click.option(
    "--dst",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    show_default=True,
    help="Folder in which the checkpoint gets a folder of its own.",
)
@_common
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
@_run_id
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
@_common
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


def _pairs(_: click.Context, __: click.Parameter, words: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=VALUE, each name once."""
    found: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"Expected NAME=VALUE. Received: {word!r}")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice.")
        found[name] = value
    return found


def _params(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        "-P",
        "--param",
        "params",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_pairs,
        help=f"{what} May be given several times.",
    )


@main.command()
@_run_id
@_selector
@_params("Override a parameter of the run.")
@click.option("--name", metavar="TEXT", help="Name of the new run.")
@_common
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


def _batches(
    _: click.Context, __: click.Parameter, words: tuple[str, ...]
) -> tuple[int, ...] | None:
    try:
        return tuple(int(number) for word in words for number in word.split(",")) or None
    except ValueError:
        raise click.BadParameter(f"Expected N[,N...]. Received: {words!r}") from None


@main.command()
@click.argument("project", metavar="PROJECT")
@click.option(
    "-e", "--entry-point", metavar="NAME", default="main", show_default=True, help="What trains."
)
@_params("A parameter of the entry point.")
@click.option(
    "--kill-at",
    "kills",
    metavar="N[,N...]",
    multiple=True,
    callback=_batches,
    help="Training batches after which to kill it.  [default: one third and two thirds]",
)
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="Where the runs are recorded, and stay.  [default: a temporary database]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
@_json
def prove(*, debug: bool, **arguments: Any) -> None:
    """Prove that a project resumes exactly.

    PROJECT is what `mlflow run` takes. It is trained once to the end and once killed by SIGKILL
    and started again with the same run ID. Every variable is compared after every batch, then the
    metric history. Exit code 1 if anything differs.

    \b
    Example:
      mlflow-ckpt prove projects/digits -P epochs=3
      mlflow-ckpt prove . --kill-at 120,300 --json
    """
    environment = dict(os.environ)  # Ours is about to be made quiet.
    _quiet()
    try:
        from mlflow_ckpt.proving import prove_project

        exact = prove_project(**arguments, environment=environment)
    except Exception as error:
        if debug:
            raise
        raise click.ClickException(_one_line(error)) from error
    if not exact:
        raise SystemExit(1)


def _echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False))
