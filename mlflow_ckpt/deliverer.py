"""Deliver a journal behind the training, for as long as there is something in it.

    wake() -> thread -> first entry -> delivery -> ... -> journal empty -> thread ends

A server that is away is asked again, at growing intervals; what it refuses is put aside.
The thread is a daemon: what it has not delivered is on the disk, and a request to a server
that never answers must not hold the interpreter. Before the interpreter ends it is waited
for while it gets on. Times are seconds.
"""

from __future__ import annotations

import atexit
import contextvars
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from mlflow_ckpt import worker
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import ResumeError, ServerAway, UnsupportedStore
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.say import say

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
_ELSEWHERE_S = 0.2


class Deliver(Protocol):
    """Delivers one entry: see `delivery.py`."""

    def __call__(self, entry: Entry) -> Checkpoint | None: ...


class Deliverer:
    """The thread that delivers one journal.

    Args:
        journal: Where from.
        deliver: Delivers one entry and takes it away.
        key: Names what it writes to, for `worker.settle`.
        outcome: Told of each entry what came of it: its name, and the checkpoint or the
            error; with an empty name, why nothing more is delivered.
        emptied: Told that nothing is left.
        exit_wait: Seconds that the end of the interpreter waits for it, if it gets on.

    Attributes:
        fault: Why it cannot get on now; `None` while it gets on, or has nothing to do.
        busy_with: The entry that is being delivered.
    """

    def __init__(
        self,
        journal: Journal,
        deliver: Deliver,
        *,
        key: worker.Key,
        outcome: Callable[[str, Checkpoint | BaseException | None], None],
        emptied: Callable[[], None],
        exit_wait: float,
    ) -> None:
        self._journal = journal
        self._deliver = deliver
        self._key = key
        self._outcome = outcome
        self._emptied = emptied
        self._exit_wait = exit_wait
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._more = False
        self._stopped = False
        self._hurry = False
        self._at = ""
        self._pauses = 0  # since it last got on
        self.fault: BaseException | None = None
        self.busy_with: Entry | None = None
        # That of an earlier fit, whose claim is no more, may still be waiting for the server.
        earlier = _OF_JOURNAL.get(journal.path)
        if earlier is not None:
            earlier.stop()
        _OF_JOURNAL[journal.path] = self

    def wake(self, *, hurry: bool = False) -> None:
        """Say that there may be something in the journal.

        Args:
            hurry: Whether to ask a server again at once that was away.
        """
        with self._changed:
            self._more, self._stopped = True, False
            if hurry:
                self.fault, self._hurry = None, True
                self._changed.notify_all()
            if self._thread is not None:
                return
            # MLflow keeps its workspace in a context variable, which no thread inherits.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._loop,), name="mlflow-ckpt-deliver", daemon=True
            )
            self.fault = None
            worker.enter(self._key, self)
            _ALIVE.add(self)
            try:
                self._thread.start()
                return
            except RuntimeError:  # The interpreter is about to end: the caller does it.
                self._thread, self._stopped = threading.current_thread(), True
        self._loop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to deliver; whether that is so."""
        with self._changed:
            if self._thread is threading.current_thread():
                return False
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    @property
    def stuck(self) -> bool:
        """Whether it cannot get on now."""
        return self.fault is not None

    def settle(self) -> None:
        """Wait until nothing is left to deliver, or it cannot get on."""
        with self._changed:
            if self._thread is not threading.current_thread():
                self._changed.wait_for(lambda: self._thread is None or self.fault is not None)

    def stop(self) -> None:
        """Make no further request. One that is under way is not waited for."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    # --- on its thread --------------------------------------------------------

    def _loop(self) -> None:
        lock = self._journal.lock()
        try:
            while self._go_on():
                if not _acquire(lock):
                    self._halt(ServerAway("another process delivers it"), _ELSEWHERE_S)
                    continue
                try:
                    self._pass()
                except (ServerAway, UnsupportedStore) as error:
                    lock.release()
                    self._halt(error, _PAUSES[min(self._pauses, len(_PAUSES) - 1)])
                    self._pauses += 1
        except BaseException as error:  # noqa: BLE001 (kept, and raised by the writer)
            self.fault = error
            self._outcome(self._at, error)
        finally:
            lock.release(force=True)
            with self._changed:
                self._end()

    def _go_on(self) -> bool:
        """Whether there is something to do; if not, the thread has ended for everybody."""
        with self._changed:
            if self._more and not self._stopped:
                return True
            self._end()
            return False

    def _pass(self) -> None:
        """Deliver until the journal is empty.

        Raises:
            ServerAway: If the server does not answer.
            LeaseHeld, LeaseLost: If another process writes the series.
        """
        while not self._stopped:
            with self._changed:
                self._more = False
            for entry in self._journal.each():
                if self._stopped:
                    return
                self.busy_with, self._at = entry, entry.uid
                try:
                    self._say(entry)
                except BaseException:
                    with self._changed:
                        self._more = True
                    raise
                finally:
                    self.busy_with = None
                self.fault, self._pauses = None, 0  # It gets on.
            if self._journal.first() is not None:
                continue
            self._emptied()
            with self._changed:
                if not self._more:
                    return

    def _say(self, entry: Entry) -> None:
        """Deliver one entry; what is refused is put aside, and the next one has its turn."""
        try:
            result = self._deliver(entry)
        except (ServerAway, UnsupportedStore, ResumeError):
            raise
        except FileNotFoundError:
            if entry.path.exists() and not entry.dropped:
                raise
            return  # Dropped, or delivered elsewhere, under our hands.
        except Exception as error:  # noqa: BLE001 (kept, and raised by the writer)
            self._journal.refuse(entry, str(error))
            self._outcome(entry.uid, error)
        else:
            self._outcome(entry.uid, result)

    def _halt(self, error: Exception, pause: float) -> None:
        """Wait before the next attempt."""
        with self._changed:
            self.fault = error
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopped or self._hurry, pause)
            self._hurry = False

    def _end(self) -> None:
        if self._thread is None:
            return
        self._thread = None
        worker.leave(self._key, self)
        _ALIVE.discard(self)
        self._changed.notify_all()

    # --- the end of the interpreter -------------------------------------------

    def leave(self) -> None:
        """Let it finish before the interpreter ends, as long as it gets on."""
        if self._stopped:
            return  # Somebody has decided, and said so.
        began = time.monotonic()
        try:
            while not self.join(0.05):
                waited = time.monotonic() - began
                if self.fault is not None or waited > self._exit_wait:
                    break
        except KeyboardInterrupt:
            pass
        self.stop()
        left = len(self._journal.waiting())
        if left:
            say(
                f"{left} entries wait in the spool at {self._journal.path}. The next fit with this "
                "run ID delivers them, or: mlflow-ckpt sync"
            )


def _acquire(lock: FileLock) -> bool:
    if lock.is_locked:
        return True
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


_ALIVE: weakref.WeakSet[Deliverer] = weakref.WeakSet()
_OF_JOURNAL: weakref.WeakValueDictionary[Path, Deliverer] = weakref.WeakValueDictionary()


@atexit.register
def _leave_all() -> None:
    for deliverer in list(_ALIVE):
        deliverer.leave()
