"""Stop a `fit` that a signal asks to stop: save, deliver within the grace, obey the signal.

    signal -> the batch ends -> every series: checkpoint on the disk -> run KILLED (SIGTERM)
           -> deliver until the grace is over -> what the signal does without us

All series of a fit stop together, at one place: the first one looks for a signal, the last
one stops.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import NoReturn, Protocol

from mlflow_ckpt import keras_internals, parcel
from mlflow_ckpt.drain import describe_left, drain
from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.say import say
from mlflow_ckpt.signals import Signals
from mlflow_ckpt.store import Store
from mlflow_ckpt.writer import Writer


class Stoppable(Protocol):
    """What a session shows to who stops it."""

    @property
    def writer(self) -> Writer: ...
    @property
    def where(self) -> str: ...
    @property
    def run_id(self) -> str: ...
    @property
    def grace_seconds(self) -> float: ...
    def save_now(self) -> None: ...
    def leave(self, *, deliver: bool = True) -> None: ...


class Stopping:
    """Listens for the signals of one fit; all of its series share it.

    Attributes:
        due: Whether the fit stops at this boundary. Only `look` changes it.
    """

    def __init__(self) -> None:
        self.due = False
        self._signals: Signals | None = None

    def listen(self) -> None:
        """Begin to listen, if a `fit` is running and this is its thread for signals."""
        fit = keras_internals.fit_id()
        if self._signals is not None or fit is None:
            return
        thread = threading.get_ident()

        def is_running(frame: FrameType | None) -> bool:
            return keras_internals.is_on_stack(fit, frame or thread)

        self._signals = Signals(is_running)
        self._signals.install()

    @property
    def asked(self) -> bool:
        """Whether a signal was received."""
        return self._signals is not None and self._signals.received is not None

    def look(self) -> None:
        """Decide, for all series, whether the fit stops at this boundary."""
        self.due = self.asked

    def hush(self) -> None:
        """Give the signals back. Safe to call twice."""
        if self._signals is not None:
            self._signals.uninstall()

    def obey(self) -> None:
        """Do what a signal asks that came when nothing was left to save."""
        if self._signals is not None and self._signals.received is not None:
            self._signals.finish()

    def stop(self, sessions: Sequence[Stoppable]) -> NoReturn:
        """Save every series, deliver what the grace allows, and obey the signal.

        Raises:
            SystemExit: With code 143, after SIGTERM.
            KeyboardInterrupt: After Ctrl-C.
        """
        signals = self._signals
        assert signals is not None, "nobody asked"
        assert signals.received_at is not None, "nobody asked"
        ended = signals.received == signal.SIGTERM
        grace = min(session.grace_seconds for session in sessions)
        for session in sessions:
            _attempt(session.save_now)
            if ended:
                session.writer.put(parcel.STATUS, {"status": "KILLED"})
        for session in sessions:
            session.writer.join_written()
        for session in sessions:
            left = signals.received_at + grace - time.monotonic()
            try:
                delivered = drain(session.writer, max(0.0, left))[1]
            except BaseException:
                _abandon(sessions, ended=ended)
                raise
            session.leave(deliver=delivered)
            if not delivered:
                say(f"{session.where}: {describe_left(session.writer)}")
            _attempt(partial(session.writer.raise_failures, last=True))
            if ended:
                Store.forget_active_run(session.run_id, ask=delivered)
        signals.finish()


def _abandon(sessions: Sequence[Stoppable], *, ended: bool) -> None:
    """A second signal has come: wait for the server no longer, in this process's end either.

    Everything is on the disk. Where that says that the run was killed, MLflow need not ask
    the server to say so, which may never answer.
    """
    for session in sessions:
        session.leave(deliver=False)
        if ended:
            Store.forget_active_run(session.run_id, ask=False)


def _attempt(action: Callable[[], None]) -> None:
    """Do what may fail, and say so: the signal is obeyed in any case."""
    try:
        action()
    except CheckpointError as error:
        say(str(error))
