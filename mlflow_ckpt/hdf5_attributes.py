"""Look through the attributes of an HDF5 object: Keras writes texts, and nothing else.

A text lies in a global heap, a collection of which many attributes share. Layout: HDF5 File
Format Specification 3.0, sections III.E and IV.A.2.m. Sizes are in bytes.
"""

from __future__ import annotations

import struct

from mlflow_ckpt.hdf5_claims import Claims
from mlflow_ckpt.hdf5_types import TEXT, Unlike

MAX_TEXT = 4096


class Attributes:
    """Those of one file."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._texts: dict[int, dict[int, int]] = {}

    def check(self, body: memoryview, where: str) -> None:
        """Look at one message of the object at the path `where`.

        Raises:
            Unlike: If it is not one text of at most 4,096 bytes.
        """
        version, name_size, type_size, space_size = struct.unpack_from("<BxHHH", body)
        name_end = 8 + _padded(name_size)
        kind = bytes(body[name_end : name_end + type_size])
        data = body[name_end + _padded(type_size) + _padded(space_size) :]
        space = bytes(body[name_end + _padded(type_size) :][:space_size])
        if version != 1 or kind != TEXT or space != b"\1\0\0\0\0\0\0\0" or len(data) != 16:
            raise Unlike(f"an attribute of {where!r} that is not one text")
        if not name_size or bytes(body[8 : 8 + name_size]).index(0) != name_size - 1:
            raise Unlike(f"a damaged attribute of {where!r}")
        length, heap, index = struct.unpack("<IQI", data)
        if heap not in self._texts:
            self._texts[heap] = self._collection(heap)
        if length != self._texts[heap].get(index) or length > MAX_TEXT:
            raise Unlike(f"a damaged attribute of {where!r}")

    def _collection(self, address: int) -> dict[int, int]:
        """Sizes of the texts in one global heap collection, by index."""
        (size,) = struct.unpack_from("<Q", self._claims.view, address + 8)
        collection = self._claims.claim(address, size)
        if bytes(collection[:8]) != b"GCOL\1\0\0\0" or size < 4096:
            raise Unlike(f"a damaged heap of texts, at {address}")
        sizes: dict[int, int] = {}
        position = 16
        while position + 16 <= size:
            index, length = struct.unpack_from("<H6xQ", collection, position)
            if index == 0:
                if length != size - position:
                    raise Unlike(f"a damaged heap of texts, at {address}")
                break
            position += 16 + _padded(length)
            if index in sizes or position > size:
                raise Unlike(f"a damaged heap of texts, at {address}")
            sizes[index] = length
        return sizes


def _padded(size: int) -> int:
    return (size + 7) & ~7
