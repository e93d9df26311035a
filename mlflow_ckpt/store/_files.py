"""Bring the files of a checkpoint here, each held against its digest before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import DigestMismatch, ServerAway, StoreError
from mlflow_ckpt.manifest import FILENAME, LARGEST, Manifest, read_bounded
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import _bounded
from mlflow_ckpt.store._faults import advice, is_away, is_denied


def manifest(uri: str, checkpoint: Checkpoint, directory: Path) -> Manifest:
    """Fetch and check a checkpoint's manifest.

    Raises:
        DigestMismatch: If it is missing or not the committed one.
    """
    root = _fetch(uri, checkpoint, FILENAME, directory, limit=LARGEST)
    return Manifest.parse(read_bounded(root), digest=checkpoint.digest)


def fetch(
    uri: str,
    checkpoint: Checkpoint,
    manifest: Manifest,
    paths: Sequence[str],
    directory: Path,
    *,
    in_place: bool = False,
) -> dict[str, BinaryIO]:
    """Open files of a checkpoint, each verified. The caller closes them.

    Args:
        paths: Those that the checkpoint does not have are left out.
        directory: Where copies go.
        in_place: Whether to read the files of a local artifact store where they lie,
            without a copy. They belong to the store: never write, move or delete them.

    Raises:
        DigestMismatch: If one is missing, or its size or digest differs.
    """
    with ExitStack() as undo:
        files: dict[str, BinaryIO] = {}
        for path in paths:
            entry = manifest.entry(path)
            if entry is not None:
                root = _fetch(
                    uri, checkpoint, path, directory, limit=entry.limit, in_place=in_place
                )
                files[path] = undo.enter_context(entry.open(root))
        undo.pop_all()
    return files


def _fetch(
    uri: str,
    checkpoint: Checkpoint,
    path: str,
    directory: Path,
    *,
    limit: int,
    in_place: bool = False,
) -> Path:
    """Bring one file of at most `limit` bytes here; return the folder below which it lies now."""
    directory.mkdir(parents=True, exist_ok=True)
    repository = get_artifact_repository(checkpoint.artifact_uri, tracking_uri=uri)
    # No subclass: a plugin's own may do more than lay files into a folder.
    if in_place and type(repository) is LocalArtifactRepository:
        return Path(repository.artifact_dir)
    try:
        _bounded.download(repository, path, directory, limit=limit)
        return directory
    except DigestMismatch:
        raise
    except Exception as error:
        failure = _failure(repository, checkpoint, path, error)
        raise failure from error


def _failure(
    repository: ArtifactRepository, checkpoint: Checkpoint, path: str, error: Exception
) -> Exception:
    """What to raise for a download that failed.

    Its error does not say whether the file is missing: every store has words of its own for
    it, and MLflow packs what several threads met into one text. So the store is asked what it
    has; where it refuses to say, its reason is the better one.
    """
    parent = PurePosixPath(path).parent.as_posix()
    try:
        there = repository.list_artifacts(None if parent == "." else parent)
    except Exception as second:  # noqa: BLE001 (it is told, in the place of the first)
        error = second
    else:
        if not any(info.path == path and not info.is_dir for info in there):
            return DigestMismatch(
                f"The file {path!r} of checkpoint {checkpoint.name} is missing at "
                f"{checkpoint.artifact_uri}. Take another one "
                f"(`mlflow-ckpt list {checkpoint.run_id}` shows them).",
                path=path,
                expected="a file",
                found="no file",
            )
    text = f"Could not download {path!r} of {checkpoint.name}: {error}"
    if is_denied(error):
        return StoreError(f"{text} {advice(error)}")
    return (ServerAway if is_away(error) else StoreError)(text)
