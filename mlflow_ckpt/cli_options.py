"""What the commands of `mlflow-ckpt` share: options, quiet libraries, and how they fail.

Nothing heavy is imported here, and MLflow only when a command runs.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import click

from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.say import say_on_stderr

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

run_id_argument = click.argument("run_id", metavar="RUN_ID")
selector_argument = click.argument("which", metavar="[SELECTOR]", default="latest")
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
        from mlflow_ckpt.store import use_tracking_uri

        use_tracking_uri(tracking_uri)
        function(**arguments)

    return guarded(run)


def guarded(function: Command) -> Command:
    """Keep other libraries quiet in a command, and end its failures as one line."""

    @debug_option
    @functools.wraps(function)
    def run(*, debug: bool, **arguments: Any) -> None:
        be_quiet()
        try:
            with say_on_stderr():
                function(**arguments)
        except (BrokenPipeError, click.ClickException):
            raise
        except Exception as error:
            if debug:
                raise
            raise click.ClickException(one_line(error)) from error

    return run


def be_quiet() -> None:
    """Keep other libraries from talking; to be called before they are imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("absl").setLevel(logging.ERROR)


def one_line(error: Exception) -> str:
    """An error as a person is to read it."""
    text = " ".join(str(error).split())
    if isinstance(error, (CheckpointError, OSError)):
        return text
    return f"{type(error).__name__}: {text} (--debug shows the traceback)"


def echo_json(value: object) -> None:
    """Print JSON that every reader takes: no NaN."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))


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
