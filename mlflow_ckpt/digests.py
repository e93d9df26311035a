"""Digests of bytes and files, as `<algorithm>:<hex>`."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable
from typing import BinaryIO, Protocol

from blake3 import blake3

ALGORITHM = "blake3"
_CHUNK = 1 << 20


class _Hasher(Protocol):
    def update(self, data: bytes | mmap.mmap, /) -> object: ...
    def hexdigest(self) -> str: ...


# Readers keep every algorithm that a committed manifest may name.
ALGORITHMS: dict[str, Callable[[], _Hasher]] = {"blake3": blake3, "sha256": hashlib.sha256}


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
            hasher.update(data)
            return f"{algorithm}:{hasher.hexdigest()}"
    return _digest_chunks(file, algorithm)


def _digest_chunks(file: BinaryIO, algorithm: str) -> str:
    hasher = ALGORITHMS[algorithm]()
    file.seek(0)
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    return f"{algorithm}:{hasher.hexdigest()}"
