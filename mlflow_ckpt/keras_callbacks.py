"""What Keras's own callbacks change while a fit runs (Keras 3.12 to 3.15).

For each class a list of attributes, and for `CSVLogger` its file as well: it empties that in
`on_train_begin`. What is set again at each begin or epoch is on no list. `min_delta` is
never restored: Keras flips its sign when it picks the comparison, which is done here as
Keras does it, because a batch-level save compares before the first epoch's end picks.

What lies in files of their own is not restored: TensorBoard's events, and what
ModelCheckpoint, BackupAndRestore and OrbaxCheckpoint have saved.
"""

from __future__ import annotations

import csv
import dis
import inspect
import os
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mlflow_ckpt.errors import ConfigError, ManifestError
from mlflow_ckpt.plain import Decoder, Encoder

KERAS_STATE: Mapping[str, tuple[str, ...]] = {
    "BackupAndRestore": ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch"),
    "CSVLogger": ("keys",),
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    "History": ("history", "epoch"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
    "OrbaxCheckpoint": (
        "best", "_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen",
    ),
    "ReduceLROnPlateau": ("wait", "cooldown_counter", "best"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "TensorBoard": ("_global_train_batch", "_global_test_batch"),
}  # fmt: skip

# Nothing that a resume needs lives in these. A LambdaCallback's functions may remember
# something; nobody can know what.
STATELESS = frozenset({
    "Callback", "CallbackList", "LambdaCallback", "LearningRateScheduler", "ProgbarLogger",
    "RemoteMonitor", "TerminateOnNaN",
})  # fmt: skip

# Packages whose callbacks keep nothing that a resume gives back; a user's subclass may.
WITHOUT_STATE = frozenset({"mlflow", "mlflow_ckpt"})

TEXT_LIMIT = 16 * 2**20  # bytes of a CSVLogger's file
_DEEP = 32


def package_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def keras_classes(callback: keras.callbacks.Callback) -> list[type]:
    """The classes of Keras that `callback` is or derives from, the nearest first."""
    return [c for c in type(callback).__mro__ if package_of(c) == "keras"]


def listed(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    """Attributes that the list of its nearest class with one names."""
    for cls in keras_classes(callback):
        if cls.__name__ in KERAS_STATE:
            return KERAS_STATE[cls.__name__]
    return ()


def of_the_base(callback: keras.callbacks.Callback) -> frozenset[str]:
    """Attributes that are the business of the class below, not of the user's.

    They are what the code of Keras, MLflow or this package assigns, whatever the version, but
    for what the user's assigns too.
    """
    below, users = _bases_and_users(callback)
    names = set().union(*map(_assigned, below), *map(vars, below))
    names -= set().union(*map(_assigned, users))
    return frozenset({*names, *listed(callback), "min_delta", "monitor_op"})


def no_text_for_the_base(callback: keras.callbacks.Callback) -> Callable[[str, Any], bool]:
    """What may be state of an attribute that both the class below and the user's assign.

    The class below takes text for a path, which it writes to or deletes, or for the name of
    something to call. So no text is put there, nor anything in the place of one.
    """
    below, _ = _bases_and_users(callback)
    names = set().union(*map(_assigned, below))
    begun = {n for n, v in vars(callback).items() if n in names and _holds_text(v)}
    return lambda name, value: name not in names or not (name in begun or _holds_text(value))


def _bases_and_users(callback: keras.callbacks.Callback) -> tuple[list[type], list[type]]:
    classes = type(callback).__mro__
    below = [c for c in classes if package_of(c) in {"keras", *WITHOUT_STATE}]
    return below, [c for c in classes if c not in below and c is not object]


def _assigned(cls: type) -> set[str]:
    return {
        str(step.argval)
        for value in vars(cls).values()
        for code in _code_of(value)
        for step in dis.get_instructions(code)
        if step.opname in ("STORE_ATTR", "DELETE_ATTR")
    }


def _code_of(value: Any) -> Iterator[types.CodeType]:
    """What a method, a property or a decorated function runs, functions in it included."""
    if isinstance(value, property):
        for part in (value.fget, value.fset, value.fdel):
            yield from _code_of(part)
    elif isinstance(value, (classmethod, staticmethod)):
        yield from _code_of(value.__func__)
    elif isinstance(value, types.FunctionType):
        yield from _code_of(value.__code__)
        if (wrapped := inspect.unwrap(value)) is not value:
            yield from _code_of(wrapped)
    elif isinstance(value, types.CodeType):
        yield value
        for constant in value.co_consts:
            if isinstance(constant, types.CodeType):
                yield from _code_of(constant)


def _holds_text(value: Any, depth: int = 0) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype.kind not in "biufc"
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple, set, frozenset, deque)):
        return isinstance(value, (str, bytes, bytearray, os.PathLike))
    return depth > _DEEP or any(_holds_text(each, depth + 1) for each in value)


def capture(callback: keras.callbacks.Callback) -> tuple[dict[str, Any], list[str]]:
    """Return what the list names, and the names of what was not stored."""
    state: dict[str, Any] = {}
    left: list[str] = []
    for name in listed(callback):
        if not hasattr(callback, name):  # Not in this version of Keras, or not before a fit.
            continue
        try:
            # Whatever its size and its names: best weights are large, `token_accuracy` no secret.
            state[name] = Encoder(loose=True).encode(getattr(callback, name))
        except ConfigError:
            left.append(name)
    operation = getattr(getattr(callback, "monitor_op", None), "__name__", None)
    if state and operation in _OPERATIONS:
        state["monitor_op"] = operation
    if not isinstance(callback, keras.callbacks.CSVLogger) or callback.csv_file is None:
        return state, left
    text = _text(callback)
    if text is None:
        return state, [*left, "csv_file"]
    begun = callback.writer is not None
    return {**state, "text": text, "append_header": callback.append_header, "begun": begun}, left


def restore(
    callback: keras.callbacks.Callback, state: Mapping[str, Any], *, file: str | None
) -> list[str]:
    """Set what `capture` returned; return the names of what found no place.

    Args:
        file: The name that a `CSVLogger` had for its file before anything was restored.

    Raises:
        ManifestError: If a value is not one that the attribute can have.
    """
    left = []
    for name in listed(callback):
        if name not in state:
            continue
        value = Decoder().decode(state[name])
        if not _CHECKS[name](value):
            raise ManifestError(
                f"Expected a value that {type(callback).__name__}.{name} can have. "
                f"Received: {str(value)[:80]!r}"
            )
        if name == "best_weights" and not _fits(callback, value):
            left.append(name)
        else:
            setattr(callback, name, value)
    if state.get("monitor_op") in _OPERATIONS:
        _pick_comparison(callback, state["monitor_op"])
    if isinstance(callback, keras.callbacks.CSVLogger) and "text" in state:
        left += [] if _rewrite(callback, state, file) else ["csv_file"]
    return left


# --- what an attribute can be -------------------------------------------------


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and abs(int(value)) < 1 << 63


def _is_best(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.shape == () and value.dtype.kind in "iuf"
    if isinstance(value, int):
        return abs(value) < 1 << 53
    return value is None or isinstance(value, (float, np.number))


def _is_list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(v, kind) for v in value)


def _is_history(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, list) for k, v in value.items()
    )


