"""Look through a `.keras` archive before anybody takes it apart.

A zip archive says twice what it holds: in a header before each member and in a directory at
its end. Readers that trust different ones see different files. Keras and this package write
members as they are, one behind the other, and nothing in between: any other archive is
refused, and what is left can be read in one way only. Layout: PKWARE APPNOTE.TXT 6.3.10,
sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from mlflow_ckpt.hdf5_types import Unlike

SIGNATURE = b"PK\x03\x04"
_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
_END, _END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_BEHIND, _UTF8 = 1 << 3, 1 << 11
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_KIND, _REGULAR = 0o170000, 0o100000
_MAX_NAME = 1024
_VERSION = 45  # of the format that a reader needs to know: zip64
_MAX_MEMBERS = 10_000


@dataclass(frozen=True)
class Member:
    """Where one member's bytes lie, and the CRC-32 that it has by the directory."""

    start: int
    size: int
    crc: int


def look_through(view: memoryview) -> dict[str, Member]:
    """Return the members of the archive that fills `view`, by name.

    Raises:
        Unlike: If it is not one that Keras or this package could have written.
    """
    try:
        return _members(view)
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        if isinstance(error, Unlike):
            raise
        raise Unlike(f"an archive that ends too early or has no names ({error})") from error


def _members(view: memoryview) -> dict[str, Member]:
    start, end, count = _directory(view)
    found: dict[str, Member] = {}
    position = 0
    for entry in _entries(view[start:end], count):
        if entry.name in found:
            raise Unlike(f"2 members called {entry.name!r}")
        if entry.offset != position:
            raise Unlike(
                f"an archive in which {entry.name!r} overlaps another part, or leaves a gap"
            )
        data, position = _behind_header(view, entry)
        if position > start:
            raise Unlike(f"an archive in which {entry.name!r} overlaps another part")
        found[entry.name] = Member(data, entry.size, entry.crc)
    if position != start or len(found) != count:
        raise Unlike("an archive with something between its members and its directory")
    return found


def _directory(view: memoryview) -> tuple[int, int, int]:
    """Beginning, end and number of entries of the central directory."""
    at = len(view) - _END.size
    if at < 0:
        raise Unlike("an archive without an end")
    signature, disk, first, here, count, size, start, comment = _END.unpack_from(view, at)
    if signature != b"PK\x05\x06" or disk or first or here != count or comment:
        raise Unlike("an archive without an end, or of several disks, or with a comment")
    locator = at - _LOCATOR64.size
    if bytes(view[max(locator, 0) :][:4]) != b"PK\x06\x07":
        return _within(start, size, at, count)
    _, disk, record, disks = _LOCATOR64.unpack_from(view, locator)
    if (disk, disks) != (0, 1) or record != locator - _END64.size:
        raise Unlike("a large archive without an end of its own")
    signature, length, _, _, disk, first, here, wide, size64, start64 = _END64.unpack_from(
        view, record
    )
    told = ((count, wide, _MAX16), (size, size64, _MAX32), (start, start64, _MAX32))
    if (signature, length, disk, first, here) != (b"PK\x06\x06", 44, 0, 0, wide) or any(
        narrow not in (true, limit) for narrow, true, limit in told
    ):
        raise Unlike("a large archive whose two ends differ")
    return _within(start64, size64, record, wide)


def _within(start: int, size: int, end: int, count: int) -> tuple[int, int, int]:
    if start + size != end or count > _MAX_MEMBERS:
        raise Unlike("an archive whose directory overlaps another part, or leaves a gap")
    return start, end, count


@dataclass(frozen=True)
class _Entry:
    name: str
    raw: bytes
    flags: int
    crc: int
    size: int
    offset: int


