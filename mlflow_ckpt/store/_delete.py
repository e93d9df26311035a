"""Take a checkpoint away: the steps. `_deleter.py` and `_upkeep.py` say in which order.

A LoggedModel is hidden by its tag (`ckpt.complete=deleting`), then its files go, then its record:
whoever dies in between leaves nothing half-deleted that resolves.
"""

from __future__ import annotations

import logging
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import ArtifactsMissing, ServerAway, StoreError
from mlflow_ckpt.record import COMPLETE_TAG, ENTRY_TAG, Run
from mlflow_ckpt.store import _files, _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._faults import is_away, is_denied

_logger = logging.getLogger("mlflow_ckpt")

_NO_TAG = "no-such-tag"


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


def may_delete(connection: Connection, model_id: str) -> bool | str:
    """Whether this user may delete a record; why not; or `False`, if there is none any more.

    Where files go past the server, they could go and the record stay. MLflow's basic-auth asks
    the same permission of who deletes a tag, so one is deleted that is not there.
    """
    client = connection.client
    with translated(f"ask whether {model_id} may be deleted"):
        try:
            client.delete_logged_model_tag(model_id, _NO_TAG)
        except MlflowException as error:
            if is_denied(error):
                gone = _query.is_gone(client, model_id, error)
                return False if gone else _first_line(error)
            if is_away(error):
                raise
    return True


def hide(connection: Connection, model_id: str) -> str | None:
    """Take a LoggedModel from every resolver; why that is forbidden, or `None`."""
    with translated(f"delete {model_id}"):
        try:
            connection.tag_model(model_id, {COMPLETE_TAG: "deleting"})
        except MlflowException as error:
            if not _query.is_gone(connection.client, model_id, error):
                if is_denied(error):
                    return _first_line(error)
                raise
    return None


def remove(connection: Connection, model_id: str, artifact_uri: str) -> Left | None:
    """Delete files, then the record. What is gone already, because an answer was lost, is none.

    Raises:
        ArtifactsMissing: If the store is not visible from here. Nothing has gone.
    """
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


def still_lists(connection: Connection, artifact_uri: str) -> bool:
    """Whether a store that has reported a deletion lists anything all the same."""
    repository = get_artifact_repository(artifact_uri, tracking_uri=connection.uri)
    if type(repository) is LocalArtifactRepository:
        return False
    try:
        return bool(repository.list_artifacts())
    except Exception as error:  # noqa: BLE001 (nothing that is needed depends on it)
        _logger.debug("Whether %s is empty is not known: %s", artifact_uri, error)
        return False


def _remove_files(connection: Connection, artifact_uri: str) -> str | None:
    """Delete files; why they have to stay, or `None`."""
    repository = get_artifact_repository(artifact_uri, tracking_uri=connection.uri)
    # No subclass: a plugin's own may do more than lay files into a folder.
    is_local = type(repository) is LocalArtifactRepository
    folder = Path(repository.artifact_dir) if is_local else None
    if folder and not folder.exists() and not _files.is_there(connection.uri, artifact_uri):
        raise ArtifactsMissing(_files.nothing_there(artifact_uri))
    try:
        repository.delete_artifacts()
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
    if folder and _files.is_of_a_model(artifact_uri):
        with suppress(OSError):  # not empty, or gone
            folder.parent.rmdir()
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
