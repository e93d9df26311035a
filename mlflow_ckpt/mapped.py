"""Look at the tensors of a verified weights file where they lie, through a memory map.

Keras reads every tensor through HDF5 into one buffer and TensorFlow copies it into a
second and a third. In the files that Keras writes, a tensor is one run of bytes at a known
offset, so an array over the map costs nothing and the copy into the variable is the only
one. HDF5 itself reads no more than the metadata here.

    open file -> zip member, if it is a .keras -> map -> HDF5 metadata -> view(dataset)

Nothing is handed out before the whole file was looked through: no link leads out of it, no
dataset lies elsewhere, and no tensor ends beyond the file's end. Offsets and lengths are in
bytes. Whoever writes into the file while it is mapped changes what is read, and whoever
truncates it kills the process: map only what nobody rewrites in place.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np

from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.formats import MEMBER, first_line

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
# A dataset that declares more than the floor and this many times what it stores would
# allocate memory for nothing: the bounds of `keras.src.saving.saving_lib`.
_BOMB_FLOOR_BYTES = 1 << 32
_BOMB_EXPANSION = 1000
# What zipfile, h5py and HDF5 raise for a file that is not what it says.
_UNREADABLE = (
    zipfile.BadZipFile,
    struct.error,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
)


class MappedWeights:
    """A map of a `.weights.h5` file, or of the one inside a `.keras` file.

    A context manager. It needs `file` only while it is made, and leaves it open.

    Attributes:
        h5: The file's metadata, for HDF5 to read. Every object in it was checked.

    Raises:
        ModelNotLoadable: If the file is damaged, leads out of itself, or holds its weights
            compressed or encrypted.
    """

    h5: h5py.File

    def __init__(self, file: BinaryIO) -> None:
        with contextlib.ExitStack() as undo:
            self._map = _map(file)
            undo.callback(self._close_map)
            self._bytes = memoryview(self._map)
            undo.callback(self._bytes.release)
            try:
                start, length = _weights_within(file, len(self._bytes))
                self._window = self._bytes[start : start + length]
                undo.callback(self._window.release)
                self.h5 = h5py.File(_Window(self._window), mode="r")
                undo.callback(self.h5.close)
                for dataset in _datasets(self.h5):
                    self._check(dataset)
            except _UNREADABLE as error:
                if isinstance(error, ModelNotLoadable):
                    raise
                raise ModelNotLoadable(
                    f"Expected weights as Keras writes them. Received: {first_line(error)} "
                    "Take another checkpoint."
                ) from error
            self._close = undo.pop_all()

    def __enter__(self) -> MappedWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def _close_map(self) -> None:
        # An array that somebody kept keeps the map; it goes with the last of them.
        with contextlib.suppress(BufferError):
            if isinstance(self._map, mmap.mmap):
                self._map.close()

    def view(self, dataset: h5py.Dataset) -> np.ndarray[Any, Any] | None:
        """A dataset as a read-only array over the map, in its own shape and dtype.

        Copy it before the map is closed. bfloat16, which HDF5 does not know, is stored as
        two opaque bytes with an attribute `dtype`.

        Returns:
            `None` if the bytes are not the array as it would lie in memory (chunked,
            compressed, empty, big-endian, booleans): HDF5 has to read those.
        """
        offset, dtype = dataset.id.get_offset(), dataset.dtype
        if offset is None or not _is_contiguous(dataset) or self.h5.userblock_size:
            return None
        if dtype.kind == "V" and dtype.names is None and dtype.subdtype is None:
            if dtype.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16":
                dtype = np.dtype(ml_dtypes.bfloat16)
        elif dtype.kind not in "iuf" or not _is_native(dataset):
            return None
        count = math.prod(dataset.shape)
        if count == 0:
            return None
        return np.frombuffer(self._window, dtype, count, offset).reshape(dataset.shape)

    def _check(self, dataset: h5py.Dataset) -> None:
        name = dataset.name
        if dataset.external:
            raise _refusal(f"the external dataset {name!r}")
        if dataset.is_virtual:
            raise _refusal(f"the virtual dataset {name!r}")
        if dataset.shape is None:
            return
        declared = math.prod(dataset.shape) * dataset.dtype.itemsize
        stored = dataset.id.get_storage_size()
        if declared > _BOMB_FLOOR_BYTES and declared > _BOMB_EXPANSION * stored:
            raise _refusal(f"{name!r}, which declares {declared} bytes and stores {stored}")
        offset = dataset.id.get_offset()
        if offset is not None and offset + max(stored, declared) > len(self._window):
            raise _refusal(f"{name!r}, which ends beyond the end of its file")


def _is_contiguous(dataset: h5py.Dataset) -> bool:
    return bool(dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS)


def _is_native(dataset: h5py.Dataset) -> bool:
    # NumPy has no name for every number that HDF5 can lay out: then they differ.
    return bool(h5py.h5t.py_create(dataset.dtype.newbyteorder("=")) == dataset.id.get_type())


def _refusal(what: str) -> ModelNotLoadable:
    return ModelNotLoadable(
        f"Expected weights as Keras writes them. Received: {what}. Take another checkpoint."
    )


def _map(file: BinaryIO) -> mmap.mmap | bytes:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        # Empty, or on a file system that maps nothing.
        file.seek(0)
        return file.read()


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


def _datasets(h5: h5py.File) -> Iterator[h5py.Dataset]:
    """Every dataset of the file, once; refuses whatever leads out of it."""
    groups, seen = [h5], {h5py.h5o.get_info(h5.id).addr}
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise _refusal(f"a {type(link).__name__} at {group.name!r}")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                yield item


def _weights_within(file: BinaryIO, size: int) -> tuple[int, int]:
    """Offset and length of the HDF5 file: all of `file`, or a member if it is an archive."""
    file.seek(0)
    if file.read(len(_LOCAL_SIGNATURE)) != _LOCAL_SIGNATURE:
        return 0, size
    with zipfile.ZipFile(file) as archive:
        return _member(archive, file, size)


def _member(archive: zipfile.ZipFile, file: BinaryIO, size: int) -> tuple[int, int]:
    """Where the bytes of `model.weights.h5` lie: stored as they are, and nobody else's."""
    infos = archive.infolist()
    named = [info for info in infos if info.filename == MEMBER]
    if len(named) != 1:
        raise _refusal(f"{len(named)} members called {MEMBER!r}")
    info = named[0]
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & _ENCRYPTED:
        raise _refusal(f"a compressed or encrypted {MEMBER!r}")
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    signature, flags, method, name_length, extra_length = (header[i] for i in (0, 2, 3, 9, 10))
    name = file.read(name_length)
    if (
        signature != _LOCAL_SIGNATURE
        or flags & _ENCRYPTED
        or method != zipfile.ZIP_STORED
        or name != MEMBER.encode()
    ):
        raise _refusal(f"an archive whose two headers of {MEMBER!r} differ")
    start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    end = start + info.file_size
    later = [i.header_offset for i in infos if i.header_offset >= info.header_offset]
    later.remove(info.header_offset)
    if info.file_size != info.compress_size or end > min([archive.start_dir, size, *later]):
        raise _refusal(f"an archive in which {MEMBER!r} overlaps another part")
    return start, info.file_size
