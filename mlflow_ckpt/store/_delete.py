"""Take checkpoints away, and what lost answers left beside them."""

from __future__ import annotations

from collections.abc import Container

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ckpt.record import COMPLETE_TAG, ENTRY_TAG, Checkpoint, Run
from mlflow_ckpt.store import _query
from mlflow_ckpt.store._connection import Connection, translated


def drop_unfinished(
    connection: Connection, run: Run, series: str, done: Container[str], *, alone: bool
) -> int:
    """Delete what lost answers and dead processes left of checkpoints that are not committed.

    MLflow makes a request again whose answer was lost, so that nobody knows which LoggedModels
    there are. What a refusal has marked as FAILED stays, for a person to see, until the
    checkpoint is committed after all.

    Args:
        done: Entries that this process has delivered or given up.
        alone: Whether nobody else writes the series, so that what is pending is left over.

    Returns:
        How many there were.
    """
    connection.wait_until_quiet()
    gone = [
        model
        for model in _query.unfinished(connection.client, run, series)
        if model.tags.get(ENTRY_TAG) in done or (alone and model.status.value != "FAILED")
    ]
    for model in gone:
        with translated("delete a logged model"):
            _remove(connection, model.model_id, model.artifact_location)
    return len(gone)


def delete(connection: Connection, checkpoint: Checkpoint) -> str | None:
    """Take a checkpoint away: first from every resolver, then its files, then its record.

    What is gone already, because an answer was lost, is no error.

    Returns:
        Why its files had to stay, where the artifact store cannot delete; else `None`.
    """
    connection.wait_until_quiet()
    with translated(f"delete {checkpoint.name}"):
        try:
            connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "deleting"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return _remove(connection, checkpoint.model_id, checkpoint.artifact_uri)


def _remove(connection: Connection, model_id: str, artifact_uri: str) -> str | None:
    """Delete files, then the record. Returns why the files had to stay."""
    try:
        get_artifact_repository(artifact_uri, tracking_uri=connection.uri).delete_artifacts()
        reason = None
    except NotImplementedError as error:
        reason = str(error) or "the artifact store cannot delete"
    try:
        connection.client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return reason
