"""Children that may be killed, and must not fail in any other way.

They are forked by a parent with one thread and without TensorFlow's; what one raises is
written to `<folder>/error-<pid>`.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_TICK_S = 0.002


def fork(folder: Path, action: Callable[[], None]) -> int:
    """Do something in a child; returns its process ID."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        action()
        code = 0
    except BaseException:  # noqa: BLE001 (the parent raises it)
        (folder / f"error-{os.getpid()}").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def ended(folder: Path, pid: int, limit_s: float) -> bool:
    """Wait for a child; whether it was killed.

    Raises:
        AssertionError: If it failed, or does not end.
    """
    until = time.monotonic() + limit_s
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            break
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"a child of {folder} did not end in {limit_s} s")
        time.sleep(_TICK_S)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
        return True
    assert not os.WEXITSTATUS(status), (folder / f"error-{pid}").read_text()
    return False
