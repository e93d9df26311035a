"""Learn at once that the running `fit` ends by an exception, and whether it has ended at all.

`fit` has no `finally` and calls no hook when something raises. So what runs the user's code is
wrapped, on the objects of the one fit:

    CallbackList.on_train_begin, on_epoch_begin, on_epoch_end, on_train_end    called by `fit`
    CallbackList.on_test_begin, on_test_end           called by its own `evaluate`, else let be
    EpochIterator.catch_stop_iteration                of the input, and of the validation's

The last one spans all batches of an epoch, with their hooks and with the reading of data, and
knows which exceptions only end an epoch: no batch costs anything. What fails between these
passes unseen, such as making an iterator over unusable validation data, or a metric whose
state cannot be reset: `is_on_stack` tells that such a fit is over.

Leans on those methods being called through their objects, on the names `callbacks` and
`epoch_iterator` in `Trainer.fit`, `epoch_iterator` and `use_cached_eval_dataset` in
`Trainer.evaluate`. The fit of Keras's PyTorch trainer does not call `catch_stop_iteration`.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import keras

from mlflow_ckpt.keras_internals._training import _frames, running_fit

_WATCH = "mlflow_ckpt_watch"  # attribute of a watched CallbackList
_FIT_ID = "mlflow_ckpt_fit_id"  # attribute of a fit's EpochIterator

_FIT_HOOKS = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")
_TEST_HOOKS = ("on_test_begin", "on_test_end")

_ids = itertools.count(1)

Raised = Callable[[BaseException], object]
_Method = Callable[..., Any]


# --- whether it still runs ----------------------------------------------------


def fit_id() -> int | None:
    """A number for the `fit` that is running below us; `None` in a loop of the user's own.

    It hangs on the iterator over the input, which lives as long as the fit: unlike the address
    of a frame, it never comes to mean another one.
    """
    epoch_iterator = running_fit().get("epoch_iterator")
    if epoch_iterator is None:
        return None
    if not hasattr(epoch_iterator, _FIT_ID):
        setattr(epoch_iterator, _FIT_ID, next(_ids))
    found: int = getattr(epoch_iterator, _FIT_ID)
    return found


def is_on_stack(fit: int, where: int | FrameType | None) -> bool:
    """Whether the fit with this `fit_id` is still running.

    Args:
        fit: Its number.
        where: The thread it began in, as `threading.get_ident` says, or the innermost frame
            of that thread, as a signal handler is given it.
    """
    frame = sys._current_frames().get(where) if isinstance(where, int) else where
    while frame is not None:
        # Only of frames of this name: reading the local names of one makes a copy of them.
        if frame.f_code.co_name == "fit":
            epoch_iterator = frame.f_locals.get("epoch_iterator")
            if getattr(epoch_iterator, _FIT_ID, None) == fit:
                return True
        frame = frame.f_back
    return False


# --- how it ends --------------------------------------------------------------


def watch_unwinding(callbacks: keras.callbacks.CallbackList, raised: Raised) -> Callable[[], None]:
    """Call `raised` if the `fit` that `callbacks` belongs to ends by an exception.

    It is called once, on the training thread, with any exception, `KeyboardInterrupt` and
    `SystemExit` too, while that is on its way to the caller of `fit`; what it raises itself
    takes the exception's place. Everything is put back when the fit ends, and nothing of it is
    kept alive. Only a fit that ended unseen leaves its watch behind: then call the undo.

    Args:
        callbacks: The list of a fit. From within `set_model` the `on_train_begin` of all
            callbacks is watched, too. A list of the user's own is watched for one fit only:
            ask again at its `on_train_begin`. To ask twice is to ask once.
        raised: Told of the exception. Of several, the first to ask is the first to be told.

    Returns:
        Undo: from then on `raised` is not called. Safe to call twice, and in any thread.
    """
    watch = vars(callbacks).get(_WATCH)
    if watch is None:
        watch = _Watch(callbacks)
    if raised not in watch.listeners:
        watch.listeners.append(raised)
    return lambda: watch.forget(raised)


class _Watch:
    """The wraps around one `CallbackList` and the iterators of its fit.

    Attributes:
        listeners: Whom to tell.
    """

    def __init__(self, callbacks: keras.callbacks.CallbackList) -> None:
        self.listeners: list[Raised] = []
        self._callbacks = weakref.ref(callbacks)  # It holds us.
        self._iterators: weakref.WeakSet[Any] = weakref.WeakSet()
        self._take_off: list[Callable[[], None]] = []
        vars(callbacks)[_WATCH] = self
        for name in _FIT_HOOKS:
            self._wrap(callbacks, name, partial(self._around_fit_hook, name))
        for name in _TEST_HOOKS:
            self._wrap(callbacks, name, partial(self._around_test_hook, name))

    def forget(self, raised: Raised) -> None:
        """Stop telling `raised`; with the last of them everything is put back."""
        if raised in self.listeners:
            self.listeners.remove(raised)
        if not self.listeners:
            self._stop()

    def _stop(self) -> None:
        self.listeners = []
        while self._take_off:
            self._take_off.pop()()
        callbacks = self._callbacks()
        if callbacks is not None and vars(callbacks).get(_WATCH) is self:
            del vars(callbacks)[_WATCH]

    def _tell(self, error: BaseException) -> None:
        listeners = self.listeners
        self._stop()  # First: on its way the error passes more of our wraps.
        _tell_all(listeners, error)

    def _around_fit_hook(self, name: str, hook: _Method) -> _Method:
        def around(*args: Any, **kwargs: Any) -> None:
            try:
                hook(*args, **kwargs)
            except BaseException as error:
                self._tell(error)
                raise
            if name == "on_epoch_begin":
                self._watch_batches(self._input())
            elif name == "on_train_end":
                self._stop()

        return around

    def _around_test_hook(self, name: str, hook: _Method) -> _Method:
        def around(*args: Any, **kwargs: Any) -> None:
            try:
                hook(*args, **kwargs)
            except BaseException as error:
                if _validation() is not None:
                    self._tell(error)
                raise
            if name == "on_test_begin":
                self._watch_batches(_validation())

        return around

    def _around_epoch(self, catch: _Method) -> _Method:
        @contextmanager
        def around() -> Iterator[None]:
            try:
                with catch():
                    yield
            except BaseException as error:
                self._tell(error)
                raise

        return around

    def _input(self) -> Any:
        """Keras's iterator over the input; `None` if a loop of the user's own drives our list."""
        names = running_fit()
        return names.get("epoch_iterator") if names.get("callbacks") is self._callbacks() else None

    def _watch_batches(self, epoch_iterator: Any) -> None:
        if epoch_iterator is not None and epoch_iterator not in self._iterators and self.listeners:
            self._iterators.add(epoch_iterator)
            self._wrap(epoch_iterator, "catch_stop_iteration", self._around_epoch)

    def _wrap(self, owner: Any, name: str, around: Callable[[_Method], _Method]) -> None:
        """Shadow a method of one object, and remember how to take that off again.

        The wrap hangs on the object. If it held it, too, the object would stay, and the data
        with it, until a garbage collection.
        """
        held, earlier = weakref.ref(owner), vars(owner).get(name)

        def original(*args: Any, **kwargs: Any) -> Any:
            method = earlier or getattr(type(held()), name).__get__(held())
            return method(*args, **kwargs)

        wrap = around(original)

        def take_off() -> None:
            attributes = {} if (found := held()) is None else vars(found)
            if attributes.get(name) is not wrap:
                return  # Somebody's wrap is around ours, which has nobody left to tell.
            if earlier is None:
                del attributes[name]
            else:
                attributes[name] = earlier

        vars(owner)[name] = wrap
        self._take_off.append(take_off)


def _tell_all(listeners: list[Raised], error: BaseException) -> None:
    """Tell one after the other, also if one raises. `ExitStack` would cut `__context__` off."""
    if listeners:
        try:
            listeners[0](error)
        finally:
            _tell_all(listeners[1:], error)


def _validation() -> Any:
    """Keras's iterator over the validation, if a `fit` itself is evaluating on it below us."""
    for frame in _frames():
        if frame.f_code.co_name == "evaluate":
            names = frame.f_locals
            return names.get("epoch_iterator") if names.get("use_cached_eval_dataset") else None
    return None
