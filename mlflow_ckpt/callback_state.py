"""Save and restore what the other callbacks of a `fit` remember.

Keras's own callbacks: the attributes on the lists of `keras_callbacks`. A user's own: what
its `checkpoint_state()` returns, given back to its `restore_checkpoint_state(state)`, if it
has both; else the attributes that changed since training began. A user's subclass of a
Keras class without the two methods has both kinds of attributes.

State of one callback, under `<class>/<place among its class>`: {"own": ...}, or what the
list names, with the changed attributes in "attributes".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from mlflow_ckpt import keras_callbacks
from mlflow_ckpt.attributes import Attributes
from mlflow_ckpt.errors import CheckpointError, ConfigError, ManifestError
from mlflow_ckpt.plain import Decoder, Encoder, detached


class CallbackStates:
    """The states of a fit's callbacks.

    Args:
        callbacks: Those of the fit, after each one's `on_train_begin` and before any restore:
            what they hold now is what the same script begins with again.
    """

    def __init__(self, callbacks: Iterable[keras.callbacks.Callback]) -> None:
        self._callbacks = _keyed(callbacks)
        self._attributes = {
            key: Attributes(
                callback,
                ignore=keras_callbacks.of_the_base(callback),
                accepts=keras_callbacks.no_text_for_the_base(callback),
            )
            for key, callback in self._callbacks.items()
            if not _is_known(callback) and not _has_methods(callback)
        }
        # The one file that a state is written to is the one that the script names.
        self._files = {
            key: getattr(callback, "filename", None)
            for key, callback in self._callbacks.items()
            if isinstance(callback, keras.callbacks.CSVLogger)
        }

    def capture(self) -> tuple[dict[str, Any], list[str]]:
        """Return the state of each callback by key, and what could not be stored, by name.

        The state is a copy: training may go on while it is written. A name is
        `<class>.<attribute>`, and is in the list once.

        Raises:
            ConfigError: If a `checkpoint_state()` returns what cannot be stored.
        """
        states: dict[str, Any] = {}
        unknown: dict[str, None] = {}
        for key, callback in self._callbacks.items():
            if _has_methods(callback):
                states[key] = {"own": _own(callback)}
                continue
            state, left = keras_callbacks.capture(callback)
            if key in self._attributes:
                state["attributes"], more = self._attributes[key].changed()
                left += more
            if state:
                states[key] = state
            unknown |= {f"{type(callback).__name__}.{name}": None for name in left}
        return states, list(unknown)

    def restore(self, saved: Mapping[str, Any]) -> list[str]:
        """Give back what `capture` returned, as often as needed; return what found no place.

        That is a key of `saved`, or a key and an attribute. A callback without a key in
        `saved` is left as it is.

        Raises:
            ManifestError: If a state cannot be read. Callbacks before it have theirs.
        """
        left: list[str] = []
        for key, state in saved.items():
            try:
                left += self._restore_one(key, state)
            except Exception as error:
                if isinstance(error, CheckpointError):
                    raise
                raise ManifestError(
                    f"The stored state of the callback {key} cannot be given back: "
                    f"{type(error).__name__}: {error}. Take another checkpoint, or leave the "
                    "callback out."
                ) from error
        return sorted(left)

    def _restore_one(self, key: str, state: Mapping[str, Any]) -> list[str]:
        callback = self._callbacks.get(key)
        if callback is None or ("own" in state and not _has_methods(callback)):
            return [key] if any(hasattr(v, "dtype") or v for v in state.values()) else []
        if "own" in state:
            callback.restore_checkpoint_state(Decoder().decode(state["own"]))
            return []
        names = keras_callbacks.restore(callback, state, file=self._files.get(key))
        names += self._restore_attributes(key, state.get("attributes"))
        return [f"{key}.{name}" for name in names]

    def _restore_attributes(self, key: str, state: Mapping[str, Any] | None) -> list[str]:
        if state is None:
            return []
        attributes = self._attributes.get(key)
        return sorted(state) if attributes is None else attributes.restore(state)


def _keyed(
    callbacks: Iterable[keras.callbacks.Callback],
) -> dict[str, keras.callbacks.Callback]:
    """Key each callback by class name and its place among its own class."""
    counts: dict[str, int] = {}
    keyed = {}
    for callback in _flat(callbacks):
        name = type(callback).__name__
        keyed[f"{name}/{counts.get(name, 0)}"] = callback
        counts[name] = counts.get(name, 0) + 1
    return keyed


def _flat(callbacks: Iterable[Any]) -> Iterable[Any]:
    for callback in callbacks:
        if type(callback) is keras.callbacks.CallbackList:
            yield from _flat(callback.callbacks)
        else:
            yield callback


def _has_methods(callback: keras.callbacks.Callback) -> bool:
    names = ("checkpoint_state", "restore_checkpoint_state")
    return all(callable(getattr(callback, name, None)) for name in names)


def _is_known(callback: keras.callbacks.Callback) -> bool:
    """Whether its class is ours, MLflow's, or one of Keras's whose state is listed."""
    cls = type(callback)
    listed = cls.__name__ in {*keras_callbacks.KERAS_STATE, *keras_callbacks.STATELESS}
    package = keras_callbacks.package_of(cls)
    return package in keras_callbacks.WITHOUT_STATE or (package == "keras" and listed)


def _own(callback: keras.callbacks.Callback) -> Any:
    state = callback.checkpoint_state()
    try:
        return detached(Encoder(loose=True).encode(state))
    except ConfigError as error:
        raise ConfigError(
            f"{type(callback).__name__}.checkpoint_state() returned what a checkpoint cannot "
            f"hold. {error}. Leave it out of the state."
        ) from error
