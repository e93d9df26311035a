"""Copy a checkpoint here, whole and verified.

Apart from `loader.py`, because bytes are copied without Keras, whose import costs seconds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.fetched import bring, first_whole
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store


def download(run_id: str, which: str | Selector, dst: str | os.PathLike[str]) -> Path:
    """Copy a whole checkpoint to `<dst>/<name>`, verified before it appears there.

    Returns:
        The folder, which `mlflow.keras.load_model` reads as it is.

    Raises:
        ConfigError: If the folder already exists.
        DigestMismatch: If a file is not the committed one; nothing appears at `dst`.
    """
    return pull(run_id, which, dst)[1]


def pull(
    run_id: str, which: str | Selector, dst: str | os.PathLike[str]
) -> tuple[Checkpoint, Path]:
    """`download`, and which checkpoint it was."""
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

    return first_whole(store, store.run(run_id), Selector.parse(which), take)
