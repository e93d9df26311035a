"""Bring a checkpoint of a run back: resolve, fetch, verify, rehydrate.

    selector -> resolve -> Checkpoint -> fetch -> verified open files -> rehydrate -> model

Nothing is parsed before its digest is right, and nothing is assigned before the
checkpoint was held against the model. `latest` goes back past a damaged checkpoint
(`fetched.py`); every other selector raises.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import fingerprint, formats, rehydrate
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.fetched import bring, fetched, first_whole
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store

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
    with fetched(run_id, which, _MODEL_FILES, in_place=True) as found:
        return rehydrate.read_model(
            found.files,
            custom_objects=custom_objects,
            compile=compile,
            safe_mode=safe_mode,
            source=found.source,
            recorded=found.manifest.model,
        )


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


def download(run_id: str, which: str | Selector, dst: str | os.PathLike[str]) -> Path:
    """Copy a whole checkpoint to `<dst>/<name>`, verified before it appears there.

    Returns:
        The folder, which `mlflow.keras.load_model` reads as it is.

    Raises:
        ConfigError: If the folder already exists.
        DigestMismatch: If a file is not the committed one; nothing appears at `dst`.
    """
    store = Store()

    def take(checkpoint: Checkpoint) -> Path:
        target = Path(dst) / checkpoint.name
        if target.exists():
            raise ConfigError(f"{target} already exists. Remove it, or choose another dst.")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{checkpoint.name}-"))
        try:
            bring(store, checkpoint, partial)
            partial.chmod(0o755)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial)
            raise
        return target

    return first_whole(store, store.run(run_id), Selector.parse(which), take)[1]
