"""Delete checkpoints of a run in the order that loses none.

First it is asked whether this user may delete at all. Then a checkpoint leaves every resolver
(`ckpt.complete=deleting`), then it is asked once more what holds it, then its files go, then its
record: whoever dies in between leaves nothing half-deleted that resolves, and the tag says to the
next one what is to be finished. Who pins a checkpoint, or begins a fork at it, sets a tag first and
looks at `ckpt.complete` then: of the two that meet, at least one sees the other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

from mlflow.exceptions import MlflowException

from mlflow_ckpt.errors import ServerAway, StoreError
from mlflow_ckpt.record import COMPLETE_TAG, REASON_TAG, Checkpoint
from mlflow_ckpt.store import _delete, _files, _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._delete import Left

_logger = logging.getLogger("mlflow_ckpt")

State = Literal["true", "corrupt", "deleting"]


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
        refused = self._forbidden(checkpoint) or self._hide(checkpoint)
        if refused:
            self._warn(Left(checkpoint.artifact_uri, refused, refused))
            return False
        if self._is_held(checkpoint):
            self._show(checkpoint, was)
            return False
        left = _delete.remove(self._connection, checkpoint.model_id, checkpoint.artifact_uri)
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
        return _delete.hide(self._connection, checkpoint.model_id)

    def _show(self, checkpoint: Checkpoint, was: State) -> None:
        """Undo `_hide`.

        Not if a file has gone: somebody may have begun before, and been stopped. What was
        corrupt is found by no resolver, whatever of it is there.
        """
        if was != "corrupt" and not _files.lists_all(self._connection.uri, checkpoint):
            return
        with translated(f"keep {checkpoint.name}"):
            model = self._connection.client.get_logged_model(checkpoint.model_id)
            state = "corrupt" if was == "corrupt" or model.tags.get(REASON_TAG) else "true"
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

    def _forbidden(self, checkpoint: Checkpoint) -> str | None:
        """Ask once, before anything is done, whether this user may delete records."""
        if self._permitted:
            return None
        asked = _delete.may_delete(self._connection, checkpoint.model_id)
        self._permitted = asked is True
        return asked if isinstance(asked, str) else None

    def _prove(self, checkpoint: Checkpoint) -> None:
        """Look once whether a store that reported success has deleted: S3 answers a bulk
        deletion with 200, and names in its body what it kept.
        """
        if self._proved:
            return
        self._proved = True
        if _delete.still_lists(self._connection, checkpoint.artifact_uri):
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
