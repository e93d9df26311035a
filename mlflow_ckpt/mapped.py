"""Look at the tensors of a verified weights file where they lie, through a memory map.

Keras reads every tensor through HDF5 into one buffer and TensorFlow copies it into a
second and a third. In the files that Keras writes, a tensor is one run of bytes at a known
offset, so an array over the map costs nothing and the copy into the variable is the only
one. HDF5 itself reads no more than the metadata here.

    open file -> map -> zip member, if it is a .keras -> looked through -> HDF5 -> view(dataset)

Nothing is handed out before the whole file was looked through (`zipped.py`, `hdf5.py`).
Offsets and lengths are in bytes. Whoever writes into the file while it is mapped changes
what is read, and whoever truncates it kills the process: map only what nobody rewrites in
place.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
from collections.abc import Mapping
from typing import Any, BinaryIO
from zlib import crc32

import h5py
import ml_dtypes
import numpy as np

from mlflow_ckpt import hdf5, zipped
from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.hdf5 import Stored
from mlflow_ckpt.hdf5_types import Unlike
from mlflow_ckpt.members import MEMBER
from mlflow_ckpt.say import first_line

# What h5py and HDF5 raise for a file that is not what it says.
_UNREADABLE = (Unlike, OSError, RuntimeError, ValueError, LookupError, TypeError, OverflowError)


class MappedWeights:
    """A map of a `.weights.h5` file, or of the one inside a `.keras` file.

    A context manager. It needs `file` only while it is made, and leaves it open.

    Attributes:
        h5: The file's metadata, for HDF5 to read. Every object in it was checked.
        stored: Every dataset.
        content: The bytes of the weights file.
        start: Where they begin in `file`.
        members: Names of what else a `.keras` file holds.

    Raises:
        ModelNotLoadable: If the file is damaged, leads out of itself, or holds its weights
            compressed or encrypted.
    """

    h5: h5py.File
    stored: list[Stored]
    content: memoryview
    start: int

    def __init__(self, file: BinaryIO) -> None:
        with contextlib.ExitStack() as undo:
            self._map = mapped(file)
            undo.callback(_close, self._map)
            self._bytes = memoryview(self._map)
            undo.callback(self._bytes.release)
            try:
                self._members, weights = _take_apart(self._bytes)
                self.start = weights.start
                self.content = self._bytes[weights.start : weights.start + weights.size]
                undo.callback(self.content.release)
                self.stored, self.h5 = opened(self.content)
                undo.callback(self.h5.close)
            except _UNREADABLE as error:
                raise _refusal(error) from error
            self._close = undo.pop_all()

    def __enter__(self) -> MappedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    @property
    def members(self) -> list[str]:
        return list(self._members)

    def member(self, name: str) -> bytes:
        """A copy of one of `members`.

        Raises:
            ModelNotLoadable: If there is none of this name, or its CRC-32 is wrong.
        """
        found = self._members.get(name)
        if found is None:
            raise _refusal(f"an archive without {name!r}")
        data = bytes(self._bytes[found.start : found.start + found.size])
        if crc32(data) != found.crc:
            raise _refusal(f"a damaged {name!r}")
        return data

    def view(self, dataset: h5py.Dataset) -> np.ndarray[Any, Any] | None:
        """A dataset as a read-only array over the map, in its own shape and dtype.

        Copy it before the map is closed. bfloat16, which HDF5 does not know, is stored as
        two opaque bytes with an attribute `dtype`.

        Returns:
            `None` if the bytes are not the array as it would lie in memory (empty,
            big-endian, booleans): HDF5 has to read those.
        """
        offset, dtype = dataset.id.get_offset(), dataset.dtype
        if offset is None:
            return None
        if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
            if dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
                dtype = np.dtype(ml_dtypes.bfloat16)
        elif dtype.kind not in "iuf" or not dtype.isnative:
            return None
        count = math.prod(dataset.shape)
        if count == 0:
            return None
        return np.frombuffer(self.content, dtype, count, offset).reshape(dataset.shape)

    def forget(self, dataset: h5py.Dataset) -> None:
        """Take the pages of a dataset that was copied out of this process's memory.

        They come back if they are read again.
        """
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            start = self.start + dataset.id.get_offset()
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            length = (start + dataset.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
            if length > 0:
                self._map.madvise(mmap.MADV_DONTNEED, first, length)


def _refusal(what: object) -> ModelNotLoadable:
    text = first_line(what) if isinstance(what, Exception) else f"{what}."
    return ModelNotLoadable(
        f"Expected a model file as Keras writes it. Received: {text} Take another checkpoint."
    )


def _take_apart(view: memoryview) -> tuple[Mapping[str, zipped.Member], zipped.Member]:
    """The members of an archive, and where the weights lie: all of it, if it is none."""
    if view[:4] != zipped.SIGNATURE:
        return {}, zipped.Member(0, len(view), 0)
    members = dict(zipped.look_through(view))
    weights = members.pop(MEMBER, None)
    if weights is None:
        raise Unlike(f"0 members called {MEMBER!r}")
    return members, weights


# --- bytes that HDF5 may read -------------------------------------------------


def mapped(file: BinaryIO) -> mmap.mmap | bytes:
    """The whole of an open file, mapped where its file system can."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        # Empty, in memory, or on a file system that maps nothing.
        file.seek(0)
        return file.read()


def _close(content: mmap.mmap | bytes) -> None:
    # An array that somebody kept keeps the map; it goes with the last of them.
    with contextlib.suppress(BufferError):
        if isinstance(content, mmap.mmap):
            content.close()


def opened(view: memoryview) -> tuple[list[Stored], h5py.File]:
    """Look through an HDF5 file, then let HDF5 open it; the caller closes it first.

    Raises:
        Unlike, OSError: If it is not of the kind that Keras writes.
    """
    return hdf5.look_through(view), h5py.File(_Window(view), mode="r")


class _Window(io.RawIOBase):
    """A read-only file over a part of the map, for HDF5's metadata."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._view)}
        self._position = base[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        source = self._view[self._position : self._position + len(target)]
        target[: len(source)] = source
        self._position += len(source)
        return len(source)
