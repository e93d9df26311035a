"""Write a file once, from front to back, and know its digest when it is written.

Each chunk is hashed, summed and written while it lies in the processor's cache. All
three release the GIL, so training goes on beside them.

Sizes are bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from blake3 import blake3

from mlflow_ckpt.manifest import FileEntry

try:
    from isal.isal_zlib import crc32 as crc32
except ImportError:  # No wheel for this processor; four times slower.
    from zlib import crc32 as crc32

# Fits a core's level 2 cache, and is large enough that the calls cost nothing.
CHUNK = 1 << 19
# So often the kernel is asked to begin writing to the disk, and not only at the end.
_FLUSH = 16 << 20


class Stream:
    """A new file; a context manager that removes it if the block raises.

    Args:
        path: Where to write; must not exist.
        progress: Called with the number of bytes written since the last call.

    Attributes:
        position: Bytes written so far.
        crc: CRC-32 of what was written since `begin_member`.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] | None = None) -> None:
        self.path = path
        self.position = 0
        self.crc = 0
        self._progress = progress
        self._hasher = blake3()
        self._flushed = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def begin_member(self) -> None:
        """Start a new CRC-32."""
        self.crc = 0

    def write(self, data: bytes | memoryview | np.ndarray[Any, Any]) -> None:
        """Append `data`, an array by its memory.

        Raises:
            OSError: If the disk is full or fails; `filename` is set.
        """
        for chunk in _chunks(data):
            self.crc = crc32(chunk, self.crc)
            self._hasher.update(chunk)
            self._put(chunk)
            if self._progress is not None:
                self._progress(len(chunk))

    def _put(self, chunk: memoryview) -> None:
        try:
            while chunk:
                written = os.pwrite(self._file, chunk, self.position)
                self.position += written
                chunk = chunk[written:]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self.position - self._flushed >= _FLUSH:
            self._flush()

    def _flush(self) -> None:
        """Start the disk on what was written; the `fsync` at the end then waits for less.

        For dirty pages that is what `POSIX_FADV_DONTNEED` does (`mm/fadvise.c` of Linux);
        only pages that are on the disk already leave the cache.
        """
        if hasattr(os, "posix_fadvise"):
            count = self.position - self._flushed
            os.posix_fadvise(self._file, self._flushed, count, os.POSIX_FADV_DONTNEED)
        self._flushed = self.position

    def close(self, relative_to: Path) -> FileEntry:
        """Make the file durable and say what it is, by its path below `relative_to`."""
        os.fsync(self._file)
        return FileEntry(
            path=self.path.relative_to(relative_to).as_posix(),
            size=self.position,
            digest=f"blake3:{self._hasher.hexdigest()}",
        )

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if kind is not None:
            self.path.unlink(missing_ok=True)


def _chunks(data: bytes | memoryview | np.ndarray[Any, Any]) -> list[memoryview]:
    if isinstance(data, np.ndarray):
        # Through bytes: a memoryview knows neither bfloat16 nor a scalar's one byte.
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
    whole = memoryview(data)
    return [whole[start : start + CHUNK] for start in range(0, len(whole), CHUNK)]
