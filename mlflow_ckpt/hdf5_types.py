"""The messages of HDF5 object headers that describe a dataset: its shape and its datatype.

A datatype is compared byte for byte with those that h5py writes for NumPy's numbers, so that
HDF5 never has to make sense of another one. Layout: HDF5 File Format Specification 3.0,
sections IV.A.2.b and IV.A.2.d.
"""

from __future__ import annotations

import struct


class Unlike(ValueError):
    """A file is not of the kind that Keras writes; the message says what it has instead."""


def shape_of(body: memoryview, where: str) -> tuple[int, ...]:
    version, rank, flags = body[0], body[1], body[2]
    if version != 1 or rank > 32 or flags > 1 or any(body[3:8]):
        raise Unlike(f"{where!r}, whose shape is of another kind")
    sizes = struct.unpack_from(f"<{rank}Q", body, 8)
    if flags and struct.unpack_from(f"<{rank}Q", body, 8 + 8 * rank) != sizes:
        raise Unlike(f"{where!r}, which may grow")
    if any(size >> 40 for size in sizes):
        raise Unlike(f"{where!r}, which declares the shape {sizes}")
    return sizes


def item_size(body: memoryview, where: str) -> int:
    """Bytes of one element, of a datatype that is known byte for byte."""
    (size,) = struct.unpack_from("<I", body, 4)
    raw = bytes(body)
    if raw.rstrip(b"\0") in _NUMBERS:
        return int(size)
    # Fixed text of any length, and bfloat16 as two opaque bytes.
    fixed = raw[0] == 0x13 and raw[1] in (0, 1, 2, 0x10, 0x11, 0x12) and size
    if len(raw) == 8 and not any(raw[2:4]) and (fixed or (raw[:2] == b"\x15\0" and 0 < size <= 16)):
        return int(size)
    raise Unlike(f"{where!r}, which does not hold numbers")


def _integer(size: int, order: int, signed: int) -> bytes:
    return struct.pack("<BBHIHH", 0x10, order | signed << 3, 0, size, 0, 8 * size)


def _float(size: int, order: int, exponent: int, mantissa: int) -> bytes:
    return struct.pack(
        "<BBBBIHHBBBBI", 0x11, 0x20 | order, 8 * size - 1, 0, size, 0, 8 * size,
        mantissa, exponent, 0, mantissa, (1 << exponent - 1) - 1,
    )  # fmt: skip


def _complex(size: int, part: bytes) -> bytes:
    found = struct.pack("<BHBI", 0x16, 2, 0, size)
    for name, offset in ((b"r", 0), (b"i", size // 2)):
        found += name.ljust(8, b"\0") + struct.pack("<I", offset) + bytes(28) + part
    return found


_FLOATS = [_float(*parts) for order in (0, 1) for parts in (
    (2, order, 5, 10), (4, order, 8, 23), (8, order, 11, 52),
)]  # fmt: skip
_BOOLEAN = (
    struct.pack("<BHBI", 0x18, 2, 0, 1) + _integer(1, 0, 1)
    + b"FALSE\0\0\0TRUE\0\0\0\0" + b"\0\1"
)  # fmt: skip
# Padding is cut off, which no two of these share.
_NUMBERS = {
    kind.rstrip(b"\0")
    for kind in (
        *(
            _integer(size, order, sign)
            for size in (1, 2, 4, 8)
            for order in (0, 1)
            for sign in (0, 1)
        ),
        *_FLOATS,
        *(_complex(2 * size, _FLOATS[i]) for i, size in ((1, 4), (2, 8))),
        _BOOLEAN,
    )
}
TEXT = struct.pack("<BBHI", 0x19, 1, 1, 16) + _integer(1, 0, 0)
