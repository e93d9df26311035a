"""Say which process something belongs to, and whether that process is certainly dead.

A process ID alone says neither: it is given again to another process, and two containers
or two machines use the same ones. So it is kept with what it is unique within.

    boot + namespace  the machine since it was started, and the container on it
    pid + started     the process in there, told from a later one with the same ID

Clocks may be set back, so the start is counted in ticks since the boot (field 22 of
https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html). What cannot be found out is
"" or 0, and nothing is concluded from it.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

_HOST_CHARACTERS = 64
_MAX_TEXT = 255
_MAX_PID = 2**31 - 1
_MAX_TICKS = 2**63 - 1


@dataclass(frozen=True)
class Owner:
    """One process of one machine.

    Attributes:
        boot: ID of the machine's boot; "" where unknown (only Linux has one).
        namespace: The process IDs' namespace, which is the container's; "" where unknown.
        host: Name of the host, for people; the only hint where `boot` is unknown.
        pid: Process ID within the namespace.
        started: When the process began, in clock ticks since the boot; 0 where unknown.
    """

    boot: str
    namespace: str
    host: str
    pid: int
    started: int

    @classmethod
    def me(cls) -> Owner:
        """Describe the calling process. Ask again after a fork."""
        seen = _look_up(os.getpid())
        return cls(
            boot=_read(Path("/proc/sys/kernel/random/boot_id")).strip(),
            namespace=_namespace(),
            host=_host(),
            pid=os.getpid(),
            started=seen.started if seen else 0,
        )

    @classmethod
    def from_dict(cls, found: object) -> Owner:
        """Read what `to_dict` gave; fields that this version does not know are ignored.

        Raises:
            ValueError: If `found` cannot be an owner.
        """
        if not isinstance(found, Mapping):
            raise ValueError(f"Expected an owner as a mapping. Received: {found!r}")
        return cls(
            boot=_text(found, "boot"),
            namespace=_text(found, "namespace"),
            host=_text(found, "host"),
            pid=_number(found, "pid", 1, _MAX_PID),
            started=_number(found, "started", 0, _MAX_TICKS),
        )

    def to_dict(self) -> dict[str, str | int]:
        """Plain values for JSON, below 300 characters."""
        return asdict(self)

    def __str__(self) -> str:
        return f"host {self.host or 'unknown'}, pid {self.pid}"

    def is_me(self) -> bool:
        """Whether this is the calling process, beyond doubt."""
        me = Owner.me()
        return self == me and self._lives_with(me)

    def is_dead(self) -> bool:
        """Whether this process has ended, beyond doubt: one elsewhere never has."""
        # On Windows, `os.kill(pid, 0)` is no question but a Ctrl-C.
        if os.name == "nt" or not self._lives_with(Owner.me()):
            return False
        try:
            with suppress(PermissionError):  # It is there, and another user's.
                os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        seen = _look_up(self.pid)
        if seen is None:
            return False
        return seen.ended or (self.started > 0 and self.started != seen.started)

    def _lives_with(self, me: Owner) -> bool:
        """Whether its process ID means here what it means there."""
        if self.boot or me.boot or sys.platform == "linux":
            here = (me.boot, me.namespace)
            return all(here) and here == (self.boot, self.namespace)
        return bool(me.host) and me.host == self.host


class _Seen(NamedTuple):
    """What `/proc` says of a process."""

    ended: bool
    started: int


def _look_up(pid: int) -> _Seen | None:
    """Look a process up; `None` where it cannot be seen, which does not mean that it is gone."""
    try:
        # A container may show its host's /proc, where the ID would be another process's.
        if str(Path("/proc/self").readlink()) != str(os.getpid()):
            return None
    except OSError:
        return None
    # The command's name stands in parentheses and may hold some itself, and spaces.
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    state, threads, started = fields[0], int(fields[17]), int(fields[19])
    # With further threads, only the first one has ended: the process works on.
    return _Seen(ended=state in ("Z", "X") and threads <= 1, started=started)


def _read(path: Path) -> str:
    # A process's name may be any bytes.
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _host() -> str:
    try:
        name = socket.gethostname()
    except OSError:
        return ""
    return "".join(c for c in name if c.isascii() and c.isprintable())[:_HOST_CHARACTERS]


def _text(found: Mapping[object, object], key: str) -> str:
    # Printed on a terminal later, so nothing that a terminal would obey.
    value = found.get(key, "")
    if not isinstance(value, str) or len(value) > _MAX_TEXT or not value.isprintable():
        raise ValueError(f"Expected up to {_MAX_TEXT} printable characters. {_got(key, value)}")
    return value


def _number(found: Mapping[object, object], key: str, least: int, most: int) -> int:
    value = found.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"Expected a number from {least} to {most}. {_got(key, value)}")
    return value


def _got(key: str, value: object) -> str:
    return f"Received: {key}={value!r}"[:_MAX_TEXT]
