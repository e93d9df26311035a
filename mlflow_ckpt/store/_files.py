"""Bring the files of a checkpoint here, each held against its digest before it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import BinaryIO

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt import progress
from mlflow_ckpt.errors import (
    ArtifactsMissing,
    CheckpointError,
    DigestMismatch,
    IntegrityError,
    ServerAway,
    StoreError,
)
from mlflow_ckpt.manifest import FILENAME, LARGEST, NO_FILE_FOUND, Manifest, read_bounded
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import _bounded
from mlflow_ckpt.store._faults import advice, is_away, is_denied

_OF_A_MODEL = re.compile(r"(?P<root>.+)/models/[^/]+/artifacts/?")


def manifest(uri: str, checkpoint: Checkpoint, directory: Path) -> Manifest:
    """Fetch and check a checkpoint's manifest.

    Raises:
        DigestMismatch: If it is missing or not the committed one.
        ArtifactsMissing: If nothing of the run is where its artifacts should be.
        StoreError: If it is there and cannot be read.
    """
    with _judged(uri, checkpoint, FILENAME):
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
        ArtifactsMissing, StoreError: As `manifest`.
    """
    with ExitStack() as undo:
        files: dict[str, BinaryIO] = {}
        for path in paths:
            entry = manifest.entry(path)
            if entry is not None:
                with _judged(uri, checkpoint, path):
                    root = _fetch(
                        uri, checkpoint, path, directory, limit=entry.limit, in_place=in_place
                    )
                    files[path] = undo.enter_context(entry.open(root))
                if root != directory:  # no copy was counted
                    progress.moved(entry.size)
        undo.pop_all()
    return files


def lists_all(uri: str, checkpoint: Checkpoint) -> bool:
    """Whether the store lists every file of a checkpoint; their bytes are not looked at.

    Raises:
        ServerAway, StoreError: As `manifest`.
    """
    try:
        with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
            expected = {entry.path for entry in manifest(uri, checkpoint, Path(folder)).files}
    except (ArtifactsMissing, IntegrityError):
        return False
    found = set[str]()
    for parent in {PurePosixPath(path).parent.as_posix() for path in expected}:
        there = _listed(uri, checkpoint.artifact_uri, None if parent == "." else parent)
        found |= {info.path for info in there if not info.is_dir}
    return expected <= found


def _listed(uri: str, where: str, folder: str | None = None) -> list[FileInfo]:
    """What an artifact store lists.

    Raises:
        ServerAway, StoreError: If it does not answer, or refuses.
    """
    try:
        found = get_artifact_repository(where, tracking_uri=uri).list_artifacts(folder)
    except Exception as error:
        text = f"Could not list what lies at {where}: {error}"
        if is_denied(error):
            raise StoreError(f"{text} {advice(error)}") from error
        raise (ServerAway if is_away(error) else StoreError)(text) from error
    return list(found)


# --- is the store there at all? -----------------------------------------------


def is_of_a_model(artifact_uri: str) -> bool:
    """Whether files lie where MLflow puts those of a LoggedModel, not at an address of its own."""
    return _OF_A_MODEL.fullmatch(artifact_uri) is not None


def is_there(uri: str, artifact_uri: str, run_id: str | None = None) -> bool:
    """Whether the artifact store is the one that a LoggedModel was written to.

    A disk that is not mounted is an empty folder, or one that somebody has begun anew; a folder
    of another machine is none.

    Args:
        run_id: Look for what this run has stored: every series wrote a file of its own there.
            `None`: for anything of the experiment, such as the folder of its models, which
            stays once it is made.
    """
    place = _OF_A_MODEL.fullmatch(artifact_uri)
    if place is None:
        return True
    where = place["root"] if run_id is None else f"{place['root']}/{run_id}/artifacts"
    return bool(_listed(uri, where))


def nothing_there(artifact_uri: str) -> str:
    place = _OF_A_MODEL.fullmatch(artifact_uri)
    return (
        f"What was stored at {place['root'] if place else artifact_uri} is not there, the run's "
        "own artifacts included. Is that store reachable from here? A disk may not be mounted, or "
        "the folder may be one of another machine."
    )


@contextmanager
def _judged(uri: str, checkpoint: Checkpoint, path: str) -> Iterator[None]:
    """Tell a missing file from a missing store, and both from one that cannot be read."""
    try:
        yield
    except DigestMismatch as error:
        is_missing = error.found.startswith(NO_FILE_FOUND)
        if is_missing and not is_there(uri, checkpoint.artifact_uri, checkpoint.run_id):
            raise ArtifactsMissing(nothing_there(checkpoint.artifact_uri)) from error
        raise
    except CheckpointError:
        raise
    except OSError as error:
        raise StoreError(f"Could not read {path!r} of {checkpoint.name}: {error}") from error


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
                found=NO_FILE_FOUND,
            )
    text = f"Could not download {path!r} of {checkpoint.name}: {error}"
    if is_denied(error):
        return StoreError(f"{text} {advice(error)}")
    return (ServerAway if is_away(error) else StoreError)(text)
