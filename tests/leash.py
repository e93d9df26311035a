"""End a process with the one that started it, however that one ends.

A server outlives a pytest that is killed: nobody is left to stop it. So a shell waits at a
pipe, whose other end only this process holds, and sends the signal once that end is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

_WAIT_AND_KILL = """
read -r _
kill -s "$2" -- "-$1"
sleep 3
kill -s KILL -- "-$1"
test -z "$3" || rm -rf -- "$3"
"""
_POLL_S = 0.02


class Leash:
    """Holds a process that leads its own session.

    Args:
        process: It and everything that stays in its process group are meant.
        stop: The signal that ends it; SIGKILL follows.
        folder: What is deleted too, if nobody else does it.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        *,
        stop: signal.Signals = signal.SIGKILL,
        folder: str = "",
    ) -> None:
        self._process = process
        self._stop = stop
        name = stop.name.removeprefix("SIG")
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WAIT_AND_KILL, "leash", str(process.pid), name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end(self, seconds: float = 10.0) -> None:
        """Stop the process and wait until it is gone."""
        # First, while the process ID is certain to be that of the process.
        self._watcher.kill()
        self._watcher.communicate()
        for sign in (self._stop, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            if until(lambda: self._process.poll() is not None, seconds):
                return
        raise RuntimeError(f"Process {self._process.pid} does not end.")


def until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is true; whether it became so in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
