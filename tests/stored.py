"""Reach the files of a checkpoint where the artifact store keeps them, whichever that is.

A checkpoint is named by what `resolve` returns, or by its artifact URI.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from mlflow_ckpt.record import Checkpoint

Stored = Checkpoint | str


def read(checkpoint: Stored, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _repository(checkpoint).download_artifacts(path, folder)
        return (Path(folder) / path).read_bytes()


def write(checkpoint: Stored, path: str, data: bytes) -> None:
    """Put other bytes in the place of a file."""
    parent = PurePosixPath(path).parent.as_posix()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / PurePosixPath(path).name
        local.write_bytes(data)
        _repository(checkpoint).log_artifact(str(local), None if parent == "." else parent)


def delete(checkpoint: Stored, path: str) -> None:
    _repository(checkpoint).delete_artifacts(path)


def listing(checkpoint: Stored) -> list[str]:
    """Every file below, by its path."""
    repository, found = _repository(checkpoint), []
    folders: list[str | None] = [None]
    while folders:
        for info in repository.list_artifacts(folders.pop()):
            (folders if info.is_dir else found).append(info.path)
    return sorted(found)


def _repository(checkpoint: Stored) -> Any:
    place = checkpoint if isinstance(checkpoint, str) else checkpoint.artifact_uri
    return get_artifact_repository(place)


def _flip(checkpoint: Stored, path: str) -> None:
    data = bytearray(read(checkpoint, path))
    data[len(data) // 2] ^= 1
    write(checkpoint, path, bytes(data))


def _truncate(checkpoint: Stored, path: str) -> None:
    write(checkpoint, path, read(checkpoint, path)[:-9])


DAMAGE: dict[str, Callable[[Stored, str], None]] = {
    "flipped": _flip,
    "truncated": _truncate,
    "missing": delete,
}
