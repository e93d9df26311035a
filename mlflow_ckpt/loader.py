"""Bring a checkpoint of a run back: resolve, fetch, verify, rehydrate.

    selector -> resolve -> Checkpoint -> fetch -> manifest.verify -> formats -> model

Nothing is parsed before its digest is right, and nothing is assigned before the
checkpoint was held against the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import fingerprint, formats, rehydrate
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.manifest import FILENAME
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.resolver import resolve
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store


class Fetched:
    """A private folder with verified files of one checkpoint; a context manager."""

    def __init__(self, store: Store, checkpoint: Checkpoint, wanted: Iterable[str] | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-ckpt-")
        self.path = Path(self._folder.name)
        self.source = f"checkpoint {checkpoint.name} of run {checkpoint.run_id}"
        try:
            self.manifest = store.manifest(checkpoint, self.path)
            paths = [e.path for e in self.manifest.files] if wanted is None else list(wanted)
            store.fetch(checkpoint, self.manifest, paths, self.path)
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


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
    store, checkpoint = Store(), resolve(run_id, which)
    with Fetched(store, checkpoint, _MODEL_FILES) as fetched:
        return rehydrate.read_model(
            fetched.path,
            custom_objects=custom_objects,
            compile=compile,
            safe_mode=safe_mode,
            source=fetched.source,
            recorded=fetched.manifest.model,
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
    store, checkpoint = Store(), resolve(run_id, which)
    with Fetched(store, checkpoint, _MODEL_FILES) as fetched:
        fingerprint.check_architecture(model, fetched.manifest.model, source=fetched.source)
        rehydrate.load_weights(model, fetched.path, source=fetched.source)
    return checkpoint


def download(run_id: str, which: str | Selector, dst: str | os.PathLike[str]) -> Path:
    """Copy a whole checkpoint to `<dst>/<name>`, verified before it appears there.

    Returns:
        The folder, which `mlflow.keras.load_model` reads as it is.

    Raises:
        ConfigError: If the folder already exists.
        DigestMismatch: If a file is not the committed one; nothing appears at `dst`.
    """
    store, checkpoint = Store(), resolve(run_id, which)
    target = Path(dst) / checkpoint.name
    if target.exists():
        raise ConfigError(f"{target} already exists. Remove it, or choose another dst.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with Fetched(store, checkpoint, None) as fetched:
        partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{checkpoint.name}-"))
        try:
            for path in (FILENAME, *(e.path for e in fetched.manifest.files)):
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(fetched.path / path, partial / path)
            partial.chmod(0o755)
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial)
            raise
    return target
