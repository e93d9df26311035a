"""Look at a variable's memory without copying it.

On a CPU a TensorFlow variable and a tensor read from it share one reference-counted
buffer, and an update writes into a new buffer as long as somebody else holds the old
one (`PrepareToUpdateVariable` in TensorFlow's `training_op_helpers.h`). That is not a
promise of TensorFlow's API: `copies_on_write` tries it out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np


@functools.cache
def _tensorflow() -> Any:
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow

    return tensorflow


def dtype_of(variable: Any) -> np.dtype[Any]:
    """NumPy's type of a variable; `ml_dtypes` has those that NumPy lacks, such as bfloat16."""
    name = str(variable.dtype)
    return np.dtype(getattr(ml_dtypes, name, name))


def can_borrow(variable: Any) -> bool:
    """Whether a variable's buffer lies in this process's memory and can be shared."""
    if _tensorflow() is None:
        return False
    value = variable.value
    # A distributed variable, with one buffer per replica, does not derive from this class.
    plain = any(base.__name__ == "BaseResourceVariable" for base in type(value).__mro__)
    return plain and "CPU:" in str(value.device).upper()


def borrow(variables: Sequence[Any]) -> list[Any]:
    """Share the buffers of `variables`, which `can_borrow`, as tensors.

    `Variable.read_value` does the same at five times the cost.
    """
    read = _tensorflow().raw_ops.ReadVariableOp
    values = [variable.value for variable in variables]
    return [read(resource=v.handle, dtype=v.dtype) for v in values]


def view(tensor: Any) -> np.ndarray[Any, Any]:
    """The memory of a borrowed tensor as an array; never write to it."""
    return np.asarray(tensor.__array__())


def share_memory(one: Any, other: Any) -> bool:
    """Whether two borrowed tensors are one buffer. Scalars are copied by a look at them: no."""
    if not one.shape.rank:
        return False
    first, second = (view(tensor).__array_interface__["data"][0] for tensor in (one, other))
    return bool(first == second)


@functools.cache
def is_tensor_type(kind: Any) -> bool:
    """Whether objects of this class are tensors of a backend, such as a dropout mask in use."""
    return kind.__module__.partition(".")[0] in ("tensorflow", "jax", "jaxlib", "torch")


@functools.cache
def copies_on_write() -> str | None:
    """Try out that an update leaves a borrowed buffer alone: `None`, or what went wrong.

    Covers an eager and a compiled dense update, and a sparse one.
    """
    tensorflow = _tensorflow()
    if tensorflow is None:
        return f"the Keras backend is {keras.backend.backend()}"
    with tensorflow.device("CPU:0"):
        return _first_violation(tensorflow)


def _first_violation(tensorflow: Any) -> str | None:
    # Above the size that TensorFlow keeps inline, and with two rows for the sparse update.
    start = np.arange(2 * 1024, dtype="float32").reshape(2, 1024)
    updates: dict[str, Any] = {
        "an eager update": lambda v: v.assign_add(tensorflow.ones_like(start)),
        "a compiled update": lambda v: _compiled_update(tensorflow, v),
        "a sparse update": lambda v: v.scatter_update(
            tensorflow.IndexedSlices(tensorflow.ones((1, 1024)), [1])
        ),
    }
    for name, update in updates.items():
        variable = tensorflow.Variable(start)
        first, second = (_read(tensorflow, variable) for _ in range(2))
        if not share_memory(first, second):
            return f"reading a variable copies it (before {name})"
        del second
        update(variable)
        if not np.array_equal(view(first), start):
            return f"{name} wrote into a borrowed buffer"
        if np.array_equal(view(_read(tensorflow, variable)), start):
            return f"{name} did not update the variable"
    return None


def _read(tensorflow: Any, variable: Any) -> Any:
    return tensorflow.raw_ops.ReadVariableOp(resource=variable.handle, dtype=variable.dtype)


def _compiled_update(tensorflow: Any, variable: Any) -> None:
    compiled: Any = tensorflow.function(variable.assign_add)
    compiled(tensorflow.ones_like(variable))
