"""Look through an HDF5 file before the HDF5 library does.

The library reads what a file says about itself without much doubt: links into other files,
datasets without bytes, lists that lead in circles; and some damage ends the process. What
Keras and this package write is a small part of the format, so everything else is refused
here, in bytes that nobody has interpreted yet.

    superblock 0 -> group: B-tree, symbol nodes, local heap -> object header -> one run of bytes

No two structures may share a byte (`hdf5_claims.py`): then no dataset is there twice, nothing
goes round in circles, and what is read is never more than the file. Layout: HDF5 File Format
Specification 3.0, sections II.A, III.A to III.E and IV.A. Offsets and lengths are in bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlflow_ckpt.hdf5_attributes import MAX_TEXT, Attributes
from mlflow_ckpt.hdf5_claims import Claims
from mlflow_ckpt.hdf5_types import Unlike, item_size, shape_of

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 0xFFFFFFFFFFFFFFFF
_NO_FREE_BLOCK = 1
# Versions; lengths of an offset and of a length; how many children a node has room for.
_SUPERBLOCK = SIGNATURE + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
_ENTRY = struct.Struct("<QQIIQQ")
_MESSAGE = struct.Struct("<HHBxxx")
_TREE = struct.Struct("<4sBBHQQ")
_TREE_BYTES, _SYMBOLS_BYTES, _CHILDREN, _SYMBOLS = 544, 328, 32, 8
_DEFAULT = b"\1\0\0\0\0"
_MAX_GROUPS = 128  # one in another
_MAX_PATH = 4096  # in characters, as all lengths of paths
_PATHS = 8 << 20  # of all together, beside half of the file's size

_NIL, _SPACE, _TYPE, _FILL, _LAYOUT = 0x0, 0x1, 0x3, 0x5, 0x8
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE, _DATE = 0xC, 0x10, 0x11, 0x12


@dataclass(frozen=True, slots=True)
class Stored:
    """One dataset: its path, and its bytes. `start` is `None` where there are none."""

    path: str
    start: int | None
    size: int


@dataclass
class _Header:
    """The messages of one object header that matter."""

    single: dict[int, memoryview] = field(default_factory=dict)
    attributes: list[memoryview] = field(default_factory=list)


def look_through(view: memoryview) -> list[Stored]:
    """Return every dataset of the file that fills `view`.

    Raises:
        Unlike: If it has anything but groups and datasets of numbers in one run of bytes.
    """
    try:
        return list(_Walk(view).datasets())
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        if isinstance(error, Unlike):
            raise
        raise Unlike(f"HDF5 metadata that ends too early or is no text ({error})") from error


class _Walk:
    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._claims = Claims(view)
        self._claim = self._claims.claim
        self._attributes = Attributes(self._claims)
        self._paths_left = len(view) // 2 + _PATHS

    def datasets(self) -> Iterator[Stored]:
        root = self._root()
        groups = [("", 0, *root)]
        while groups:
            path, depth, tree, heap = groups.pop()
            if depth > _MAX_GROUPS:
                raise Unlike(f"groups more than {_MAX_GROUPS} deep")
            for name, address, cached in self._members(tree, heap):
                where = self._path(f"{path}/{name}")
                header = self._header(address, where)
                if _SYMBOL_TABLE in header.single:
                    table = _symbol_table(header, where)
                    if cached not in (None, table):
                        raise Unlike(f"two tables of the group {where!r}")
                    groups.append((where, depth + 1, *table))
                else:
                    yield self._dataset(header, where)
        self._claims.check()

    def _root(self) -> tuple[int, int]:
        if bytes(self._view[: len(_SUPERBLOCK)]) != _SUPERBLOCK:
            raise Unlike("no HDF5 superblock of version 0")
        base, free, end, driver = struct.unpack_from("<4Q", self._view, len(_SUPERBLOCK))
        name, address, cache, reserved, *cached = _ENTRY.unpack_from(self._view, 56)
        if (base, free, driver, name, reserved) != (0, _UNDEFINED, _UNDEFINED, 0, 0):
            raise Unlike("an HDF5 superblock with a user block, a driver or free space")
        if end != len(self._view):
            raise Unlike(f"an HDF5 file that says {end} bytes and has {len(self._view)}")
        self._claim(0, 96)
        header = self._header(address, "/")
        table = _symbol_table(header, "/")
        if cache not in (0, 1) or (cache and table != tuple(cached)):
            raise Unlike("two tables of the root group")
        return table

    def _path(self, path: str) -> str:
        self._paths_left -= len(path)
        if len(path) > _MAX_PATH or self._paths_left < 0:
            raise Unlike(f"a path of more than {_MAX_PATH} characters, or many long ones")
        return path

    # --- groups -----------------------------------------------------------------

    def _members(self, tree: int, heap: int) -> Iterator[tuple[str, int, tuple[int, int] | None]]:
        names = self._names(heap)
        before = b""
        for address, low, high in self._leaves(tree):
            node = self._claim(address, _SYMBOLS_BYTES)
            signature, version, count = struct.unpack_from("<4sBxH", node)
            if (signature, version) != (b"SNOD", 1) or not 0 < count <= _SYMBOLS:
                raise Unlike(f"a damaged symbol table, at {address}")
            if _text(names, low) != before:
                raise Unlike(f"a group whose names are not in order, at {address}")
            for index in range(count):
                name, header, cache, reserved, *cached = _ENTRY.unpack_from(node, 8 + 40 * index)
                text = _text(names, name)
                if cache not in (0, 1) or reserved:
                    raise Unlike(f"a soft or external link {text!r}")
                if text <= before or b"/" in text or text == b".":
                    raise Unlike(f"a group whose names are not in order, at {text!r}")
                before = text
                table = (int(cached[0]), int(cached[1])) if cache else None
                yield text.decode(), header, table
            if _text(names, high) != before:
                raise Unlike(f"a group whose names are not in order, at {address}")

    def _names(self, heap: int) -> memoryview:
        signature, version, size, free, start = struct.unpack("<4sB3xQQQ", self._claim(heap, 32))
        if (signature, version) != (b"HEAP", 0) or size % 8:
            raise Unlike(f"a damaged heap of names, at {heap}")
        names = self._claim(start, size)
        behind = 0
        while free != _NO_FREE_BLOCK:
            # The library follows this list to its end: it must have one.
            if free < behind or free + 16 > size or free % 8:
                raise Unlike(f"a damaged heap of names, at {heap}")
            free, length = struct.unpack_from("<QQ", names, (at := free))
            behind = at + max(length, 16)
            if behind > size:
                raise Unlike(f"a damaged heap of names, at {heap}")
        return names

    def _leaves(self, root: int) -> Iterator[tuple[int, int, int]]:
        """Address of each symbol node, and where the names below and at its end stand."""
        row: list[tuple[int, int | None, int | None]] = [(root, None, None)]
        level = None
        while row:
            below: list[tuple[int, int | None, int | None]] = []
            for index, (address, low, high) in enumerate(row):
                node = self._claim(address, _TREE_BYTES)
                signature, kind, at, count, left, right = _TREE.unpack_from(node)
                level = at if level is None else level
                children = struct.unpack_from(f"<{2 * count + 1}Q", node, _TREE.size)
                neighbours = (
                    row[index - 1][0] if index else _UNDEFINED,
                    row[index + 1][0] if index + 1 < len(row) else _UNDEFINED,
                )
                if (
                    (signature, kind, at) != (b"TREE", 0, level)
                    or count > _CHILDREN
                    or (left, right) != neighbours
                    or low not in (None, children[0])
                    or high not in (None, children[-1])
                    or (at and not count)
                ):
                    raise Unlike(f"a damaged group, at {address}")
                below += zip(children[1::2], children[::2], children[2::2], strict=False)
            if not level:
                yield from ((a, low or 0, high or 0) for a, low, high in below)
                return
            row, level = below, level - 1

    # --- objects ----------------------------------------------------------------

    def _header(self, address: int, where: str) -> _Header:
        version, reserved, count, references, size = struct.unpack(
            "<BBHII", self._claim(address, 12)
        )
        if (version, reserved, references) != (1, 0, 1):
            raise Unlike(f"{where!r}, which has several links or is of another version")
        found, chunks, seen = _Header(), [(address + 16, size)], 0
        for start, length in chunks:
            chunk, position = self._claim(start, length), 0
            while position < length:
                kind, extent, flags = _MESSAGE.unpack_from(chunk, position)
                body = chunk[position + 8 : position + 8 + extent]
                position += 8 + extent
                seen += 1
                if len(body) != extent or extent % 8 or flags not in (0, 1) or seen > count:
                    raise Unlike(f"a damaged header of {where!r}")
                if kind == _CONTINUATION:
                    chunks.append(struct.unpack("<QQ", body))
                elif kind == _ATTRIBUTE:
                    found.attributes.append(body)
                elif kind in (_SPACE, _TYPE, _FILL, _LAYOUT, _SYMBOL_TABLE):
                    if kind in found.single:
                        raise Unlike(f"a damaged header of {where!r}")
                    found.single[kind] = body
                elif kind not in (_NIL, _DATE) or (
                    kind == _DATE and bytes(body[:4]) != b"\1\0\0\0"
                ):
                    raise Unlike(f"{where!r}, which has {_KINDS.get(kind, f'message {kind}')}")
        if seen != count:
            raise Unlike(f"a damaged header of {where!r}")
        for attribute in found.attributes:
            self._attributes.check(attribute, where)
        return found

    def _dataset(self, header: _Header, where: str) -> Stored:
        parts = header.single
        if not {_SPACE, _TYPE, _LAYOUT} <= set(parts):
            raise Unlike(f"{where!r}, which is neither a group nor a dataset")
        shape, item = shape_of(parts[_SPACE], where), item_size(parts[_TYPE], where)
        fill = parts.get(_FILL)
        # Version 2, when to allocate and to write it, and the default value, which has no bytes.
        if fill is not None and (
            len(fill) != 8
            or fill[0] != 2
            or fill[1] > 3
            or fill[2] > 2
            or bytes(fill[3:]) != _DEFAULT
        ):
            raise Unlike(f"{where!r}, which has a fill value of its own")
        layout = parts[_LAYOUT]
        if (layout[0], layout[1]) != (3, 1):
            raise Unlike(f"{where!r}, which is chunked, compressed, virtual or compact")
        start, size = struct.unpack_from("<QQ", layout, 2)
        declared = math.prod(shape) * item
        if size != declared or (declared and start == _UNDEFINED):
            raise Unlike(f"{where!r}, which declares {declared} bytes and stores {size} or none")
        if not declared:
            return Stored(where, None, 0)
        self._claim(start, size)
        return Stored(where, start, size)


_KINDS = {
    0x6: "a link of a newer kind", 0x7: "bytes in another file", 0xB: "a filter (compression)",
    0x2: "links of a newer kind", 0x4: "an old fill value", 0x12: "a date",
    0x15: "attributes of a newer kind",
}  # fmt: skip


def _symbol_table(header: _Header, where: str) -> tuple[int, int]:
    if set(header.single) != {_SYMBOL_TABLE}:
        raise Unlike(f"{where!r}, which is no group")
    tree, heap = struct.unpack("<QQ", header.single[_SYMBOL_TABLE])
    return tree, heap


def _text(names: memoryview, start: int) -> bytes:
    if start >= len(names):
        raise Unlike("a name outside of its heap")
    end = bytes(names[start : start + MAX_TEXT]).find(0)
    if end < 0:
        raise Unlike("a name without an end")
    return bytes(names[start : start + end])
