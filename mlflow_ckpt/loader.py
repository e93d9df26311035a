"""Bring a checkpoint of a run back: resolve, fetch, verify, rehydrate.

    selector -> resolve -> Checkpoint -> fetch -> verified open files -> rehydrate -> model

Nothing is parsed before its digest is right, and nothing is assigned before the
checkpoint was held against the model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import keras

from mlflow_ckpt import fingerprint, formats, rehydrate
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.parcel import manifest_of
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.resolver import resolve
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store


class Fetched:
    """Verified files of one checkpoint; a context manager.

    Args:
        wanted: Paths in the checkpoint; those that it does not have are left out.
        in_place: Whether to read a local artifact store's own files, without a copy. Use
            `files` then: what lies below `path` is not all there.

    Attributes:
        files: Each file, open for reading, by its path in the checkpoint.
        path: A private folder with the copies; where the checkpoint lies on this machine,
            that.
    """

    def __init__(
        self,
        store: Store,
        checkpoint: Checkpoint,
        wanted: Sequence[str],
        *,
        in_place: bool = False,
    ) -> None:
        self.source = f"checkpoint {checkpoint.name} of run {checkpoint.run_id}"
        with ExitStack() as undo:
            self.files: Mapping[str, BinaryIO]
            if checkpoint.local is not None:
                self.path = checkpoint.local
                self.manifest = manifest_of(checkpoint.local, checkpoint.digest)
                entries = [e for path in wanted if (e := self.manifest.entry(path))]
                self.files = {
                    entry.path: undo.enter_context(entry.open(checkpoint.local))
                    for entry in entries
                }
                self._close = undo.pop_all()
                return
            self.path = Path(undo.enter_context(TemporaryDirectory(prefix="mlflow-ckpt-")))
            self.manifest = store.manifest(checkpoint, self.path)
            self.files = store.fetch(
                checkpoint, self.manifest, wanted, self.path, in_place=in_place
            )
            for file in self.files.values():
                undo.callback(file.close)
            self._close = undo.pop_all()

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()


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
    with Fetched(store, checkpoint, _MODEL_FILES, in_place=True) as fetched:
        return rehydrate.read_model(
            fetched.files,
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
    with Fetched(store, checkpoint, _MODEL_FILES, in_place=True) as fetched:
        fingerprint.check_architecture(model, fetched.manifest.model, source=fetched.source)
        rehydrate.load_weights(model, fetched.files, source=fetched.source)
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
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{checkpoint.name}-"))
    try:
        manifest = store.manifest(checkpoint, partial)
        paths = [entry.path for entry in manifest.files]
        for file in store.fetch(checkpoint, manifest, paths, partial).values():
            file.close()
        partial.chmod(0o755)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial)
        raise
    return target
