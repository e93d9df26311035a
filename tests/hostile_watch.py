"""Note what a process does that reading a checkpoint has no need of.

Two witnesses: Python's own audit events, for code that runs, for modules that are loaded and for
files that Python opens, makes, changes or removes; and inotify on the folder of a canary, for
what libraries in C do with a path that they were handed. `tests/test_hostile.py` proves both by
doing each such thing in earnest.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Code that was not there before: `Lambda` layers, modules, what `eval` and `pickle` lead to.
_RUNS = frozenset({
    "marshal.load", "marshal.loads", "code.__new__", "function.__new__", "exec", "compile",
    "import", "pickle.find_class", "ctypes.dlopen", "cpython.run_command", "cpython.run_file",
})  # fmt: skip
# Other processes and machines.
_REACHES = frozenset({
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.forkpty", "pty.spawn", "os.kill", "signal.pthread_kill", "socket.connect", "socket.bind",
    "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname",
    "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect",
    "webbrowser.open", "os.putenv", "os.unsetenv", "os.chdir", "sqlite3.connect",
    "sqlite3.load_extension",
})  # fmt: skip
# Which arguments are paths, and which the descriptors of the folders that they are below.
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, None),),
    "os.removexattr": ((0, None),),
    "shutil.rmtree": ((0, 1),),
    "shutil.move": ((0, None), (1, None)),
    "shutil.copyfile": ((1, None),),
    "shutil.copytree": ((1, None),),
    "shutil.unpack_archive": ((1, None),),
    "shutil.make_archive": ((0, None),),
    "tempfile.mkstemp": ((0, None),),
    "tempfile.mkdtemp": ((0, None),),
}
# What is loaded at its first use, whatever a file says: TensorFlow's `skip`, and a codec.
LAZY = frozenset({"tensorflow.python.data.ops.skip_op", "encodings.ascii"})


class Watch:
    """Notes what the process does while an action runs.

    Args:
        folder: Where it may write.
        readable: Below these it may read as well, as below Python's own folders.
        canary: A folder that nobody may look into, with no other use.

    Attributes:
        seen: What was noted.
        sees_c: Whether the canary is watched, so that calls from C are seen.
    """

    def __init__(self, folder: Path, *, readable: Iterable[Path] = (), canary: Path) -> None:
        self._writable = _below(folder)
        libraries = (sys.prefix, sys.base_prefix, "/proc/self", "/usr/share/zoneinfo")
        self._readable = tuple(map(_below, (folder, *readable, *libraries)))
        self._canary = _below(canary)
        self._inotify = _Inotify(canary)
        self.sees_c = self._inotify.works
        self._inside = False
        self._mine = threading.local()
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def during(self, action: Callable[[], Any]) -> Any:
        self.seen.clear()
        self._inotify.drain()
        self._inside = True
        try:
            return action()
        finally:
            self._inside = False
            self.seen.extend(f"canary: {what}" for what in self._inotify.drain())

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        # What happens in here is none of the action's.
        if not self._inside or getattr(self._mine, "busy", False):
            return
        self._mine.busy = True
        try:
            self._note(event, arguments)
        finally:
            self._mine.busy = False

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _RUNS:
            module = _being_imported()
            if module is None and event == "import":
                module = str(arguments[0])
            if module not in LAZY:
                self._add(f"import {module}" if module else f"{event} {arguments!r:.60}")
        elif event in _REACHES:
            self._add(f"{event} {arguments!r:.80}")
        elif event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & _WRITES)
            if not self._may(path, -1, writes=writes):
                self._add(f"open {path!r}{' to write' if writes else ''}")
        elif event in _CHANGES:
            for place, folder in _CHANGES[event]:
                at = -1 if folder is None or folder >= len(arguments) else arguments[folder]
                if not self._may(arguments[place], at, writes=True):
                    self._add(f"{event} {arguments[place]!r}")

    def _add(self, what: str) -> None:
        if what not in self.seen:
            self.seen.append(what)

    def _may(self, path: Any, folder: Any, *, writes: bool) -> bool:
        if isinstance(path, int):
            if not writes:
                return True  # it has been opened before
            path = f"/proc/self/fd/{path}"
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not name.startswith("/"):
            name = f"/proc/self/fd/{folder}/{name}"
        elif not writes and "/" not in name:
            return True  # `open_below` opens name after name; the event does not say below what
        # The last name may be a link that is to be changed; all before it are followed.
        head, tail = os.path.split(name)
        place = os.path.join(os.path.realpath(head or "."), tail)  # noqa: PTH118
        allowed = self._writable if writes else self._readable
        return place == "/dev/null" or all(
            f"{each}/".startswith(allowed) and not f"{each}/".startswith(self._canary)
            for each in {place, os.path.realpath(place)}
        )


def _below(folder: Path | str) -> str:
    """A prefix of all that is below, and of nothing beside it."""
    return f"{os.path.realpath(folder)}/"


def _being_imported() -> str | None:
    """The module whose import the running code is part of, if it is of any."""
    found, frame = None, sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" and code.co_name == "_find_and_load":
            found = frame.f_locals.get("name")
        frame = frame.f_back  # type: ignore[assignment]
    return found


class _Inotify:
    """What happens in one folder, whoever does it."""

    _KINDS = {  # noqa: RUF012
        0x1: "read", 0x2: "written", 0x4: "attributes", 0x20: "opened", 0x40: "moved away",
        0x80: "moved there", 0x100: "made", 0x200: "removed",
    }  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self._file = -1
        if sys.platform == "linux":
            libc = ctypes.CDLL(None, use_errno=True)
            self._file = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            if self._file >= 0:
                added = libc.inotify_add_watch(self._file, os.fsencode(folder), sum(self._KINDS))
                self._file = self._file if added >= 0 else -1
        self.works = self._file >= 0

    def drain(self) -> list[str]:
        """What has happened since the last call."""
        found: list[str] = []
        while self._file >= 0:
            try:
                data = os.read(self._file, 1 << 16)
            except BlockingIOError:
                break
            while data:
                _, mask, _, length = struct.unpack_from("iIII", data)
                name = data[16 : 16 + length].rstrip(b"\0").decode(errors="replace")
                kinds = [word for bit, word in self._KINDS.items() if mask & bit]
                what = f"{name or 'the folder'} {', '.join(kinds) or 'too many events'}"
                if what not in found:
                    found.append(what)
                data = data[16 + length :]
        return found
