"""Let one `fit` hear SIGTERM and Ctrl-C, and stop at the end of its batch instead of within it.

A signal may arrive anywhere: inside a training step, inside another callback, inside a
save. So the first one is only noted; the session looks for it at the next batch boundary,
saves and calls `finish`, which does what the signal would have done without us. Whoever
sends a second one does not want to wait: that one acts at once.

    install() -> received? -> save -> finish()        or, after a fit that nobody stopped,
              -> uninstall()

Seconds are those of `time.monotonic`.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, TypeAlias

_Handler: TypeAlias = Callable[[int, FrameType | None], object] | int | signal.Handlers | None

# What ends the process or the cell; Windows knows both, too.
_HEARD = (signal.SIGTERM, signal.SIGINT)

_SAYS = {
    signal.SIGTERM: "SIGTERM: saves a checkpoint at the end of this batch, then stops.",
    signal.SIGINT: "Ctrl-C: saves a checkpoint; press Ctrl-C again to stop at once.",
}


class Signals:
    """The handlers of SIGTERM and SIGINT during one `fit`; used once.

    SIGINT and then SIGTERM counts as SIGTERM: what ends the process outweighs what ends a
    notebook's cell. Any other second signal acts at once.

    Args:
        is_running: Whether the fit still is, given the frame that a signal interrupted. It
            may have ended without a word, and its handlers would then swallow the signal.

    Attributes:
        received: The signal that waits to be obeyed.
        received_at: When it came, in seconds.
    """

    def __init__(self, is_running: Callable[[FrameType | None], bool]) -> None:
        self.received: signal.Signals | None = None
        self.received_at: float | None = None
        self._is_running = is_running
        self._earlier: dict[signal.Signals, _Handler] = {}
        self._forwards = False
        self._process = os.getpid()

    def install(self) -> bool:
        """Begin to listen, where Python allows it: in the main thread of the main interpreter.

        A signal that is ignored stays so, and one whose handler is not Python's is left alone.

        Returns:
            Whether it listens to any signal.
        """
        assert not self._earlier, "a fit has Signals of its own"
        for signum in _HEARD:
            earlier = signal.getsignal(signum)
            if earlier in (None, signal.SIG_IGN):
                continue
            self._earlier[signum] = earlier  # Before: ours may be called at once.
            try:
                signal.signal(signum, self._handle)
            except ValueError:  # Another thread, or a subinterpreter.
                del self._earlier[signum]
        return bool(self._earlier)

    def uninstall(self) -> None:
        """Give the signals back; safe to call twice.

        Where somebody put a handler of their own on top of ours, it stays, and ours hands over
        what that one still sends. So it does in another thread, which cannot set handlers.
        A signal that was received and not obeyed is for the caller to obey: see `finish`.
        """
        self._forwards = True
        for signum, earlier in self._earlier.items():
            if signal.getsignal(signum) == self._handle:
                with contextlib.suppress(ValueError):  # Another thread: ours forwards.
                    signal.signal(signum, earlier)

    def finish(self) -> NoReturn:
        """Do what the received signal would have done. Call it once the state is safe.

        Raises:
            SystemExit: With code 143, after SIGTERM.
            KeyboardInterrupt: After SIGINT.

        An earlier handler may raise something else, or end the process.
        """
        assert self.received is not None, "no signal was received"
        self.uninstall()
        self._obey(self.received, inspect.currentframe())
        _stop(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        signum = signal.Signals(number)
        # A forked child, such as a worker that loads data, has our handlers and no fit.
        if self._forwards or os.getpid() != self._process or not self._is_running(frame):
            self.uninstall()
            self._be_earlier(signum, frame)
        elif self.received is None or (self.received, signum) == (signal.SIGINT, signal.SIGTERM):
            self.received, self.received_at = signum, time.monotonic()
            _tell(_SAYS[signum])
        else:
            self.uninstall()
            self._obey(signum, frame)

    def _obey(self, signum: signal.Signals, frame: FrameType | None) -> None:
        """Call the earlier handler; where there was none, stop by an exception.

        SIG_DFL would end the process within the call, and no `finally` of the user's would run.
        """
        earlier = self._earlier.get(signum)
        if callable(earlier):
            earlier(signum, frame)
        else:
            _stop(signum)

    def _be_earlier(self, signum: signal.Signals, frame: FrameType | None) -> None:
        """Do exactly what the earlier handler would have done."""
        earlier = self._earlier[signum]
        if callable(earlier):
            earlier(signum, frame)
        else:
            signal.signal(signum, earlier)
            signal.raise_signal(signum)


def _stop(signum: signal.Signals) -> NoReturn:
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    # What a shell reports of a process that a signal ended.
    raise SystemExit(128 + signum)


def _tell(text: str) -> None:
    """Write a line past Python's buffers, which the interrupted code may be writing to."""
    with contextlib.suppress(OSError):  # Closed: nobody reads it.
        os.write(2, f"\nmlflow_ckpt: {text}\n".encode())
