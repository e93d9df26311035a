"""Ask whether a model still holds exactly what it held before."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.host_copy import host_array


class StateMark:
    """What variables held at one instant.

    It shares their buffers where it can: an untouched variable then still lies where it
    lay, and only a touched one is compared. Else it keeps digests.

    Args:
        model: Its weights and the variables of its optimizers count.
        borrow: Whether their buffers can be shared.
    """

    def __init__(self, model: keras.Model, *, borrow: bool) -> None:
        variables = fingerprint.state_variables(model)
        self._borrowed = borrow
        self._held: list[Any] = (
            keras_internals.borrow(variables) if borrow else [_digest(v) for v in variables]
        )

    def matches(self, model: keras.Model) -> bool:
        """Whether `model` holds now, bit by bit, what it held then."""
        variables = fingerprint.state_variables(model)
        if len(variables) != len(self._held):
            return False
        if not self._borrowed:
            return all(_digest(v) == d for v, d in zip(variables, self._held, strict=True))
        now = keras_internals.borrow(variables)
        return all(_same(new, old) for new, old in zip(now, self._held, strict=True))

    def release(self) -> None:
        """Let go of the buffers."""
        self._held = []


def _digest(variable: Any) -> str:
    return digest_bytes(np.ascontiguousarray(host_array(variable)).tobytes())


def _same(new: Any, old: Any) -> bool:
    if keras_internals.share_memory(new, old):
        return True
    a, b = keras_internals.view(new), keras_internals.view(old)
    return a.dtype == b.dtype and np.array_equal(
        a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8)
    )