def _entries(directory: memoryview, count: int) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        (
            signature, _made, _system, needs, _zero, flags, method, _time, _date, crc,
            packed, size, name_size, extra_size, comment, disk, _internal, mode, offset,
        ) = _CENTRAL.unpack_from(directory, position)  # fmt: skip
        position += _CENTRAL.size
        raw = bytes(directory[position : position + name_size])
        extra = bytes(directory[position + name_size :][:extra_size])
        position += name_size + extra_size
        name = _name(raw, flags)
        if signature != b"PK\x01\x02" or disk or comment or len(extra) != extra_size:
            raise Unlike("an archive with a damaged directory")
        if method or flags & ~(_BEHIND | _UTF8) or needs > _VERSION:
            raise Unlike(f"a compressed or encrypted {name!r}")
        if (mode >> 16) & _KIND not in (0, _REGULAR) or mode & 0x10:
            raise Unlike(f"{name!r}, which is a link, a folder or a device")
        size, packed, offset = _widened(extra, [size, packed, offset], name)
        if size != packed:
            raise Unlike(f"a compressed {name!r}")
        yield _Entry(name, raw, flags, crc, size, offset)
    if position != len(directory):
        raise Unlike("an archive with a damaged directory")


def _name(raw: bytes, flags: int) -> str:
    name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    path = PurePosixPath(name)
    if (
        not 0 < len(raw) <= _MAX_NAME
        or str(path) != name
        or path.is_absolute()
        or ".." in path.parts
        or any(character in name for character in "\\:\0")
    ):
        raise Unlike(f"a member called {name!r}")
    return name


def _widened(extra: bytes, values: list[int], name: str) -> list[int]:
    """The numbers of a header, where they did not fit from its zip64 field."""
    if not extra:
        if _MAX32 in values:
            raise Unlike(f"{name!r}, whose size is not told")
        return values
    kind, length = struct.unpack_from("<HH", extra)
    wide = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
    if kind != 1 or length % 8 or len(extra) != 4 + length:
        raise Unlike(f"{name!r}, which has an extra field")
    found = [next(wide, -1) if value == _MAX32 else value for value in values]
    if -1 in found or next(wide, None) is not None:
        raise Unlike(f"{name!r}, whose sizes differ")
    return found


def _behind_header(view: memoryview, entry: _Entry) -> tuple[int, int]:
    """Where a member's bytes begin, and where what comes behind it does."""
    (
        signature, needs, flags, method, _time, _date, crc, packed, size, name_size, extra_size,
    ) = _LOCAL.unpack_from(view, entry.offset)  # fmt: skip
    begin = entry.offset + _LOCAL.size
    data = begin + name_size + extra_size
    name = bytes(view[begin : begin + name_size])
    extra = bytes(view[begin + name_size : data])
    same = (flags, name) == (entry.flags, entry.raw)
    if signature != SIGNATURE or method or needs > _VERSION or not same:
        raise Unlike(f"an archive whose two headers of {entry.name!r} differ")
    sizes = _local_sizes(extra, size, packed, entry)
    behind = bool(flags & _BEHIND)
    told = (entry.crc, [entry.size, entry.size])
    if (crc, sizes) != told and not (behind and (crc, sizes) == (0, [0, 0])):
        raise Unlike(f"an archive whose two headers of {entry.name!r} differ")
    end = data + entry.size
    if not behind:
        return data, end
    width = "<4sLQQ" if extra else "<4sLLL"
    if struct.unpack_from(width, view, end) != (b"PK\x07\x08", entry.crc, entry.size, entry.size):
        raise Unlike(f"an archive whose two headers of {entry.name!r} differ")
    return data, end + struct.calcsize(width)


def _local_sizes(extra: bytes, size: int, packed: int, entry: _Entry) -> list[int]:
    # A writer that did not know the size leaves room for a large one, in one of two ways.
    if extra and _MAX32 not in (size, packed):
        widened = _widened(extra, [_MAX32, _MAX32], entry.name)
        if widened != [size, packed]:
            raise Unlike(f"an archive whose two headers of {entry.name!r} differ")
        return widened
    return _widened(extra, [size, packed], entry.name)
