"""What the machine itself allows: a memory copy, a file write, a file read of the same bytes.

All buffers are allocated and touched before the clock starts, so that no page fault is
counted. Times are seconds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

_CHUNK = 2**20


class MemoryCopy:
    """Copy every tensor into a buffer of its own, one after another, in one thread."""

    def __init__(self, tensors: Sequence[np.ndarray[Any, Any]]) -> None:
        self._tensors = [np.atleast_1d(tensor) for tensor in tensors]
        self._buffers = [np.full_like(tensor, 1) for tensor in self._tensors]

    def seconds(self) -> float:
        began = time.perf_counter()
        for buffer, tensor in zip(self._buffers, self._tensors, strict=True):
            np.copyto(buffer, tensor)
        return time.perf_counter() - began


def noise(size: int) -> np.ndarray[Any, Any]:
    """`size` bytes that do not compress, in touched memory."""
    block = np.random.default_rng(0).integers(0, 256, min(size, 64 * _CHUNK), dtype=np.uint8)
    return np.resize(block, size)


def write_seconds(path: Path, data: np.ndarray[Any, Any]) -> float:
    """Write `data` to a new file in pieces of 1 MiB, and fsync it."""
    view = memoryview(data.data)
    began = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for start in range(0, len(view), _CHUNK):
            piece = view[start : start + _CHUNK]
            while piece:
                piece = piece[os.write(descriptor, piece) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return time.perf_counter() - began


def read_seconds(path: Path, buffer: np.ndarray[Any, Any]) -> float:
    """Read a whole file into `buffer`, which must be large enough."""
    view = memoryview(buffer.data)
    began = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        start = 0
        while count := file.readinto(view[start:]):
            start += count
    return time.perf_counter() - began


class PlainWriter(keras.callbacks.Callback):
    """The least that a background checkpoint can do: at each epoch's end, write and fsync.

    It writes a fixed buffer, so it takes no snapshot, computes no checksum and commits
    nothing. Like every bounded writer it waits for the write before.

    Attributes:
        seconds: What each write took, in order.
    """

    def __init__(self, folder: Path, data: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._folder = folder
        self._data = data
        self._thread: threading.Thread | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._wait()
        self._thread = threading.Thread(target=self._write, args=(epoch,))
        self._thread.start()

    def on_train_end(self, logs: Any = None) -> None:
        self._wait()

    def _write(self, epoch: int) -> None:
        self.seconds.append(write_seconds(self._folder / f"plain-{epoch}", self._data))
        (self._folder / f"plain-{epoch - 1}").unlink(missing_ok=True)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
