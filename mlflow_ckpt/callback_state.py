"""Save and restore what the other callbacks of a `fit` remember.

Keras's own callbacks: the attributes listed in `KERAS_STATE`, and no others. A
user's own: what its `checkpoint_state()` returns, given back to its
`restore_checkpoint_state(state)`. `History` is always kept.

`min_delta` is never restored: Keras flips its sign when it sets up the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

# Class name to the attributes that change while a fit runs (Keras 3.12 to 3.15).
KERAS_STATE: Mapping[str, tuple[str, ...]] = {
    "EarlyStopping": ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    "ReduceLROnPlateau": ("wait", "cooldown_counter", "best"),
    "ModelCheckpoint": ("best", "_batches_seen_since_last_saving"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "History": ("history", "epoch"),
}

# Nothing that a resume needs lives in these.
STATELESS = frozenset({
    "BackupAndRestore", "CallbackList", "LambdaCallback", "LearningRateScheduler",
    "MlflowCallback", "MlflowCheckpoint", "ProgbarLogger", "RemoteMonitor", "TensorBoard",
    "TerminateOnNaN", "_Tail",
})  # fmt: skip


def capture(callbacks: Iterable[keras.callbacks.Callback]) -> tuple[dict[str, Any], list[str]]:
    """Return the state of each callback by key, and the names of those not stored."""
    states: dict[str, Any] = {}
    unknown: list[str] = []
    for key, callback in _keyed(callbacks):
        own = getattr(callback, "checkpoint_state", None)
        attributes = _attributes(callback)
        if callable(own) and callable(getattr(callback, "restore_checkpoint_state", None)):
            states[key] = {"own": own()}
        elif attributes:
            states[key] = {name: _plain(getattr(callback, name, None)) for name in attributes}
        elif not _is_stateless(callback):
            unknown.append(type(callback).__name__)
    return states, unknown


def restore(callbacks: Iterable[keras.callbacks.Callback], saved: Mapping[str, Any]) -> list[str]:
    """Give back what `capture` returned; return the keys in `saved` that found no callback."""
    present = dict(_keyed(callbacks))
    for key, state in saved.items():
        callback = present.get(key)
        if callback is None:
            continue
        if "own" in state:
            callback.restore_checkpoint_state(state["own"])
            continue
        for name in _attributes(callback):
            if name in state:
                setattr(callback, name, state[name])
    return sorted(set(saved) - set(present))


def _keyed(
    callbacks: Iterable[keras.callbacks.Callback],
) -> Sequence[tuple[str, keras.callbacks.Callback]]:
    """Key each callback by class name and its place among its own class."""
    counts: dict[str, int] = {}
    keyed = []
    for callback in callbacks:
        name = type(callback).__name__
        keyed.append((f"{name}/{counts.get(name, 0)}", callback))
        counts[name] = counts.get(name, 0) + 1
    return keyed


def _attributes(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    """Attributes of the Keras class that `callback` is or derives from."""
    for cls in type(callback).__mro__:
        if cls.__module__.partition(".")[0] == "keras" and cls.__name__ in KERAS_STATE:
            return KERAS_STATE[cls.__name__]
    return ()


def _is_stateless(callback: keras.callbacks.Callback) -> bool:
    own = set(vars(callback)) - {"params", "_model"}
    return not own or any(cls.__name__ in STATELESS for cls in type(callback).__mro__)


def _plain(value: Any) -> Any:
    """Tensors become arrays; lists, tuples and mappings keep their form."""
    if value is None or isinstance(value, (bool, int, float, str, np.ndarray, np.generic)):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return keras.ops.convert_to_numpy(value)
