"""Bring one file here that may not be larger than it is said to be.

`ArtifactRepository.download_artifacts` lays down whatever the other side sends: a folder where
a file was asked for, what a link leads to, a stream without an end. Here exactly one file is
written, and never more of it than its manifest names. Sizes are bytes.

Leans on `ArtifactRepository._download_file`, on `HttpArtifactRepository._host_creds` and on
`mlflow.utils.rest_utils.http_request`.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.utils.rest_utils import augmented_raise_for_status, http_request

from mlflow_ckpt.below import open_below
from mlflow_ckpt.errors import DigestMismatch

_CHUNK = 1 << 20


def download(repository: ArtifactRepository, path: str, directory: Path, *, limit: int) -> None:
    """Write the file `path` of an artifact store to `<directory>/<path>`.

    Args:
        path: POSIX and relative, without `..`: it is checked by whoever read the manifest.
        limit: How many bytes it may have.

    Raises:
        DigestMismatch: If it is larger. What was written of it is removed.
    """
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if type(repository) is LocalArtifactRepository:
            with open_below(Path(repository.artifact_dir), path) as file:
                _write(target, _chunks(file), path, limit)
        elif isinstance(repository, HttpArtifactRepository) and not _presigns(repository):
            _stream(repository, path, target, limit)
        else:
            _check_listed(repository, path, limit)
            repository._download_file(path, str(target))  # noqa: SLF001
    except BaseException:
        if target.is_dir():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        raise


def _presigns(repository: Any) -> bool:
    """Whether the server may send us to its own store, in parts: MLflow knows how."""
    asks = getattr(repository, "_is_multipart_download_enabled", None)
    return bool(asks and asks())


def _stream(repository: Any, path: str, target: Path, limit: int) -> None:
    endpoint = posixpath.join("/", path)
    credentials = repository._host_creds  # noqa: SLF001
    with http_request(credentials, endpoint, "GET", stream=True) as response:
        augmented_raise_for_status(response)
        said = response.headers.get("Content-Length", "")
        if said.isdecimal() and "Content-Encoding" not in response.headers and int(said) > limit:
            raise _larger(path, limit, said)
        _write(target, response.iter_content(_CHUNK), path, limit)


def _check_listed(repository: ArtifactRepository, path: str, limit: int) -> None:
    """Ask a store of objects how large the file is: it knows, and cannot send more."""
    parent = PurePosixPath(path).parent.as_posix()
    for info in repository.list_artifacts(None if parent == "." else parent):
        if info.path == path and (info.is_dir or (info.file_size or 0) > limit):
            raise _larger(path, limit, "a folder" if info.is_dir else str(info.file_size))


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _write(target: Path, chunks: Iterator[bytes], path: str, limit: int) -> None:
    left = limit
    with target.open("wb") as file:
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise _larger(path, limit, "more")
            file.write(chunk)


def _larger(path: str, limit: int, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"The file {path!r} is larger in the artifact store than the one that was committed. "
        f"Expected: at most {limit} bytes. Found: {found}. Take another checkpoint "
        "(`mlflow-ckpt list <run_id>` shows them).",
        path=path,
        expected=f"at most {limit} bytes",
        found=found,
    )
