"""The work and the memory that an HDF5 file takes are bounded by its size."""

from __future__ import annotations

import io
import struct
from typing import Any

import h5py
import numpy as np
import pytest

from mlflow_ckpt import hdf5, hdf5_attributes
from mlflow_ckpt.hdf5_types import TEXT, Unlike

pytestmark = pytest.mark.pure


def overlapping_heaps(count: int) -> bytes:
    """A root group whose attributes lie in heaps that each begin within the one before."""
    kind = TEXT + bytes(-len(TEXT) % 8)
    body = struct.pack("<BxHHH8s", 1, 2, len(TEXT), 8, b"a") + kind + b"\1" + bytes(7)
    extent = len(body) + 16
    heap = 96 + 16 + count * (8 + extent) + 24
    end = heap + 32 * count + 8192
    messages = b"".join(
        struct.pack("<HHBxxx", 0xC, extent, 0) + body + struct.pack("<IQI", 16, at, i + 1)
        for i, at in enumerate(range(heap, heap + 32 * count, 32))
    )
    messages += struct.pack("<HHBxxxQQ", 0x11, 16, 0, end - 8, end - 8)
    heaps = b"".join(
        struct.pack("<8sQH6xQ", b"GCOL\1\0\0\0", end - heap - 32 * i, i + 1, 16)
        for i in range(count)
    )
    heaps += bytes(16) + struct.pack("<H6xQ", 0, end - heap - 32 * count - 16)
    start = hdf5._SUPERBLOCK + struct.pack("<4Q", 0, 2**64 - 1, end, 2**64 - 1)
    start += struct.pack("<QQIIQQ", 0, 96, 0, 0, 0, 0)
    start += struct.pack("<BBHII4x", 1, 0, count + 1, 1, len(messages)) + messages + heaps
    return start.ljust(end, b"\0")


def test_bytes_that_many_claim_are_not_read_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    really = hdf5_attributes.Attributes._collection

    def counted(self: Any, address: int) -> Any:
        read.append(address)
        return really(self, address)

    monkeypatch.setattr(hdf5_attributes.Attributes, "_collection", counted)
    with pytest.raises(Unlike, match="share bytes"):
        hdf5.look_through(memoryview(overlapping_heaps(500)))
    assert len(read) <= 3


def nested_groups(count: int, name: str, members: int) -> memoryview:
    content = io.BytesIO()
    with h5py.File(content, "w") as group:
        for _ in range(count):
            group = group.create_group(name)
        for index in range(members):
            group[str(index)] = np.float32(1)
    return memoryview(content.getvalue())


def test_a_path_is_not_longer_than_a_path() -> None:
    [found, *_] = hdf5.look_through(nested_groups(20, "n" * 100, 3))
    assert len(found.path) == 20 * 101 + 2
    with pytest.raises(Unlike, match="a path of more than 4096 characters"):
        hdf5.look_through(nested_groups(5, "n" * 1000, 3))


def test_paths_are_not_together_much_longer_than_their_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = nested_groups(20, "n" * 100, 300)
    monkeypatch.setattr(hdf5, "_PATHS", 0)
    with pytest.raises(Unlike, match="many long ones"):
        hdf5.look_through(view)
