"""Copy tensors into memory of our own: the way where buffers cannot be shared.

The buffers are kept from one snapshot to the next, because fresh memory costs more than
the copy (the kernel clears each page at its first touch). Several threads copy at once:
`numpy.copyto` releases the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from mlflow_ckpt import keras_internals

# Below this many bytes a thread costs more than it saves.
_WORTH_A_THREAD = 8 << 20
_PART = 16 << 20
_THREADS = min(4, os.cpu_count() or 1)

Buffers = list[np.ndarray[Any, Any]]


def host_array(variable: Any) -> np.ndarray[Any, Any]:
    """A variable's value on the host; it may be the variable's own memory."""
    if keras_internals.can_borrow(variable):
        (tensor,) = keras_internals.borrow([variable])
        return keras_internals.view(tensor)
    return np.asarray(keras.ops.convert_to_numpy(variable))


class HostCopies:
    """Buffers for the snapshots of one model, reused when a snapshot gives them back."""

    def __init__(self) -> None:
        self._free: list[Buffers] = []

    def take(self, variables: Sequence[Any]) -> Buffers:
        """Copy the values of `variables`; training may go on when this returns."""
        sources = [host_array(variable) for variable in variables]
        buffers = self._fitting(sources)
        _copy_all(buffers, sources)
        return buffers

    def give_back(self, buffers: Buffers) -> None:
        """Let the next snapshot use `buffers`, which nobody reads any more."""
        # One set is enough: one snapshot is alive at a time.
        self._free = [buffers]

    def _fitting(self, sources: Sequence[np.ndarray[Any, Any]]) -> Buffers:
        if self._free:
            buffers = self._free.pop()
            if [(b.shape, b.dtype) for b in buffers] == [(s.shape, s.dtype) for s in sources]:
                return buffers
        return [np.empty_like(source) for source in sources]


def _copy_all(buffers: Buffers, sources: Sequence[np.ndarray[Any, Any]]) -> None:
    parts = [part for pair in zip(buffers, sources, strict=True) for part in _parts(*pair)]
    if sum(source.nbytes for source in sources) < _WORTH_A_THREAD:
        for target, source in parts:
            np.copyto(target, source)
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(lambda part: np.copyto(*part), parts):
            pass


def _parts(
    target: np.ndarray[Any, Any], source: np.ndarray[Any, Any]
) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Split a large pair, so that threads share the work evenly."""
    if source.nbytes <= _PART or not source.flags.c_contiguous:
        return [(target, source)]
    flat_target, flat_source = target.reshape(-1), source.reshape(-1)
    step = _PART // source.itemsize
    return [
        (flat_target[start : start + step], flat_source[start : start + step])
        for start in range(0, source.size, step)
    ]
