"""Bring the files of a checkpoint here, each held against its digest before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import DigestMismatch, ServerAway, StoreError
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store._faults import is_away


def manifest(uri: str, checkpoint: Checkpoint, directory: Path) -> Manifest:
    """Fetch and check a checkpoint's manifest.

    Raises:
        DigestMismatch: If it is missing or not the committed one.
    """
    path = _fetch(uri, checkpoint, FILENAME, directory) / FILENAME
    return Manifest.parse(path.read_bytes(), digest=checkpoint.digest)


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
                root = _fetch(uri, checkpoint, path, directory, in_place=in_place)
                files[path] = undo.enter_context(entry.open(root))
        undo.pop_all()
    return files


def _fetch(
    uri: str, checkpoint: Checkpoint, path: str, directory: Path, *, in_place: bool = False
) -> Path:
    """Bring one file here; return the folder below which it lies now."""
    directory.mkdir(parents=True, exist_ok=True)
    try:
        repository = get_artifact_repository(checkpoint.artifact_uri, tracking_uri=uri)
        # No subclass: a plugin's own may do more than lay files into a folder.
        if in_place and type(repository) is LocalArtifactRepository:
            return Path(repository.artifact_dir)
        repository.download_artifacts(path, dst_path=str(directory))
        return directory
    except (MlflowException, OSError) as error:
        if isinstance(error, FileNotFoundError) or "No such" in str(error) or "404" in str(error):
            raise DigestMismatch(
                f"The file {path!r} of checkpoint {checkpoint.name} is missing at "
                f"{checkpoint.artifact_uri}. Take another one "
                f"(`mlflow-ckpt list {checkpoint.run_id}` shows them).",
                path=path,
                expected="a file",
                found="no file",
            ) from error
        raise (ServerAway if is_away(error) else StoreError)(
            f"Could not download {path!r} of {checkpoint.name}: {error}"
        ) from error
