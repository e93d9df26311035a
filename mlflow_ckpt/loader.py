"""Bring a checkpoint of a run back: resolve, fetch, verify, rehydrate.

    selector -> resolve -> Checkpoint -> fetch -> verified open files -> rehydrate -> model

Nothing is parsed before its digest is right, and nothing is assigned before the
checkpoint was held against the model. `latest` goes back past a damaged checkpoint
(`fetched.py`); every other selector raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mlflow_ckpt import fingerprint, formats, progress, rehydrate
from mlflow_ckpt.fetched import fetched
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.selector import Selector

_MODEL_FILES = (formats.MODEL, formats.WEIGHTS, formats.CONFIG)


def load_model(
    run_id: str,
    which: str | Selector = "latest",
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """Rebuild the model of a checkpoint, with its optimizer's state.

    Args:
        run_id, which: See `resolve`.
        custom_objects: Classes and functions by the name Keras stored.
        compile: Whether to restore the compiled loss, metrics and optimizer.
        safe_mode: Whether to refuse code stored in the file (`Lambda` layers).

    Raises:
        DigestMismatch: If a file is not the committed one.
        ArchitectureMissing: If the checkpoint holds weights only, and no config.
        ModelNotLoadable: If Keras cannot or, in safe mode, will not rebuild it.
    """
    return open_model(
        run_id, which, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
    )[1]


def open_model(
    run_id: str,
    which: str | Selector,
    *,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> tuple[Checkpoint, keras.Model]:
    """`load_model`, and which checkpoint it was."""
    with fetched(run_id, which, _MODEL_FILES, in_place=True) as found:
        progress.turn_to("building the model")
        model = rehydrate.read_model(
            found.files,
            custom_objects=custom_objects,
            compile=compile,
            safe_mode=safe_mode,
            source=found.source,
            recorded=found.manifest.model,
        )
        return found.checkpoint, model


def load_weights(model: keras.Model, run_id: str, which: str | Selector = "latest") -> Checkpoint:
    """Load a checkpoint's weights, and nothing else, into your own model.

    Every variable's shape is compared before the first one is assigned.

    Returns:
        The checkpoint that was loaded.

    Raises:
        ModelNotBuilt: If the model has no variables yet.
        ModelMismatch: If a variable has another shape; the first one is named.
        DigestMismatch: If a file is not the committed one.
    """
    with fetched(run_id, which, _MODEL_FILES, in_place=True) as found:
        fingerprint.check_architecture(model, found.manifest.model, source=found.source)
        rehydrate.load_weights(model, found.files, source=found.source)
        return found.checkpoint
