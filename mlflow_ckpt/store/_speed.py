"""Measure an artifact store with one file, and see whether it can delete.

Sizes are bytes, times seconds.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt import durable
from mlflow_ckpt.errors import ServerAway, StoreError
from mlflow_ckpt.store import _bounded
from mlflow_ckpt.store._connection import portable
from mlflow_ckpt.store._faults import advice, is_away, is_denied
from mlflow_ckpt.tidy import as_it_was

_FILE = "doctor.bin"
_CHARACTERS = 300
_PATIENCE_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What became of one file that was written, read and deleted.

    Attributes:
        size: Of the file.
        write, read: Seconds they took.
        equal: Whether what was read is what was written.
        left: URI of what could not be deleted; "" if nothing is left.
        reason: Why it is left.
    """

    size: int
    write: float
    read: float
    equal: bool
    left: str
    reason: str


def measure(uri: str, artifact_uri: str, size: int) -> Measured:
    """Write a file of random bytes to a folder of its own, read it and delete it.

    Args:
        uri: Tracking URI.
        artifact_uri: Artifact location of an experiment.
        size: Of the file.

    Raises:
        ServerAway: If the store does not answer.
        StoreError: If it cannot be written or read. What could be written is gone again.
    """
    where = f"{artifact_uri.rstrip('/')}/mlflow-ckpt-doctor-{uuid.uuid4().hex[:12]}"
    try:
        with (
            patient(),
            tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder,
            as_it_was(folder_of(get_artifact_repository(artifact_uri, tracking_uri=uri))),
        ):
            return _measure(
                get_artifact_repository(where, tracking_uri=uri), where, size, Path(folder)
            )
    except Exception as error:
        text = f"The artifact store {portable(artifact_uri)} failed: {_short(error)}"
        if is_denied(error):
            raise StoreError(f"{text} {advice(error)}") from error
        if isinstance(error, StoreError):
            raise
        raise (ServerAway if is_away(error) else StoreError)(text) from error


def _measure(repository: ArtifactRepository, where: str, size: int, folder: Path) -> Measured:
    path = folder / _FILE
    path.write_bytes(os.urandom(size))
    digest = _digest(path)
    try:
        began = time.monotonic()
        repository.log_artifact(str(path))
        if place := folder_of(repository):
            durable.sync(place / _FILE)
        wrote = time.monotonic() - began
        began = time.monotonic()
        _bounded.download(repository, _FILE, folder / "back", limit=size)
        read = time.monotonic() - began
        equal = _digest(folder / "back" / _FILE) == digest
    except BaseException as error:
        if reason := _delete(repository):
            error.add_note(f"{portable(where)} may be left behind: {reason}")
        raise
    reason = _delete(repository)
    if reason:
        path.write_bytes(b"")
        with suppress(Exception):  # It was to be small; now it is as large as it is.
            repository.log_artifact(str(path))
    return Measured(
        size=size,
        write=wrote,
        read=read,
        equal=equal,
        left=portable(where) if reason else "",
        reason=reason,
    )


def _delete(repository: ArtifactRepository) -> str:
    """Delete what was written; why it stays, or ""."""
    try:
        repository.delete_artifacts()
        left = [] if folder_of(repository) else repository.list_artifacts()
    except FileNotFoundError:
        return ""
    except Exception as error:  # noqa: BLE001 (it is told)
        if is_denied(error):
            return f"this user may not delete there. {advice(error)}"
        return _short(error) or "the artifact store cannot delete"
    return "it reports a deletion, and lists the file all the same" if left else ""


def folder_of(repository: ArtifactRepository) -> Path | None:
    """The folder behind an artifact repository, if it is one of this machine."""
    # No subclass: a plugin's own may do more than lay files into a folder.
    return Path(repository.artifact_dir) if type(repository) is LocalArtifactRepository else None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _short(error: BaseException) -> str:
    text = " ".join([str(error), *getattr(error, "__notes__", ())]).split()
    return textwrap.shorten(" ".join(text), _CHARACTERS, placeholder=" ...")


@contextmanager
def patient() -> Iterator[None]:
    """Let MLflow's requests try once, and wait for an answer no longer than a person would."""
    settings = {
        MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0",
        MLFLOW_HTTP_REQUEST_TIMEOUT.name: f"{_PATIENCE_S:.0f}",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
