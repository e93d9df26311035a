"""Take checkpoints away, and what lost answers left beside them.

A checkpoint first leaves every resolver (`ckpt.complete=deleting`), then it is asked once more
what holds it, then its files go, then its record: whoever dies in between leaves nothing
half-deleted that resolves, and the tag says to the next one what is to be finished. Who pins a
checkpoint, or begins a fork at it, sets a tag first and looks at `ckpt.complete` then: of the two
that meet, at least one sees the other.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import ServerAway, StoreError
from mlflow_ckpt.record import COMPLETE_TAG, ENTRY_TAG, Checkpoint, Run
from mlflow_ckpt.store import _files, _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._faults import is_away, is_denied

_logger = logging.getLogger("mlflow_ckpt")

State = Literal["true", "corrupt", "deleting"]

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


class Deleter:
    """Deletes checkpoints; what it may not delete it says once in a process, and goes on.

    Attributes:
        may: Whether it still tries: not once a server has refused to give up a record.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._permitted = False
        self._proved = False
        self.may = True

    def delete(self, checkpoints: Iterable[Checkpoint], was: State = "true") -> list[Checkpoint]:
        """Delete each, unless something holds it.

        Args:
            was: What its tag `ckpt.complete` says; one that stays goes back to it.

        Returns:
            Those that are gone.

        Raises:
            ServerAway, StoreError: If the server does not answer, or something else fails.
        """
        gone = []
        for checkpoint in checkpoints:
            if not self.may:
                break
            if self._one(checkpoint, was):
                gone.append(checkpoint)
        return gone

    def _one(self, checkpoint: Checkpoint, was: State) -> bool:
        if refused := self._hide(checkpoint):
            self._warn(Left(checkpoint.artifact_uri, refused, refused))
            return False
        if self._is_held(checkpoint):
            self._show(checkpoint, was)
            return False
        left = self._forbidden(checkpoint) or remove(
            self._connection, checkpoint.model_id, checkpoint.artifact_uri
        )
        if left is None:
            self._prove(checkpoint)
            return True
        if left.files and left.record and was != "deleting":
            self._show(checkpoint, was)
        self._warn(left)
        return not (left.files and left.record)

    def _hide(self, checkpoint: Checkpoint) -> str | None:
        """Take a checkpoint from every resolver; why that is forbidden, or `None`."""
        self._connection.wait_until_quiet()
        return hide(self._connection, checkpoint.model_id)

    def _show(self, checkpoint: Checkpoint, was: State) -> None:
        """Undo `_hide`, if no file has gone: somebody may have begun before, and been stopped."""
        if _files.lists_all(self._connection.uri, checkpoint):
            with translated(f"keep {checkpoint.name}"):
                state = "true" if was == "deleting" else was
                self._connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: state})

    def _is_held(self, checkpoint: Checkpoint) -> bool:
        """Whether it was pinned, registered or forked since somebody looked.

        In doubt, where the registry denies the question, it is.
        """
        client = self._connection.client
        with translated(f"read {checkpoint.name}"):
            try:
                tags = client.get_logged_model(checkpoint.model_id).tags
            except MlflowException as error:
                if _query.is_gone(client, checkpoint.model_id, error):
                    return False
                raise
        if _query.held(tags):
            return True
        try:
            return _query.is_registered(client, checkpoint.model_id)
        except ServerAway:
            raise
        except StoreError as error:
            tell_that_it_may_be_registered(self._connection, error)
            return True

    def _forbidden(self, checkpoint: Checkpoint) -> Left | None:
        """Ask once, before the first file goes, whether this user may delete records.

        Where files go past the server, they could go and the record stay. MLflow's basic-auth
        asks the same permission of who deletes a tag.
        """
        if self._permitted:
            return None
        client = self._connection.client
        with translated(f"delete {checkpoint.name}"):
            try:
                client.delete_logged_model_tag(checkpoint.model_id, _NO_TAG)
            except MlflowException as error:
                if is_denied(error) and not _query.is_gone(client, checkpoint.model_id, error):
                    return Left(checkpoint.artifact_uri, _first_line(error), _first_line(error))
                if is_away(error):
                    raise
        self._permitted = True
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
        try:
            kept = repository.list_artifacts()
        except Exception as error:  # noqa: BLE001 (nothing that is needed depends on it)
            _logger.debug("Whether %s is empty is not known: %s", checkpoint.artifact_uri, error)
            return
        if kept:
            reason = "it reported that they are deleted, and still lists them"
            self._warn(Left(checkpoint.artifact_uri, reason, None))

    def _warn(self, left: Left) -> None:
        if left.record:
            self.may = False
        if not _is_first(self._connection, "record" if left.record else "files"):
            return
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


_said: set[tuple[str, str]] = set()


def _is_first(connection: Connection, what: str) -> bool:
    """Whether this process has not said this of the server yet."""
    about = (connection.uri, what)
    if about in _said:
        return False
    _said.add(about)
    return True


def tell_that_it_may_be_registered(connection: Connection, error: StoreError) -> None:
    if _is_first(connection, "registry"):
        _logger.warning("Old checkpoints stay, because they may be registered: %s", error)


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
    repository = get_artifact_repository(artifact_uri, tracking_uri=connection.uri)
    # No subclass: a plugin's own may do more than lay files into a folder.
    is_local = type(repository) is LocalArtifactRepository
    folder = Path(repository.artifact_dir) if is_local else None
    if folder and not folder.exists() and not _files.is_there(connection.uri, artifact_uri):
        raise ServerAway(_files.nothing_there(artifact_uri))
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
