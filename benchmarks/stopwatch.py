"""Time hooks and steps from outside, alike for everybody.

`Stopwatch` stands first in the list of callbacks. When training begins it wraps every hook
of the callbacks it was asked to watch, also of those that Keras's own list got on the way
(this package appends one), and it takes the time of each training step. All times are
seconds of `time.perf_counter`; epochs count from 0, as Keras passes them to hooks.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import keras

from mlflow_ckpt import keras_internals

_EPOCH = ("on_epoch_begin", "on_epoch_end")
_BATCH = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")
_TEST = ("on_test_begin", "on_test_end", "on_test_batch_begin", "on_test_batch_end")
HOOKS = ("on_train_begin", "on_train_end", *_EPOCH, *_BATCH, *_TEST)
_SETTLE_S = 120.0


@dataclass(frozen=True)
class Timed:
    """One call of one hook: the epoch it belongs to (-1: before the first), its wall clock."""

    epoch: int
    hook: str
    seconds: float
    wall: float


@dataclass(frozen=True)
class Step:
    """One training step, without the hooks around it."""

    epoch: int
    batch: int
    seconds: float


class Stopwatch(keras.callbacks.Callback):
    """Watch some callbacks of the list.

    Args:
        watched: Says of each callback of the list whether it is to be timed.

    Attributes:
        calls: Every timed hook, in order.
        steps: Every training step, in order.
    """

    def __init__(self, watched: Callable[[keras.callbacks.Callback], bool]) -> None:
        super().__init__()
        self.calls: list[Timed] = []
        self.steps: list[Step] = []
        self._watched = watched
        self._epoch = -1
        self._depth = 0
        self._inside = 0.0
        self._began = 0.0

    def on_train_begin(self, logs: Any = None) -> None:
        callbacks = keras_internals.calling_callback_list()
        assert callbacks is not None, "a stopwatch works inside fit"
        for callback in callbacks.callbacks:
            if callback is not self and self._watched(callback):
                self._wrap(callback)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._inside = 0.0
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self._began - self._inside
        self.steps.append(Step(self._epoch, batch, seconds))

    def hook_seconds(self, epoch: int) -> float:
        """Time in all watched hooks from the begin of `epoch` to the next one's first batch."""
        return sum(call.seconds for call in self.calls if self._owner(call) == epoch)

    def excess(self, epoch: int, usual: float) -> float:
        """What the first step after `epoch` took beyond `usual` seconds; never negative."""
        after = next(step for step in self.steps if step.epoch == epoch + 1)
        return max(0.0, after.seconds - usual)

    def usual_step(self, epochs: Collection[int], skip: int = 1) -> float:
        """Median step of these epochs, without the first `skip` of each."""
        return statistics.median(
            step.seconds for step in self.steps if step.epoch in epochs and step.batch >= skip
        )

    @staticmethod
    def _owner(call: Timed) -> int | None:
        """The checkpoint a hook is charged to; beginning and ending a fit are their own."""
        if call.hook in ("on_train_begin", "on_train_end"):
            return None
        return call.epoch - 1 if call.hook == "on_epoch_begin" else call.epoch

    def _wrap(self, callback: keras.callbacks.Callback) -> None:
        for hook in HOOKS:
            method = getattr(callback, hook)
            # Keras marks the hooks that a callback does not define, and does not call some.
            if not getattr(method, "_is_default", False):
                setattr(callback, hook, self._timed(hook, method))

    def _timed(self, hook: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            wall, began = time.time(), time.perf_counter()
            self._depth += 1
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:  # a hook that calls another one is counted once
                    seconds = time.perf_counter() - began
                    self._inside += seconds
                    self.calls.append(Timed(self._epoch, hook, seconds, wall))

        return call


class Settle(keras.callbacks.Callback):
    """Before some epochs, wait until no background writer of an earlier one is at work.

    A checkpoint that still waits for the one before says nothing about its own time. The
    wait lies between two epochs, outside every measured hook and step.
    """

    def __init__(self, epochs: Collection[int]) -> None:
        super().__init__()
        self._epochs = epochs
        self._known: set[threading.Thread] = set()

    def on_train_begin(self, logs: Any = None) -> None:
        self._known = _writers()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        deadline = time.monotonic() + _SETTLE_S
        while epoch in self._epochs and time.monotonic() < deadline:
            if _writers() <= self._known:
                return
            time.sleep(0.01)


def _writers() -> set[threading.Thread]:
    """Threads that may be writing; a lease beats for as long as its fit runs."""
    return {t for t in threading.enumerate() if t.name != "mlflow-ckpt-lease"}


def only_at(callback: keras.callbacks.Callback, epochs: Collection[int]) -> None:
    """Let a peer's `on_epoch_end` see these epochs only: not every peer can count epochs."""
    method = callback.on_epoch_end

    def gated(epoch: int, logs: Any = None) -> None:
        if epoch in epochs:
            method(epoch, logs)

    callback.on_epoch_end = gated
