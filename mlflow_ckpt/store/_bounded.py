"""Bring one file here that may not be larger than it is said to be.

`ArtifactRepository.download_artifacts` lays down whatever the other side sends: a folder where
a file was asked for, what a link leads to, a stream without an end. Here exactly one file is
written, and never more of it than its manifest names. Sizes are bytes.

    a folder of this machine                  read and counted here
    the tracking server's proxy, any HTTP     read and counted here
    S3                                        read and counted here, in parts
    any other store                           asked for the size before, measured afterwards

What the other side says of a size, or of how it wants to be read, is never a reason to count
less: MLflow follows a server that offers "multipart downloads" to any host that it names, and
writes what that sends. So files that lie behind the proxy come through the proxy.

The last row is as good as that store's word: its own client writes the file.

Leans on `ArtifactRepository._download_file`, on `HttpArtifactRepository._host_creds`, on
`S3ArtifactRepository._get_s3_client` and `._bucket_owner_params`, and on
`mlflow.utils.rest_utils.http_request`.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository
from mlflow.store.artifact.runs_artifact_repo import RunsArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from mlflow.utils.rest_utils import http_request
from requests import HTTPError

from mlflow_ckpt import progress
from mlflow_ckpt.below import open_below
from mlflow_ckpt.errors import DigestMismatch

_CHUNK = 1 << 20
_REASON = 2000  # of an answer that is none, for the message
# As boto3's own downloads: parts of a size, how many at once, how often each is tried.
_PART, _AT_ONCE, _TRIES = 8 << 20, 10, 5


def download(repository: ArtifactRepository, path: str, directory: Path, *, limit: int) -> None:
    """Write the file `path` of an artifact store to `<directory>/<path>`.

    Args:
        path: POSIX and relative, without `..`: it is checked by whoever read the manifest.
        limit: How many bytes it may have.

    Raises:
        DigestMismatch: If it is larger. What was written of it is removed.
        Exception: Whatever the store's client raises, if it is not there or cannot be read.
    """
    # These two stand for another one.
    while isinstance(repository, RunsArtifactRepository | ModelsArtifactRepository):
        repository = repository.repo
    target = directory / path
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if type(repository) is LocalArtifactRepository:
            with open_below(Path(repository.artifact_dir), path) as file:
                _write(target, _chunks(file), path, limit)
        elif isinstance(repository, HttpArtifactRepository):
            _stream(repository, path, target, limit)
        elif isinstance(repository, S3ArtifactRepository):
            _from_s3(repository, path, target, limit)
        else:
            _check_listed(repository, path, limit)
            repository._download_file(path, str(target))  # noqa: SLF001
            _check_written(target, path, limit)
    except BaseException:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        target.unlink(missing_ok=True)
        raise


# --- through a server -----------------------------------------------------------


def _stream(repository: Any, path: str, target: Path, limit: int) -> None:
    endpoint = posixpath.join("/", path)
    # As it is stored: a compressed answer may be a thousand times its size in memory.
    headers = {"Accept-Encoding": "identity"}
    with http_request(
        repository._host_creds,  # noqa: SLF001
        endpoint,
        "GET",
        extra_headers=headers,
        stream=True,
    ) as response:
        _check_answer(response)
        said = response.headers.get("Content-Length", "")
        if said.isdecimal() and int(said) > limit:
            raise _larger(path, limit, said)
        _write(target, response.iter_content(_CHUNK), path, limit)


def _check_answer(response: Any) -> None:
    """As MLflow's `augmented_raise_for_status`, which reads an endless reason to its end."""
    try:
        response.raise_for_status()
    except HTTPError as error:
        reason = next(response.iter_content(_REASON), b"").decode(errors="replace")
        text = f"{error}. Response text: {reason}" if reason else str(error)
        raise HTTPError(text, request=error.request, response=response) from error
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise HTTPError(
            f"Expected the file as it is stored. Received: Content-Encoding: {encoding[:40]!r}. "
            "Switch compression off in whatever stands before the tracking server.",
            request=response.request,
            response=response,
        )


# --- from S3 --------------------------------------------------------------------


def _from_s3(repository: Any, path: str, target: Path, limit: int) -> None:
    """Read an object in parts, several at once, none of which writes beyond its own end."""
    client = repository._get_s3_client()  # noqa: SLF001
    bucket, root = repository.parse_s3_compliant_uri(repository.artifact_uri)
    owner = getattr(repository, "_bucket_owner_params", {})
    where = {"Bucket": bucket, "Key": posixpath.join(root, path), **owner}
    size = client.head_object(**where)["ContentLength"]
    if size > limit:
        raise _larger(path, limit, str(size))
    if size <= _PART:
        _again(lambda: _write(target, _body(client, where), path, limit))
        return
    target.touch()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="mlflow-ckpt-s3") as threads:
        starts = range(0, size, _PART)
        get = partial(_part, client, where, target, path, size)
        # The first one that fails is raised, and those that have not begun are dropped.
        for _ in threads.map(get, starts):
            pass


def _part(client: Any, where: Any, target: Path, path: str, size: int, start: int) -> None:
    end = min(start + _PART, size)
    part = {**where, "Range": f"bytes={start}-{end - 1}"}
    _again(lambda: _write(target, _body(client, part), path, end - start, start=start))


def _body(client: Any, where: Any) -> Iterator[bytes]:
    with closing(client.get_object(**where)["Body"]) as body:
        yield from body.iter_chunks(_CHUNK)


def _again(read: Callable[[], None]) -> None:
    """Repeat what a connection has cut off: botocore itself repeats only what has not begun."""
    broke_off = import_module("botocore.exceptions")  # not every user has boto3
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except (broke_off.HTTPClientError, broke_off.IncompleteReadError):
            if not left:
                raise


# --- from any other store -------------------------------------------------------


def _check_listed(repository: ArtifactRepository, path: str, limit: int) -> None:
    """Ask a store how large the file is, before its own client writes it."""
    parent = PurePosixPath(path).parent.as_posix()
    listed = repository.list_artifacts(None if parent == "." else parent)
    found = [info for info in listed if info.path == path]
    if not found:
        raise FileNotFoundError(f"Expected a file {path!r} in the artifact store. Received: none.")
    for info in found:
        if info.is_dir or (info.file_size or 0) > limit:
            raise _larger(path, limit, "a folder" if info.is_dir else str(info.file_size))


def _check_written(target: Path, path: str, limit: int) -> None:
    if target.is_symlink() or not target.is_file():
        raise _larger(path, limit, "no file")
    if target.stat().st_size > limit:
        raise _larger(path, limit, str(target.stat().st_size))


# --- writing --------------------------------------------------------------------


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _write(
    target: Path, chunks: Iterable[bytes], path: str, limit: int, *, start: int | None = None
) -> None:
    """Write a file of at most `limit` bytes, or as many at `start` of one that is there."""
    left = limit
    with target.open("wb" if start is None else "r+b") as file:
        file.seek(start or 0)
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise _larger(path, limit, "more")
            file.write(chunk)
            progress.moved(len(chunk))


def _larger(path: str, limit: int, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"The file {path!r} is larger in the artifact store than the one that was committed. "
        f"Expected: at most {limit} bytes. Found: {found}. Take another checkpoint "
        "(`mlflow-ckpt list <run_id>` shows them).",
        path=path,
        expected=f"at most {limit} bytes",
        found=found,
    )
