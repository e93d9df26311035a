"""Run jobs one after another, on a thread that exists only while there are jobs.

The thread is no daemon: the interpreter waits for it at exit, so that what was queued
is finished even if the main thread ends with an exception. It ends by itself, so that
nobody has to close it: Keras calls no hook when a `fit` raises.

    put(job) -> thread -> job() -> ... -> no job left -> thread ends

This module knows no checkpoints. Times are seconds.
"""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

Job = Callable[[], None]
Key = tuple[str, str]


class Busy(Protocol):
    """Whoever writes to a run behind the training."""

    @property
    def stuck(self) -> bool: ...
    def settle(self) -> None: ...


_BUSY: dict[Key, set[Busy]] = {}
_BUSY_LOCK = threading.Lock()


class Worker:
    """A queue of jobs and the thread that does them.

    Args:
        key: Names what the jobs write to, for `settle`.
    """

    def __init__(self, key: Key) -> None:
        self._key = key
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Queue `job`, which must see to its own exceptions.

        Where no thread can be started (the interpreter is about to end), the caller does it.
        """
        with self._changed:
            self._jobs.append(job)
            if self._thread is not None:
                return
            # MLflow keeps its workspace in a context variable, which no thread inherits.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=context.run, args=(self._loop,), name="mlflow-ckpt", daemon=False
            )
            enter(self._key, self)
            try:
                self._thread.start()
                return
            except RuntimeError:
                self._thread = threading.current_thread()
        self._loop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until every job is done and the thread has ended; whether that is so.

        A job that asks finds that it is not.
        """
        with self._changed:
            thread = self._thread
            if thread is threading.current_thread():
                return False
            if not self._changed.wait_for(lambda: self._thread is None, timeout):
                return False
        if thread is not None and thread.is_alive():
            thread.join()
        return True

    def _loop(self) -> None:
        try:
            while (job := self._next()) is not None:
                job()
        finally:
            # Reached with a thread still noted only if a job broke its promise.
            with self._changed:
                if self._thread is threading.current_thread():
                    self._leave()

    def _next(self) -> Job | None:
        with self._changed:
            if self._jobs:
                return self._jobs.popleft()
            self._leave()
            return None

    @property
    def stuck(self) -> bool:
        """Whether it cannot get on: never."""
        return False

    @property
    def busy(self) -> bool:
        """Whether a job waits for its turn."""
        with self._changed:
            return bool(self._jobs)

    def settle(self) -> None:
        """Wait until every job is done."""
        self.join()

    def _leave(self) -> None:
        self._thread = None
        leave(self._key, self)
        self._changed.notify_all()


def enter(key: Key, busy: Busy) -> None:
    """Note that `busy` has begun to write to `key`."""
    with _BUSY_LOCK:
        _BUSY.setdefault(key, set()).add(busy)


def leave(key: Key, busy: Busy) -> None:
    """Note that `busy` has written what it had."""
    with _BUSY_LOCK:
        there = _BUSY.get(key, set())
        there.discard(busy)
        if not there:
            _BUSY.pop(key, None)


def writing_to(uri: str) -> list[str]:
    """IDs of the runs of one tracking server that something is still written to."""
    with _BUSY_LOCK:
        return [run_id for where, run_id in _BUSY if where == uri]


def settle(key: Key) -> None:
    """Wait for all who write to `key`: who reads after that finds what was handed over.

    What cannot get on, because the server is away, is not waited for.
    """
    while True:
        with _BUSY_LOCK:
            there = list(_BUSY.get(key, ()))
        for busy in there:
            busy.settle()
        # A worker hands over to a deliverer, which may have been through before.
        with _BUSY_LOCK:
            left = list(_BUSY.get(key, ()))
        if all(busy.stuck for busy in left):
            return
