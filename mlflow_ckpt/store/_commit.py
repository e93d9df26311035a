"""Make one checkpoint visible, all of it or nothing.

    create (PENDING) -> upload files -> upload manifest -> metrics -> link to the run
    -> finalize READY -> tags ckpt.manifest_digest and ckpt.complete=true, in one call

The last call is the only commit point: what is killed before it resolves nowhere. The
link comes late because a run's page lists whatever is linked, half-made or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ckpt.errors import CheckpointError, SaveFailed
from mlflow_ckpt.manifest import FILENAME, Manifest, digest_bytes
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    DIGEST_TAG,
    FINAL_TAG,
    MODEL_TYPE,
    Checkpoint,
    MetricRow,
    Position,
    Run,
)
from mlflow_ckpt.store._connection import translated


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What one commit writes.

    Attributes:
        run: The run it belongs to.
        position: Where in its series it stands.
        directory: Local folder with every file but the manifest.
        manifest: Describes these files.
        metrics: Finite rows to log with the model; they also appear on the run's curves.
        values: The finite metrics by Keras's names, for the returned `Checkpoint`.
        weights_only: Whether the folder holds weights instead of a model.
        final: Whether it is the state in which `fit` left the model.
    """

    run: Run
    position: Position
    directory: Path
    manifest: Manifest
    metrics: Sequence[MetricRow]
    values: dict[str, float]
    weights_only: bool
    final: bool = False


def commit(client: MlflowClient, request: Commit) -> Checkpoint:
    """Carry out the protocol above.

    Raises:
        SaveFailed: If any part of it fails; the LoggedModel is then marked FAILED.
    """
    model: LoggedModel | None = None
    try:
        with translated("create a logged model"):
            model = client.create_logged_model(
                request.run.experiment_id,
                name=request.position.name,
                source_run_id=request.run.run_id,
                tags=request.position.tags(),
                params={k: str(getattr(request.position, k)) for k in ("series", "epoch", "step")},
                model_type=MODEL_TYPE,
            )
        return _fill(client, request, model)
    except (MlflowException, CheckpointError, OSError) as error:
        failure = SaveFailed(
            f"The checkpoint {request.position.name} of run {request.run.run_id} was not "
            f"committed: {error} Earlier checkpoints are untouched.",
            reason=error,
        )
        if model is not None:
            _mark_failed(client, model, failure)
        raise failure from error


def _fill(client: MlflowClient, request: Commit, model: LoggedModel) -> Checkpoint:
    run_id, model_id = request.run.run_id, model.model_id
    data = request.manifest.to_bytes()
    digest = digest_bytes(data)
    repository = get_artifact_repository(model.artifact_location)
    repository.log_artifacts(str(request.directory))
    (request.directory / FILENAME).write_bytes(data)
    repository.log_artifact(str(request.directory / FILENAME))
    with translated("commit a checkpoint"):
        client.log_batch(
            run_id,
            metrics=[
                Metric(m.key, m.value, m.timestamp, m.step, model_id=model_id, run_id=run_id)
                for m in request.metrics
            ],
        )
        client.log_outputs(run_id, [LoggedModelOutput(model_id, request.position.epoch)])
        client.finalize_logged_model(model_id, "READY")
        client.set_logged_model_tags(
            model_id,
            {
                "ckpt.bytes": str(request.manifest.total_bytes),
                "ckpt.weights_only": "true" if request.weights_only else "false",
                DIGEST_TAG: digest,
                COMPLETE_TAG: "true",
            }
            | ({FINAL_TAG: "true"} if request.final else {}),
        )
    return Checkpoint(
        run_id=run_id,
        model_id=model_id,
        position=request.position,
        metrics=request.values,
        bytes=request.manifest.total_bytes,
        digest=digest,
        artifact_uri=model.artifact_location,
        created_at=model.creation_timestamp,
        weights_only=request.weights_only,
        final=request.final,
    )


def _mark_failed(client: MlflowClient, model: LoggedModel, failure: SaveFailed) -> None:
    """Show the failure in the UI; where even that fails, say so in the error that is raised."""
    try:
        client.finalize_logged_model(model.model_id, "FAILED")
    except MlflowException as error:
        failure.add_note(f"Its logged model {model.model_id} could not be marked FAILED: {error}")


def delete(client: MlflowClient, checkpoint: Checkpoint) -> str | None:
    """Take a checkpoint away: first from every resolver, then its files, then its record.

    Returns:
        Why its files had to stay, where the artifact store cannot delete; else `None`.
    """
    with translated(f"delete {checkpoint.name}"):
        client.set_logged_model_tags(checkpoint.model_id, {COMPLETE_TAG: "deleting"})
        try:
            get_artifact_repository(checkpoint.artifact_uri).delete_artifacts()
            reason = None
        except NotImplementedError as error:
            reason = str(error) or "the artifact store cannot delete"
        client.delete_logged_model(checkpoint.model_id)
    return reason
