"""Build a model without filling its variables twice: once at random, then from a file.

Filling 1 GiB with initial values that the file replaces takes longer than reading it. A
large variable gets memory that nobody has written to; what the file does not cover gets
its real initial value afterwards.

TensorFlow takes over an aligned buffer of ours through DLPack, without a copy. It does not
own it, so it never writes into it: an update makes a new buffer.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np
from keras.src import backend, initializers
from keras.src.backend.common import global_state
from keras.src.initializers.random_initializers import RandomInitializer

from mlflow_ckpt.keras_internals import _variables
from mlflow_ckpt.keras_internals._budget import Budget, bounded_steps, current

# In bytes; below it, an initializer costs less than the detour.
LARGE = 1 << 16
_POPULATE = getattr(mmap, "MAP_POPULATE", 0)  # Linux
_CUSTOM_SCOPE = "custom_objects_scope_dict"


def known_objects(custom_objects: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every class and function that a config may name without being Keras's own."""
    scoped = global_state.get_global_attribute(_CUSTOM_SCOPE) or {}
    return {**(custom_objects or {}), **scoped, **keras.saving.get_custom_objects()}


def owned(
    shape: Sequence[int], dtype: np.dtype[Any], *, filled: bool
) -> tuple[np.ndarray[Any, Any], Any]:
    """An array of private memory, at least one element, and the tensor that keeps it alive.

    Args:
        filled: Whether all of it will be written to. Its pages are then made in one call,
            which takes less time than a fault for each.
    """
    import tensorflow

    size = math.prod(shape) * dtype.itemsize
    # Pages of its own: aligned, and given back with the variable.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (_POPULATE if filled else 0)
    array = np.frombuffer(mmap.mmap(-1, size, flags=flags), dtype).reshape(shape)
    # DLPack, as NumPy writes it, has no bfloat16.
    bits = array.view(np.uint16) if dtype == ml_dtypes.bfloat16 else array
    # TensorFlow accepts a buffer that is not aligned to 64 bytes, and aborts the process later.
    assert not bits.ctypes.data % 64
    tensor = tensorflow.experimental.dlpack.from_dlpack(bits.__dlpack__())
    return array, tensor if bits is array else tensorflow.bitcast(tensor, tensorflow.bfloat16)


def may_defer(config: str, custom_objects: Mapping[str, Any] | None = None) -> bool:
    """Whether nobody looks at initial values while the model of `config` is built.

    Keras's own classes do not. A class of the user's may, and so may one that stands in
    for Keras's under its name.
    """
    import tensorflow

    scoped = global_state.get_global_attribute(_CUSTOM_SCOPE) or {}
    shadows = [name for name in keras.saving.get_custom_objects() if ">" not in name]
    return (
        keras.backend.backend() == "tensorflow"
        and not (custom_objects or scoped or shadows)
        and not tensorflow.config.list_logical_devices("GPU")
        and not tensorflow.distribute.has_strategy()
        and _is_all_keras(json.loads(config))
    )


def _is_all_keras(config: Any) -> bool:
    if isinstance(config, list):
        return all(_is_all_keras(each) for each in config)
    if not isinstance(config, dict):
        return True
    if "class_name" in config:
        module = config.get("module") or "builtins"
        known = module == "builtins" or module == "keras" or module.startswith("keras.")
        if not known or ">" in (config.get("registered_name") or ""):
            return False
    return all(_is_all_keras(each) for each in config.values())


class Deferred:
    """Large variables that were made without their initial value, and those made with one."""

    def __init__(self) -> None:
        # Variable, how to initialise it (`None`: it has its value), and its first buffer:
        # as long as that is held, no other one can lie where it lies.
        self._made: list[tuple[Any, Any, Any]] = []

    def initialise(self, variable: Any, initializer: Any, really: Any) -> None:
        """Give a new variable a buffer without a value, if its initial value can wait."""
        import tensorflow

        shape, dtype = (
            tuple(variable._shape),
            np.dtype(getattr(ml_dtypes, variable._dtype, variable._dtype)),
        )
        if math.prod(shape) * dtype.itemsize < LARGE or not tensorflow.executing_eagerly():
            return really(variable, initializer)
        waits = _can_wait(initializer)
        if waits:
            variable._initialize(owned(shape, dtype, filled=False)[1])
        else:
            really(variable, initializer)
        if _variables.can_borrow(variable):
            [held] = _variables.borrow([variable])
            self._made.append((variable, initializer if waits else None, held))
        elif waits:
            variable.assign(initializer(shape, dtype=variable._dtype))
        return None

    def settle(self) -> bool:
        """Give each variable that nobody assigned its initial value.

        Returns:
            Whether that was possible. It is not if one was initialised by code that is not
            Keras's own, which may have looked at another that had no value yet.
        """
        for variable, initializer, held in self._made:
            [now] = _variables.borrow([variable])
            if not _variables.share_memory(now, held):
                continue
            if initializer is None:
                return False
            variable.assign(initializer(tuple(variable._shape), dtype=variable._dtype))
        self._made.clear()
        return True


def _can_wait(initializer: Any) -> bool:
    """Whether an initializer gives the same value now and later."""
    if type(initializer).__module__.partition(".initializers.")[0] != "keras.src":
        return False
    if isinstance(initializer, RandomInitializer):
        return isinstance(initializer.seed, int)
    return isinstance(initializer, (initializers.Zeros, initializers.Ones))


_here = threading.local()
_lock = threading.Lock()
_users = 0


@contextlib.contextmanager
def deferred_values() -> Iterator[Deferred]:
    """Make large variables of this thread without their initial values.

    Call `settle` before anybody looks at them. Wraps `Variable._initialize_with_initializer`
    of Keras's backend while any thread is inside; other threads notice nothing.
    """
    deferred = Deferred()
    outer = getattr(_here, "deferred", None)
    with _wrapped_variables():
        _here.deferred = deferred
        try:
            yield deferred
        finally:
            _here.deferred = outer


@contextlib.contextmanager
def bounded_variables(limit: int, steps: int = sys.maxsize) -> Iterator[Budget]:
    """Refuse, in this thread, what a config asks for beyond what it is worth.

    Args:
        limit: Bytes of variables, together.
        steps: Tensors that Keras may describe while it builds the model.
    """
    budget = Budget(limit, steps)
    with _wrapped_variables(), bounded_steps(budget):
        yield budget


_really: Any = backend.Variable._initialize_with_initializer


def _initialize(self: Any, initializer: Any) -> None:
    budget = current()
    if budget is not None:
        budget.take(self)
    deferred: Deferred | None = getattr(_here, "deferred", None)
    if deferred is None:
        _really(self, initializer)
    else:
        deferred.initialise(self, initializer, _really)


@contextlib.contextmanager
def _wrapped_variables() -> Iterator[None]:
    global _users
    with _lock:
        _users += 1
        backend.Variable._initialize_with_initializer = _initialize
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                backend.Variable._initialize_with_initializer = _really
