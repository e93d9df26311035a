"""Who is reading an `EpochData`, and what else was given to that `fit`.

Keras tells a `DataAdapter` nothing: not whether it trains or evaluates, nor the arguments that
it then drops. So we look at the frames below us. Leans on the names of the methods that read
(`fit`, `evaluate`, `predict`, `_symbolic_build`), on the arguments of `fit` and its
`epoch_iterator`, and on `EpochIterator._enumerate_iterator` and `_num_batches`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import keras
from keras.src.trainers.epoch_iterator import EpochIterator

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.keras_internals._training import _frames

_READERS = ("fit", "evaluate", "predict", "_symbolic_build")

_IGNORED = {
    "y": "give it to EpochData",
    "sample_weight": "give it to EpochData",
    "class_weight": "turn it into one sample_weight per sample and give that to EpochData",
}


def reader() -> tuple[str | None, Mapping[str, Any]]:
    """Method of a model that is reading data now, and its local names; None in another loop."""
    for frame in _frames():
        if frame.f_code.co_name in _READERS:
            names = frame.f_locals
            if isinstance(names.get("self"), keras.Model):
                return frame.f_code.co_name, names
    return None, {}


def beginning_epoch() -> EpochIterator | None:
    """Keras's iterator, if its own `_enumerate_iterator` has called our caller.

    It reads `_num_batches` next, to know how many steps the epoch has.
    """
    frame = sys._getframe(2)
    owner = frame.f_locals.get("self")
    own = frame.f_code.co_name == "_enumerate_iterator" and isinstance(owner, EpochIterator)
    return owner if own else None


def refuse_ignored(fit: Mapping[str, Any], batch_size: int | None) -> None:
    """Raise if a `fit` was given what Keras drops without a word beside a `DataAdapter`.

    Raises:
        ConfigError: It names the argument and where it belongs.
    """
    for name, action in _IGNORED.items():
        if fit.get(name) is not None:
            _refuse(f"no {name}", f"{name}={type(fit[name]).__name__}", action)
    size = fit.get("batch_size")
    if size is not None and size != batch_size:
        action = "set it in EpochData; that of the validation is validation_batch_size"
        _refuse(f"no batch_size but {batch_size}", f"batch_size={size!r}", action)
    steps = getattr(fit.get("epoch_iterator"), "steps_per_epoch", None)
    if steps is not None:
        action = "leave it out, and KERAS_MAX_STEPS_PER_EPOCH too: an epoch is read whole"
        _refuse("no steps_per_epoch", f"steps_per_epoch={steps!r}", action)
    if fit.get("validation_data") is fit.get("x"):
        _refuse("validation data of its own", "the same EpochData twice", "make a second one")


def _refuse(expected: str, received: str, action: str) -> NoReturn:
    raise ConfigError(
        f"Expected {expected} beside an EpochData in fit(). Received: {received}. "
        f"{action[0].upper()}{action[1:]}."
    )
