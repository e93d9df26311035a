"""Put a checkpoint's state into a running fit: fetch, verify, compare, and only then assign."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from mlflow_ckpt import (
    callback_state,
    fingerprint,
    formats,
    keras_internals,
    rehydrate,
    training_state,
)
from mlflow_ckpt.loader import Fetched
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.store import Store

_FILES = (formats.MODEL, formats.WEIGHTS)


def restore(
    store: Store,
    model: keras.Model,
    callbacks: Sequence[keras.callbacks.Callback],
    begun: Plan,
) -> list[str]:
    """Put the planned checkpoint into the model and the callbacks.

    A fit that begins anew at the end of the one before takes the model and no callback.

    Returns:
        What was in the checkpoint and found no place, in words.

    Raises:
        DigestMismatch: If a file is not the committed one. Nothing was assigned.
        ModelMismatch: If the model or an optimizer does not fit. Nothing was assigned.
    """
    assert begun.restore is not None
    state = begun.state
    with Fetched(store, begun.restore, _FILES, in_place=True) as fetched:
        if not keras_internals.has_variables(model) and state.get("build_config"):
            model.build_from_config(state["build_config"])
        recorded, source = fetched.manifest.model, fetched.source
        fingerprint.check_architecture(model, recorded, source=source, strict_dtype=True)
        fingerprint.build_optimizers(model, recorded, source=source)
        rehydrate.load_training_state(model, fetched.files, source=source)
    left = training_state.restore_variables(model, state["variables"])
    training_state.restore_generators(state["generators"])
    return left + callback_state.restore(callbacks, {} if begun.restart else state["callbacks"])


def restore_end(store: Store, model: keras.Model, end: Checkpoint) -> None:
    """Put the state in which a completed fit left its model back into it.

    Raises:
        DigestMismatch, ModelMismatch: As `restore`.
    """
    with Fetched(store, end, _FILES, in_place=True) as fetched:
        fingerprint.check_architecture(
            model, fetched.manifest.model, source=fetched.source, strict_dtype=True
        )
        rehydrate.load_training_state(model, fetched.files, source=fetched.source)
