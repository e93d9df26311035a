"""What the projects share: errors in one sentence, continuing a run, evaluating one.

`mlflow run -e resume` and `-e evaluate` make a run of their own around the script. It becomes a
child of the run that it is about, so that the list of runs shows it there and not as a stray.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

import mlflow_ckpt as ckpt

# MLflow parameters cannot change, and a resume may lengthen the training.
EPOCHS_TAG = "epochs"
PARENT_TAG = "mlflow.parentRunId"


class Command(click.Command):
    """A command whose every expected failure is one sentence on stderr."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            _refuse_misplaced_store()
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            error.ctx = None  # else click prints its usage lines first
            raise
        except MlflowException as error:
            raise click.ClickException(error.message) from error

    def invoke(self, ctx: click.Context) -> Any:
        _refuse_other_settings(ctx)
        try:
            return super().invoke(ctx)
        except (ckpt.CheckpointError, MlflowException) as error:
            raise click.ClickException(str(error)) from error


class Whole(click.IntRange):
    """A whole number within a range."""

    name = "whole number"


class Finite(click.FloatRange):
    """A number within a range. MLflow does not check a `float`, and a range lets NaN through."""

    name = "number"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


# --- train, and train on ------------------------------------------------------


def continues_run(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--run-id`, which makes that run's settings the defaults of all other options."""
    return click.option(
        "--run-id",
        is_eager=True,
        callback=_take_settings,
        help="Continue this run with its own settings; only --epochs may differ.",
    )(command)


def log_settings() -> None:
    """Log the command's options to the active run, save those that `mlflow run` has logged.

    MLflow refuses a parameter that is logged twice in two spellings, such as 1e-3 and 0.001.
    """
    settings = {k: v for k, v in click.get_current_context().params.items() if k != "run_id"}
    logged = mlflow.active_run().data.params
    mlflow.log_params({k: v for k, v in settings.items() if k not in logged})
    mlflow.set_tag(EPOCHS_TAG, settings["epochs"])


def _take_settings(ctx: click.Context, _: click.Parameter, run_id: str | None) -> str | None:
    if run_id is None:
        return None
    run = find_run(run_id)
    _nest_wrapper(run, f"resume of {run.info.run_name}")
    settings = dict(run.data.params)
    for option in ctx.command.params:
        if option.name not in ("run_id", "help") and option.name not in settings:
            raise click.UsageError(
                f"Run {run_id} was not made by this project's main entry point: "
                f"it has no parameter {option.name!r}."
            )
    if EPOCHS_TAG in run.data.tags:
        settings["epochs"] = run.data.tags[EPOCHS_TAG]
    ctx.default_map = settings
    return run_id


def _nest_wrapper(run: Run, name: str) -> None:
    """Make the run around this script a child of `run`, and no longer the one to log to."""
    wrapper = os.environ.pop("MLFLOW_RUN_ID", run.info.run_id)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    if wrapper != run.info.run_id:
        client = mlflow.MlflowClient()
        client.set_tag(wrapper, PARENT_TAG, run.info.run_id)
        client.update_run(wrapper, name=name)


def _refuse_other_settings(ctx: click.Context) -> None:
    """Only the number of epochs may change: the rest lies in the optimizer and the data order."""
    if not ctx.params.get("run_id") or "epochs" not in ctx.params:
        return
    for name in sorted(ctx.params.keys() - {"run_id", "epochs"}):
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.ClickException(
                f"A continued run keeps its own {name}: leave it out, or start a new run."
            )


# --- evaluate -----------------------------------------------------------------


def evaluate_command(load_test_set: Callable[[Mapping[str, str]], tuple[Any, Any]]) -> Command:
    """Make the command behind the entry point `evaluate`.

    Args:
        load_test_set: Given the parameters of the run, returns inputs and labels.
    """

    @click.command(cls=Command)
    @click.option("--run-id", required=True, help="The run to evaluate.")
    @click.option(
        "--which",
        default="best",
        show_default=True,
        help="Which checkpoint: best, latest, final, epoch=5 or best(val_accuracy).",
    )
    def evaluate(run_id: str, which: str) -> None:
        """Print and log accuracy and loss of one checkpoint on the test set."""
        trained = find_run(run_id)
        with mlflow.start_run(
            experiment_id=trained.info.experiment_id,
            run_name=f"evaluate {which} of {trained.info.run_name}",
            tags={PARENT_TAG: run_id},
        ):
            checkpoint = ckpt.resolve(run_id, which)
            mlflow.set_tag("checkpoint", checkpoint.uri)
            x, y = load_test_set(trained.data.params)
            model = ckpt.load_model(run_id, which)
            if not model.compiled:
                raise click.ClickException(
                    f"The model of {checkpoint.name} was never compiled, so that it has no loss to "
                    "evaluate. Before the training: model.compile(optimizer, loss, metrics=[...])"
                )
            scores = model.evaluate(x, y, verbose=0, return_dict=True)
            mlflow.log_metrics({f"eval_{key}": scores[key] for key in ("accuracy", "loss")})
        click.echo(f"{which} of run {run_id}: {checkpoint.name} ({checkpoint.uri})")
        click.echo(f"test accuracy {scores['accuracy']:.4f}, test loss {scores['loss']:.4f}")

    return evaluate


# --- what both need -----------------------------------------------------------


def find_run(run_id: str) -> Run:
    """Look up a run; an unknown or deleted one is an error in one sentence."""
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        raise click.ClickException(
            f"No run {run_id!r} on the tracking server {mlflow.get_tracking_uri()}: "
            "check the ID, and MLFLOW_TRACKING_URI."
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise click.ClickException(
            f"The run {run_id} is deleted: restore it with `mlflow runs restore --run-id {run_id}`."
        )
    return run


def _refuse_misplaced_store() -> None:
    """Catch a relative database path: `mlflow run` hands it on unchanged into another folder."""
    uri, run_id = os.environ.get("MLFLOW_TRACKING_URI", ""), os.environ.get("MLFLOW_RUN_ID")
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.is_absolute() or not run_id:
        return
    try:
        if path.exists():  # else MLflow would make a new database here
            mlflow.get_run(run_id)
            return
    except MlflowException:
        pass
    raise click.ClickException(
        f"MLFLOW_TRACKING_URI={uri} is relative, and this project runs in {Path.cwd()}: "
        "unset it, or give the absolute path, as in sqlite:////home/me/mlflow.db."
    )
