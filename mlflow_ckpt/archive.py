"""Write a zip archive of uncompressed members in one pass.

A member whose CRC-32 is known beforehand carries it in its header. A large one carries
it behind its data, in a data descriptor (general purpose bit 3), so that its bytes are
touched once. Readers that use the central directory, as `zipfile`, Keras and `unzip` do,
never look at the difference. Layout: PKWARE APPNOTE.TXT 6.3.10, sections 4.3 and 4.5.3.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

from mlflow_ckpt.stream import Stream, crc32

_LOCAL, _CENTRAL, _END = 0x04034B50, 0x02014B50, 0x06054B50
_DESCRIPTOR, _END64, _LOCATOR64 = 0x08074B50, 0x06064B50, 0x07064B50
_BIT_DESCRIPTOR, _BIT_UTF8 = 1 << 3, 1 << 11
_VERSION, _VERSION64 = 20, 45
# A field with this value says that the true one stands in the zip64 record.
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_UNIX, _FILE_MODE = 3, 0o100600


@dataclass
class _Member:
    name: bytes
    size: int
    crc: int
    offset: int
    flags: int

    @property
    def large(self) -> bool:
        return self.size >= _MAX32


class Archive:
    """A zip archive on a stream that is empty yet. Members come one after another.

    Args:
        stream: Takes the bytes.
        stamp: Modification time of every member, as `time.localtime` gives it.
    """

    def __init__(self, stream: Stream, stamp: time.struct_time) -> None:
        self._stream = stream
        # A DOS date begins in 1980 and counts seconds in twos.
        year = max(stamp.tm_year, 1980) - 1980
        self._date = year << 9 | stamp.tm_mon << 5 | stamp.tm_mday
        self._time = stamp.tm_hour << 11 | stamp.tm_min << 5 | stamp.tm_sec // 2
        self._members: list[_Member] = []

    def add(self, name: str, data: bytes) -> None:
        """Add a small member."""
        self._header(_member(name, len(data), crc32(data), self._stream.position, 0))
        self._stream.write(data)

    def begin(self, name: str, size: int) -> None:
        """Begin a large member; write exactly `size` bytes to the stream, then call `end`."""
        self._header(_member(name, size, 0, self._stream.position, _BIT_DESCRIPTOR))
        self._began_at = self._stream.position
        self._stream.begin_member()

    def end(self) -> None:
        """Finish what `begin` began."""
        member = self._members[-1]
        assert self._stream.position - self._began_at == member.size, "the size was announced"
        member.crc = self._stream.crc
        sizes = "<QQ" if member.large else "<LL"
        self._stream.write(
            struct.pack("<LL", _DESCRIPTOR, member.crc)
            + struct.pack(sizes, member.size, member.size)
        )

    def close(self) -> None:
        """Write the central directory."""
        start = self._stream.position
        for member in self._members:
            self._stream.write(self._entry(member))
        size = self._stream.position - start
        count = len(self._members)
        if count >= _MAX16 or size >= _MAX32 or start >= _MAX32:
            self._end64(count, size, start)
        self._stream.write(
            struct.pack(
                "<LHHHHLLH",
                _END, 0, 0, min(count, _MAX16), min(count, _MAX16),
                min(size, _MAX32), min(start, _MAX32), 0,
            )
        )  # fmt: skip

    def _header(self, member: _Member) -> None:
        self._members.append(member)
        behind = bool(member.flags & _BIT_DESCRIPTOR)
        size = 0 if behind else member.size
        extra = b""
        if member.large:
            # Its presence says that the descriptor's sizes have eight bytes.
            extra = struct.pack("<HHQQ", 1, 16, size, size)
            size = _MAX32
        self._stream.write(
            struct.pack(
                "<LHHHHHLLLHH",
                _LOCAL, _VERSION64 if member.large else _VERSION, member.flags, 0,
                self._time, self._date, member.crc, size, size, len(member.name), len(extra),
            )
            + member.name
            + extra
        )  # fmt: skip

    def _entry(self, member: _Member) -> bytes:
        wide = [n for n in (member.size, member.size, member.offset) if n >= _MAX32]
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        version = _VERSION64 if wide else _VERSION
        return (
            struct.pack(
                "<LHHHHHHLLLHHHHHLL",
                _CENTRAL, _UNIX << 8 | version, version, member.flags, 0,
                self._time, self._date, member.crc,
                min(member.size, _MAX32), min(member.size, _MAX32),
                len(member.name), len(extra), 0, 0, 0, _FILE_MODE << 16,
                min(member.offset, _MAX32),
            )
            + member.name
            + extra
        )  # fmt: skip

    def _end64(self, count: int, size: int, start: int) -> None:
        here = self._stream.position
        self._stream.write(
            struct.pack(
                "<LQHHLLQQQQ",
                _END64, 44, _VERSION64, _VERSION64, 0, 0, count, count, size, start,
            )
            + struct.pack("<LLQL", _LOCATOR64, 0, here, 1)
        )  # fmt: skip


def _member(name: str, size: int, crc: int, offset: int, flags: int) -> _Member:
    encoded = name.encode()
    return _Member(encoded, size, crc, offset, flags | (0 if name.isascii() else _BIT_UTF8))
