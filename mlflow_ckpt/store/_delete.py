"""Take checkpoints away, and what lost answers left beside them.

A checkpoint first leaves every resolver (`ckpt.complete=deleting`), then its files go, then its
record: whoever dies in between leaves nothing half-deleted that resolves, and the tag says to
the next one what is to be finished.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import ServerAway, StoreError
from mlflow_ckpt.record import COMPLETE_TAG, ENTRY_TAG, Checkpoint, Run
from mlflow_ckpt.store import _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._faults import is_away, is_denied

_logger = logging.getLogger("mlflow_ckpt")


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
        remove(connection, model.model_id, model.artifact_location)
    return len(gone)


@dataclass(frozen=True)
class Left:
    """What stays although it was to go.

    Attributes:
        where: Where its files lie, or lay.
        files: Why its files stay, or `None`.
        record: Why its record stays, or `None`.
    """

    where: str
    files: str | None
    record: str | None


class Deleter:
    """Deletes checkpoints; what it may not delete it says once, and goes on.

    Attributes:
        may: Whether it still tries: not once a server has refused to give up a record.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._warned = False
        self._proved = False
        self.may = True

    def delete(self, checkpoints: Iterable[Checkpoint]) -> list[Checkpoint]:
        """Delete each; returns those that no resolver returns any more.

        Raises:
            ServerAway, StoreError: If the server does not answer, or something else fails.
        """
        gone = []
        for checkpoint in checkpoints:
            if not self.may:
                break
            if self._one(checkpoint):
                gone.append(checkpoint)
        return gone

    def _one(self, checkpoint: Checkpoint) -> bool:
        if refused := self._hide(checkpoint):
            self._warn(Left(checkpoint.artifact_uri, refused, refused))
            return False
        left = remove(self._connection, checkpoint.model_id, checkpoint.artifact_uri)
        if left is None:
            self._prove(checkpoint)
            return True
        if left.files and left.record:
            # Nothing has gone, so it is as good as before.
            with translated(f"keep {checkpoint.name}"):
                self._connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "true"})
        self._warn(left)
        return not (left.files and left.record)

    def _hide(self, checkpoint: Checkpoint) -> str | None:
        """Take a checkpoint from every resolver; why that is forbidden, or `None`."""
        self._connection.wait_until_quiet()
        with translated(f"delete {checkpoint.name}"):
            try:
                self._connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "deleting"})
            except MlflowException as error:
                if not _query.is_gone(self._connection.client, checkpoint.model_id, error):
                    if is_denied(error):
                        return _first_line(error)
                    raise
        return None

    def _prove(self, checkpoint: Checkpoint) -> None:
        """Look once whether a store that reported success has deleted: S3 answers a bulk
        deletion with 200, and names in its body what it kept.
        """
        if self._proved:
            return
        self._proved = True
        repository = get_artifact_repository(
            checkpoint.artifact_uri, tracking_uri=self._connection.uri
        )
        if type(repository) is LocalArtifactRepository:
            return
        with translated(f"list the files of {checkpoint.name}"):
            kept = repository.list_artifacts()
        if kept:
            reason = "it reported that they are deleted, and still lists them"
            self._warn(Left(checkpoint.artifact_uri, reason, None))

    def _warn(self, left: Left) -> None:
        if left.record:
            self.may = False
        if self._warned:
            return
        self._warned = True
        if left.record:
            _logger.warning(
                "Old checkpoints stay: the tracking server does not let this user delete them "
                "(%s). Ask for the permission to delete, or prune as somebody who has it.",
                left.record,
            )
        else:
            _logger.warning(
                "The artifact store cannot delete files (%s). Old checkpoints leave the list "
                "but their files stay at %s.", left.files, left.where
            )  # fmt: skip


def remove(connection: Connection, model_id: str, artifact_uri: str) -> Left | None:
    """Delete files, then the record. What is gone already, because an answer was lost, is none."""
    files = _remove_files(connection, artifact_uri)
    with translated("delete a logged model"):
        try:
            connection.client.delete_logged_model(model_id)
        except MlflowException as error:
            if not _query.is_gone(connection.client, model_id, error):
                if is_denied(error):
                    return Left(artifact_uri, files, _first_line(error))
                raise
    return Left(artifact_uri, files, None) if files else None


def _remove_files(connection: Connection, artifact_uri: str) -> str | None:
    """Delete files; why they have to stay, or `None`."""
    try:
        get_artifact_repository(artifact_uri, tracking_uri=connection.uri).delete_artifacts()
    except FileNotFoundError:
        return None
    except NotImplementedError as error:
        return str(error) or "the artifact store cannot delete"
    except Exception as error:
        if isinstance(error, PermissionError) or is_denied(error):
            return _first_line(error)
        raise (ServerAway if is_away(error) else StoreError)(
            f"Could not delete the files at {artifact_uri}: {error}"
        ) from error
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
