"""Make one checkpoint visible, all of it or nothing.

    draft (PENDING) -> files -> manifest -> metrics -> link to the run -> finalize READY
    -> tags ckpt.manifest_digest and ckpt.complete=true, in one call

The last call is the only commit point: what is killed before it resolves nowhere. The
link comes late because a run's page lists whatever is linked, half-made or not.

These are all the requests of one committed whole-model checkpoint through `mlflow server`,
in their order; a local artifact store makes the same ones without the PUTs. MLflow has no
call that takes two of them together, and the artifact proxy takes one file a request.

    POST  api/2.0/mlflow/logged-models                           create
    PUT   .../artifacts/MLmodel                                  one for each file:
    PUT   .../artifacts/conda.yaml
    PUT   .../artifacts/data/keras_module.txt
    PUT   .../artifacts/data/model.keras
    PUT   .../artifacts/python_env.yaml
    PUT   .../artifacts/requirements.txt
    PUT   .../artifacts/state/training_state.h5
    PUT   .../artifacts/manifest.json                            last of the files
    POST  api/2.0/mlflow/runs/log-batch                          metrics
    POST  api/2.0/mlflow/runs/outputs                            link, if it is due
    PATCH api/2.0/mlflow/logged-models/{model_id}                finalize
    PATCH api/2.0/mlflow/logged-models/{model_id}/tags           commit
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow.entities import LoggedModelOutput, Metric
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ckpt.manifest import FILENAME, Manifest, digest_bytes
from mlflow_ckpt.record import (
    CAPTURE_TAG,
    COMPLETE_TAG,
    DIGEST_TAG,
    FINAL_TAG,
    Checkpoint,
    MetricRow,
)
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._draft import Draft


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What one commit writes.

    Attributes:
        manifest: Describes every file of the draft.
        synced: Paths of the files that are on the disk already.
        metrics: Finite rows to log with the model; they also appear on the run's curves.
        beside: Rows of the same epoch for the run's curves alone: a LoggedModel would turn
            NaN into 0.0.
        values: The finite metrics by Keras's names, for the returned `Checkpoint`.
        weights_only: Whether the draft holds weights instead of a model.
        capture: How the state was taken: `snapshot.Strategy`.
        final: Whether it is the state in which `fit` left the model.
        link: Whether the run's page is to list it from now on.
    """

    manifest: Manifest
    synced: Sequence[str] = ()
    metrics: Sequence[MetricRow]
    beside: Sequence[MetricRow] = ()
    values: dict[str, float]
    weights_only: bool
    capture: str
    final: bool = False
    link: bool = True


def commit(connection: Connection, draft: Draft, request: Commit) -> Checkpoint:
    """Carry out the protocol above, from the files on.

    Raises:
        SaveFailed: If any part of it fails; the draft is then abandoned.
    """
    sealed = False
    try:
        data = request.manifest.to_bytes()
        _fill(connection, draft, request, data)
        sealed = True
        return _seal(connection, draft, request, digest_bytes(data))
    except Exception as error:
        raise draft.abandon(connection, error, sealed=sealed) from error
    finally:
        draft.close()


def _fill(connection: Connection, draft: Draft, request: Commit, data: bytes) -> None:
    """All but the last request; `data` is the manifest."""
    run_id, model = draft.run.run_id, draft.model
    draft.publish([entry.path for entry in request.manifest.files], synced=request.synced)
    (draft.directory / FILENAME).write_bytes(data)
    draft.publish([FILENAME])
    rows = [_metric(row, run_id, model.model_id) for row in request.metrics]
    rows += [_metric(row, run_id, None) for row in request.beside]
    with translated("commit a checkpoint"):
        # Said here because MLFLOW_ENABLE_ASYNC_LOGGING would let a failure pass in silence.
        connection.client.log_batch(run_id, metrics=rows, synchronous=True)
        if request.link:
            output = LoggedModelOutput(model.model_id, draft.position.epoch)
            connection.client.log_outputs(run_id, [output])
        connection.client.finalize_logged_model(model.model_id, "READY")


def _seal(connection: Connection, draft: Draft, request: Commit, digest: str) -> Checkpoint:
    """The last request, which commits."""
    run_id, model = draft.run.run_id, draft.model
    with translated("commit a checkpoint"):
        connection.tag_model(
            model.model_id,
            {
                "ckpt.bytes": str(request.manifest.total_bytes),
                "ckpt.weights_only": "true" if request.weights_only else "false",
                CAPTURE_TAG: request.capture,
                DIGEST_TAG: digest,
                COMPLETE_TAG: "true",
            }
            | ({FINAL_TAG: "true"} if request.final else {}),
        )
    return Checkpoint(
        run_id=run_id,
        model_id=model.model_id,
        position=draft.position,
        metrics=request.values,
        bytes=request.manifest.total_bytes,
        digest=digest,
        artifact_uri=model.artifact_location,
        created_at=model.creation_timestamp,
        weights_only=request.weights_only,
        final=request.final,
    )


def _metric(row: MetricRow, run_id: str, model_id: str | None) -> Metric:
    return Metric(row.key, row.value, row.timestamp, row.step, model_id=model_id, run_id=run_id)


def delete(connection: Connection, checkpoint: Checkpoint) -> str | None:
    """Take a checkpoint away: first from every resolver, then its files, then its record.

    Returns:
        Why its files had to stay, where the artifact store cannot delete; else `None`.
    """
    with translated(f"delete {checkpoint.name}"):
        connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "deleting"})
        try:
            get_artifact_repository(
                checkpoint.artifact_uri, tracking_uri=connection.uri
            ).delete_artifacts()
            reason = None
        except NotImplementedError as error:
            reason = str(error) or "the artifact store cannot delete"
        connection.client.delete_logged_model(checkpoint.model_id)
    return reason
