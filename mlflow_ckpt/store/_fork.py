"""Make a run beside another one, and say which checkpoint a run began from.

What a new run is given, and in which order, is decided by `forking.py`. A run that is half
made must not look like one to continue: it stays RUNNING while it is made, is then marked
SCHEDULED, or FAILED if anything went wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, Param
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_USER

from mlflow_ckpt.record import CAPTURE_TAG, Checkpoint, MetricRow, Run
from mlflow_ckpt.store._connection import translated


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What a checkpoint's LoggedModel says beyond a `Checkpoint`.

    Attributes:
        rows: The metrics that its own run logged with it.
        capture: How its state was taken: `snapshot.Strategy`.
    """

    rows: tuple[MetricRow, ...]
    capture: str


def new_run(client: MlflowClient, beside: Run, name: str, tags: Mapping[str, str]) -> Run:
    """Create a run in the experiment of another one, in the name of who asks for it."""
    with translated("create a run"):
        who = resolve_tags().get(MLFLOW_USER)
        own = {MLFLOW_USER: who} if who else {}
        made = client.create_run(beside.experiment_id, tags={**own, **tags}, run_name=name)
    return Run(
        run_id=made.info.run_id,
        experiment_id=made.info.experiment_id,
        name=made.info.run_name or "",
        status=made.info.status,
        tags=dict(made.data.tags),
        artifact_uri=made.info.artifact_uri,
    )


def set_status(client: MlflowClient, run: Run, status: Literal["SCHEDULED", "FAILED"]) -> None:
    """Mark a run; one that is FAILED has ended as well."""
    with translated(f"mark run {run.run_id} as {status}"):
        if status == "FAILED":
            client.set_terminated(run.run_id, status)
        else:
            client.update_run(run.run_id, status=status)


def log_params(client: MlflowClient, run: Run, params: Mapping[str, str]) -> None:
    """Log parameters, in requests of as many as MLflow takes."""
    with translated("log parameters"):
        # Said here because MLFLOW_ENABLE_ASYNC_LOGGING would let a failure pass in silence.
        client.log_batch(
            run.run_id,
            params=[Param(key, value) for key, value in params.items()],
            synchronous=True,
        )


def history(client: MlflowClient, run: Run, key: str) -> list[MetricRow]:
    """The whole curve of `key`: a step of a user's own metric may have several values."""
    with translated(f"read the metric {key!r}"):
        found = client.get_metric_history(run.run_id, key)
    return [MetricRow(key=key, value=m.value, timestamp=m.timestamp, step=m.step) for m in found]


def logged(client: MlflowClient, checkpoint: Checkpoint) -> Logged:
    """Read the LoggedModel of a checkpoint. What other runs logged with it is left out."""
    with translated(f"read {checkpoint.name}"):
        model = client.get_logged_model(checkpoint.model_id)
    rows = tuple(
        MetricRow(key=m.key, value=m.value, timestamp=m.timestamp, step=m.step)
        for m in model.metrics or []
        if m.run_id == checkpoint.run_id
    )
    return Logged(rows=rows, capture=model.tags.get(CAPTURE_TAG, ""))


def log_input(client: MlflowClient, run: Run, checkpoint: Checkpoint) -> None:
    """Let the run's page name the checkpoint that it began from. MLflow keeps one of equals."""
    with translated("log a model input"):
        client.log_inputs(run.run_id, models=[LoggedModelInput(checkpoint.model_id)])
