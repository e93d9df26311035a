"""Digests of bytes and files, as `<algorithm>:<hex>`."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections.abc import Callable
from typing import BinaryIO, Protocol

from blake3 import blake3

from mlflow_ckpt.errors import FormatTooNew, ManifestError

ALGORITHM = "blake3"
_CHUNK = 1 << 20
_WINDOW = 1 << 24  # enough for every core, and a multiple of any page
_DIGEST = re.compile(r"(?P<algorithm>[a-z][a-z0-9._+-]{0,31}):(?P<value>.+)")
_VALUE = re.compile(r"[0-9a-f]{64}")  # of both algorithms


class _Hasher(Protocol):
    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


# Readers keep every algorithm that a committed manifest may name.
ALGORITHMS: dict[str, Callable[[], _Hasher]] = {"blake3": blake3, "sha256": hashlib.sha256}


def algorithm_of(digest: object, what: str) -> str:
    """The algorithm of a digest that somebody else has written down.

    Args:
        what: What has it, to begin a sentence with.

    Raises:
        FormatTooNew: If it is one that this version does not know: only a newer major of the
            format may name another, so what has it is whole.
        ManifestError: If it is no digest.
    """
    found = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if found is not None and found["algorithm"] not in ALGORITHMS:
        raise FormatTooNew(
            f"{what} has a digest of the algorithm {found['algorithm']!r}, which a newer format "
            f"may name. This version of mlflow-ckpt reads up to 1.x, and {sorted(ALGORITHMS)}: "
            "upgrade with `pip install -U mlflow-ckpt`."
        )
    if found is None or not _VALUE.fullmatch(found["value"]):
        raise ManifestError(
            f"{what} has no digest. Expected: one of {sorted(ALGORITHMS)}, a colon and 64 hex "
            f"digits in lower case. Received: {str(digest)[:80]!r}"
        )
    return found["algorithm"]


def digest_bytes(data: bytes, algorithm: str = ALGORITHM) -> str:
    """Digest of `data` as `<algorithm>:<hex>`."""
    hasher = ALGORITHMS[algorithm]()
    hasher.update(data)
    return f"{algorithm}:{hasher.hexdigest()}"


def digest_file(file: BinaryIO, algorithm: str = ALGORITHM) -> str:
    """Digest of an open file, whatever was read of it before.

    A file beyond 1 MiB is mapped, and blake3 then runs on every core; who truncates it
    meanwhile kills the process. A smaller one is read.
    """
    if os.fstat(file.fileno()).st_size > _CHUNK:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return _digest_chunks(file, algorithm)  # a file system that maps nothing
        with data:
            # No threads for what is small: blake3's pool, once made, stays.
            hasher = (
                blake3(max_threads=blake3.AUTO)
                if algorithm == "blake3"
                else ALGORITHMS[algorithm]()
            )
            _update(hasher, data)
            return f"{algorithm}:{hasher.hexdigest()}"
    return _digest_chunks(file, algorithm)


def _update(hasher: _Hasher, data: mmap.mmap) -> None:
    """Digest a map, and keep no more of it in this process's memory than a window."""
    forgets = hasattr(mmap, "MADV_DONTNEED")
    with memoryview(data) as view:
        for start in range(0, len(view), _WINDOW):
            hasher.update(view[start : start + _WINDOW])
            if forgets:
                data.madvise(mmap.MADV_DONTNEED, start, min(_WINDOW, len(view) - start))


def _digest_chunks(file: BinaryIO, algorithm: str) -> str:
    hasher = ALGORITHMS[algorithm]()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"