def _is_weights(value: Any) -> bool:
    return value is None or _is_list_of(np.ndarray)(value)


def _fits(callback: keras.callbacks.Callback, weights: Any) -> bool:
    """Whether the weights are those of the model; it is changed at the end of the fit only."""
    if weights is None or callback.model is None or not callback.model.built:
        return True
    return [w.shape for w in weights] == [tuple(v.shape) for v in callback.model.weights]


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    **{name: _is_whole for names in KERAS_STATE.values() for name in names},
    "_ema_weights_in_model": lambda value: isinstance(value, bool),
    # None until the first batch that ModelCheckpoint counts: it counts none with "epoch".
    "_last_batch_seen": lambda value: value is None or _is_whole(value),
    "best": _is_best,
    "best_weights": _is_weights,
    "epoch": _is_list_of(int),
    "history": _is_history,
    "keys": lambda value: value is None or _is_list_of(str)(value),
}


# --- the comparison -----------------------------------------------------------

_OPERATIONS: Mapping[str, Any] = {"less": keras.ops.less, "greater": keras.ops.greater}
_MODES: Mapping[str, str] = {"min": "less", "max": "greater"}


def _pick_comparison(callback: keras.callbacks.Callback, name: str) -> None:
    if getattr(callback, "monitor_op", ...) is not None:
        return
    if _MODES.get(callback.mode, name) != name:
        return  # The script asks for the other direction now: Keras picks that one.
    callback.monitor_op = _OPERATIONS[name]
    if name == "less":
        callback.min_delta *= -1


# --- the file of CSVLogger ----------------------------------------------------


def _text(callback: Any) -> np.ndarray[Any, Any] | None:
    path = Path(callback.filename)
    try:
        if path.stat().st_size > TEXT_LIMIT:
            return None
        return np.frombuffer(path.read_bytes(), dtype=np.uint8)
    except OSError:  # Taken away meanwhile, or behind a URL: it is named as not stored.
        return None


def _rewrite(callback: Any, state: Mapping[str, Any], file: str | None) -> bool:
    """Let the file hold the rows up to the checkpoint, and the next row follow them.

    With `append=True` a file that is not this run's may be there: it is left alone. So is any
    but `file`: what a state says is written to no place that a state may have named.
    """
    _check_rows(state, callback.keys)
    if file is None or callback.filename != file:
        return False
    path, text = Path(file), state["text"].tobytes()
    if callback.csv_file is None or callback.csv_file.closed:
        return False
    callback.csv_file.flush()
    if callback.append:
        there = path.read_bytes()
        if not there.startswith(text) and not text.startswith(there):
            return False
    callback.csv_file.close()
    path.write_bytes(text)
    callback.csv_file = path.open("a")
    callback.append_header = state["append_header"]
    if state["begun"]:
        # Keras makes its writer at the first row and would write the header again.
        callback.writer = csv.DictWriter(
            callback.csv_file, ["epoch", *callback.keys], delimiter=callback.sep
        )
    return True


def _check_rows(state: Mapping[str, Any], keys: Any) -> None:
    """Raise before the file is touched."""
    text, flags = state["text"], [state.get("append_header"), state.get("begun")]
    is_text = isinstance(text, np.ndarray) and text.dtype == np.uint8 and text.ndim == 1
    if not is_text or set(map(type, flags)) != {bool} or (flags[1] and keys is None):
        raise ManifestError(
            "Expected the text of a CSVLogger's file, whether its header and a row are written, "
            f"and the keys of its rows. Received: {type(text).__name__}, {flags!r:.80}, "
            f"keys={keys!r:.80}. Take another checkpoint, or leave the callback out."
        )
