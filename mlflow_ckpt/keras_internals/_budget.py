"""Bound what a config makes Keras do: bytes of variables, and steps of describing the model.

A variable says its shape before it is filled, so one that is too large is refused in time.
A config of a few lines may also name a model twice within a model, and that one twice within
another: Keras would walk through the innermost one 2^depth times. Each time it describes a
tensor that nobody has computed (`KerasTensor`), which is a step; each layer that it has to
try out to know its output counts for `_TRIAL` of them.

Wraps the attributes of `_SEAMS` while any thread is inside; other threads notice nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
from keras.src import backend
from keras.src.backend.common.keras_tensor import KerasTensor

_TRIAL = 10


class Budget:
    """How many bytes of variables may be made, and in how many steps a model.

    Attributes:
        exceeded: What asked for more, in words.
    """

    def __init__(self, limit: int, steps: int) -> None:
        self._limit = limit
        self._made = 0
        self._steps = self._steps_left = steps
        self.exceeded: str | None = None

    def take(self, variable: Any) -> None:
        """Count a new variable.

        Raises:
            ValueError: If it is too much; nothing is allocated then.
        """
        dtype = np.dtype(getattr(ml_dtypes, variable._dtype, variable._dtype))
        self._made += math.prod(variable._shape) * dtype.itemsize
        if self._made > self._limit:
            self._refuse(
                "more memory than its file explains: "
                f"{variable.path!r} of shape {tuple(variable._shape)}, with which the model has "
                f"{self._made} bytes of variables, where its weights allow for {self._limit}"
            )

    def step(self, count: int) -> None:
        """Count steps of describing a model.

        Raises:
            ValueError: If they are too many.
        """
        self._steps_left -= count
        if self._steps_left < 0:
            self._refuse(
                f"more work than its file explains: over {self._steps} tensors to describe it, "
                "as from a model that is used again and again in others"
            )

    def _refuse(self, what: str) -> None:
        self.exceeded = what
        raise ValueError(what)


_here = threading.local()
_lock = threading.Lock()
_users = 0


def current() -> Budget | None:
    """The budget of this thread."""
    budget: Budget | None = getattr(_here, "budget", None)
    return budget


@contextlib.contextmanager
def bounded_steps(budget: Budget) -> Iterator[None]:
    """Count in this thread against `budget`, variables aside: see `bounded_variables`."""
    outer = current()
    with _wrapped():
        _here.budget = budget
        try:
            yield
        finally:
            _here.budget = outer


def _counting(really: Callable[..., Any], count: int) -> Callable[..., Any]:
    @functools.wraps(really)
    def counted(*args: Any, **kwargs: Any) -> Any:
        budget = current()
        if budget is not None:
            budget.step(count)
        return really(*args, **kwargs)

    return counted


_SEAMS: tuple[tuple[Any, str, int], ...] = (
    (KerasTensor, "__init__", 1),
    (backend, "compute_output_spec", _TRIAL),
)
_real = [getattr(owner, name) for owner, name, _ in _SEAMS]


@contextlib.contextmanager
def _wrapped() -> Iterator[None]:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            for (owner, name, count), real in zip(_SEAMS, _real, strict=True):
                setattr(owner, name, _counting(real, count))
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for (owner, name, _), real in zip(_SEAMS, _real, strict=True):
                    setattr(owner, name, real)
