"""What the commands of `mlflow-ckpt` share: options, one JSON document, and how they fail.

With `--json`, stdout holds one document and nothing else: what the command found, or, where it
found nothing because it failed, an object with `error` and `type`. What a library prints goes to
stderr. Nothing heavy is imported here, and MLflow only when a command runs.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from mlflow_ckpt.backend_hint import backend_hint
from mlflow_ckpt.cli_complete import run_ids, selectors
from mlflow_ckpt.cli_group import is_stdout_closed
from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.say import say_on_stderr

if TYPE_CHECKING:
    from mlflow_ckpt.record import Checkpoint

Command = Callable[..., None]

# Only what the environment leaves open. MLflow's seven retries would make a person wait
# for minutes to learn that no server answers.
ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}

# What a command notes in `click.Context.meta`: the stdout that a document still has to go to,
# and the environment before it was made quiet.
_STDOUT = "mlflow_ckpt.stdout"
_ENVIRONMENT = "mlflow_ckpt.environment"

run_id_argument = click.argument("run_id", metavar="RUN_ID", shell_complete=run_ids)
selector_argument = click.argument(
    "which", metavar="[SELECTOR]", default="latest", shell_complete=selectors
)
needed_selector_argument = click.argument("which", metavar="SELECTOR", shell_complete=selectors)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
debug_option = click.option("--debug", is_flag=True, help="Show the traceback of a failure.")


def uri_option(help: str) -> Callable[[Command], Command]:
    """`--tracking-uri`."""
    return click.option("--tracking-uri", metavar="URI", help=help)


def of_a_run(function: Command) -> Command:
    """Add the options of a command that reads a run, and end its failures as one line."""

    @uri_option("Where the run is recorded.  [default: MLFLOW_TRACKING_URI, else ./mlflow.db]")
    @functools.wraps(function)
    def run(*, tracking_uri: str | None, **arguments: Any) -> None:
        from mlflow_ckpt.cli_address import named

        use(tracking_uri)
        function(**named(arguments))

    return guarded(run)


def use(tracking_uri: str | None) -> None:
    """Read from there from now on, if it answers.

    Raises:
        StoreError: If it is no tracking URI, or leads to a database that is not there.
        ServerAway: If it is a server that does not answer.
    """
    from mlflow_ckpt.store import Store, reach_server, use_tracking_uri

    use_tracking_uri(tracking_uri)
    reach_server(Store().uri)


def guarded(function: Command) -> Command:
    """Keep other libraries quiet in a command, and end its failures as one line."""

    @debug_option
    @functools.wraps(function)
    def run(*, debug: bool, **arguments: Any) -> None:
        _meta()[_ENVIRONMENT] = dict(os.environ)
        be_quiet()
        try:
            with say_on_stderr(), _one_document(bool(arguments.get("as_json"))):
                function(**arguments)
        except Exception as error:
            if debug or _is_told(error):
                raise
            raise click.ClickException(one_line(error)) from error

    return run


def _is_told(error: Exception) -> bool:
    """Whether an exception is no failure, or one that click tells in a line of its own."""
    if isinstance(error, BrokenPipeError):
        return is_stdout_closed()
    return isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort)


@contextmanager
def _one_document(as_json: bool) -> Iterator[None]:
    """Keep stdout for what `echo_json` prints, and see that a failure prints something too."""
    if not as_json:
        yield
        return
    meta = _meta()
    meta[_STDOUT] = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:
        is_failure = isinstance(error, click.ClickException) or not _is_told(error)
        if _STDOUT in meta and is_failure and not isinstance(error, click.UsageError):
            echo_json({"error": one_line(error), "type": type(error).__name__})
        raise
    finally:
        meta.pop(_STDOUT, None)


def echo_json(value: object) -> None:
    """Print the JSON document of a command, as every reader takes it: no NaN."""
    text = json.dumps(value, indent=2, allow_nan=False)
    click.echo(text, file=_meta().pop(_STDOUT, None))


def checkpoint_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which checkpoint a command took, as JSON values."""
    return {
        "run_id": checkpoint.run_id,
        "series": checkpoint.series,
        "name": checkpoint.name,
        "model_id": checkpoint.model_id,
        "uri": checkpoint.uri,
        "epoch": checkpoint.epoch,
        "step": checkpoint.step,
        "bytes": checkpoint.bytes,
        "skipped": [vars(each) for each in checkpoint.skipped],
    }


def original_environment() -> Mapping[str, str]:
    """The environment as it was before this command made libraries quiet in it."""
    found: Mapping[str, str] = _meta().get(_ENVIRONMENT, os.environ)
    return found


def _meta() -> dict[str, Any]:
    context = click.get_current_context(silent=True)
    return {} if context is None else context.meta


def be_quiet() -> None:
    """Keep other libraries from talking; to be called before they are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("absl").setLevel(logging.ERROR)


@contextmanager
def hushed() -> Iterator[None]:
    """Keep what native code says on stderr meanwhile; it is told if something fails.

    TensorFlow talks while it is imported, before it can be asked not to.
    """
    with tempfile.TemporaryFile() as kept:
        stderr = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(stderr, kept.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def one_line(error: Exception) -> str:
    """An error as a person is to read it."""
    text = " ".join(
        (error.message if isinstance(error, click.ClickException) else str(error)).split()
    )
    if isinstance(error, (CheckpointError, OSError, click.ClickException)):
        return text
    if isinstance(error, ModuleNotFoundError) and (hint := backend_hint(error)):
        return f"{text}. {hint}"
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def param_option(what: str) -> Callable[[Command], Command]:
    """`-P NAME=VALUE`, as often as wanted."""
    return click.option(
        "-P",
        "--param",
        "params",
        metavar="NAME=VALUE",
        multiple=True,
        callback=_pairs,
        help=f"{what} May be given several times.",
    )


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
