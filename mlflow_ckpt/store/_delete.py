"""Take checkpoints away, and what lost answers left beside them."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ckpt.record import COMPLETE_TAG, ENTRY_TAG, Checkpoint, Run
from mlflow_ckpt.store import _query
from mlflow_ckpt.store._connection import Connection, translated


def drop_doubles(connection: Connection, run: Run, delivered: Mapping[str, str]) -> int:
    """Delete the LoggedModels that lost answers left beside the committed ones.

    Args:
        delivered: The model ID of each entry.

    Returns:
        How many there were.
    """
    found = _query.of_entries(connection.client, run, list(delivered))
    doubles = [
        model
        for model in found
        if model.model_id != delivered[model.tags[ENTRY_TAG]]
        and model.tags.get(COMPLETE_TAG) != "true"
    ]
    for model in doubles:
        with translated("delete a logged model"):
            _delete(connection, model.model_id)
    return len(doubles)


def delete(connection: Connection, checkpoint: Checkpoint) -> str | None:
    """Take a checkpoint away: first from every resolver, then its files, then its record.

    What is gone already, because an answer was lost, is no error.

    Returns:
        Why its files had to stay, where the artifact store cannot delete; else `None`.
    """
    with translated(f"delete {checkpoint.name}"):
        try:
            connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "deleting"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        try:
            get_artifact_repository(
                checkpoint.artifact_uri, tracking_uri=connection.uri
            ).delete_artifacts()
            reason = None
        except NotImplementedError as error:
            reason = str(error) or "the artifact store cannot delete"
        _delete(connection, checkpoint.model_id)
    return reason


def _delete(connection: Connection, model_id: str) -> None:
    try:
        connection.client.delete_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
