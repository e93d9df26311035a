"""Write a checkpoint in the formats that other tools read, from a reloaded copy.

Never from the live model: Keras's legacy HDF5 writer pops the optimizer out of the
model's own compile config. TensorFlow is imported only for its own two formats.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import keras

from mlflow_ckpt import progress
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.loader import open_model
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.say import errors_only
from mlflow_ckpt.selector import Selector

Format = Literal["keras", "weights", "h5", "saved_model", "tf"]

_SUFFIX: Mapping[str, str] = {"keras": ".keras", "weights": ".weights.h5", "h5": ".h5"}


def export(
    run_id: str,
    which: str | Selector,
    dst: str | os.PathLike[str],
    *,
    format: Format = "keras",
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> Path:
    """Write a checkpoint to `dst` in one of five formats.

    | format        | `dst` is                       | read it with                              |
    |---------------|--------------------------------|-------------------------------------------|
    | `keras`       | a file ending in `.keras`      | `keras.saving.load_model(dst)`            |
    | `weights`     | a file ending in `.weights.h5` | `model.load_weights(dst)`                 |
    | `h5`          | a file ending in `.h5`         | `keras.saving.load_model(dst)`; with a    |
    |               |                                | loss given by name pass `compile=False`   |
    | `saved_model` | a folder                       | `tf.saved_model.load(dst).serve(x)`       |
    | `tf`          | a prefix (`.index`, `.data-…`) | `tf.train.Checkpoint(model=m).restore(dst)` |

    Returns:
        `dst` as a path.

    Raises:
        ConfigError: If the format is unknown, `dst` has another suffix, or exists.
        ModelNotLoadable, ArchitectureMissing, DigestMismatch: As `load_model`.
    """
    return write(
        run_id, which, dst, format=format, custom_objects=custom_objects, safe_mode=safe_mode
    )[1]


def write(
    run_id: str,
    which: str | Selector,
    dst: str | os.PathLike[str],
    *,
    format: Format,
    custom_objects: Mapping[str, Any] | None = None,
    safe_mode: bool = True,
) -> tuple[Checkpoint, Path]:
    """`export`, and which checkpoint it was."""
    if format not in get_args(Format):
        raise ConfigError(
            f"Expected one of {', '.join(get_args(Format))}. Received: format={format!r}"
        )
    target = Path(dst)
    _check_target(target, format)
    checkpoint, model = open_model(
        run_id, which, custom_objects=custom_objects, safe_mode=safe_mode
    )
    progress.turn_to(f"writing {target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        _WRITERS[format](model, partial / target.name)
        for path in sorted(partial.iterdir()):
            if path.name.startswith(target.name):
                path.rename(target.parent / path.name)
    finally:
        shutil.rmtree(partial)
    return checkpoint, target


def _check_target(target: Path, format: str) -> None:
    suffix = _SUFFIX.get(format, "")
    if not target.name.endswith(suffix) or (format == "h5" and target.name.endswith(".weights.h5")):
        raise ConfigError(
            f"format={format!r} writes a file ending in {suffix!r}. Received: dst={str(target)!r}"
        )
    taken = [target, target.with_name(target.name + ".index")]
    if any(path.exists() for path in taken):
        raise ConfigError(f"{target} already exists. Remove it, or choose another dst.")


def _write_h5(model: keras.Model, path: Path) -> None:
    # Keras calls the format legacy, through absl; whoever asks for it knows.
    with errors_only("absl"):
        keras.saving.save_model(model, path)


def _write_saved_model(model: keras.Model, path: Path) -> None:
    model.export(path, verbose=False)


def _write_tf(model: keras.Model, path: Path) -> None:
    import tensorflow as tf

    tf.train.Checkpoint(model=model).write(str(path))


_WRITERS: Mapping[str, Callable[[keras.Model, Path], object]] = {
    "keras": lambda model, path: model.save(path),
    "weights": lambda model, path: model.save_weights(path),
    "h5": _write_h5,
    "saved_model": _write_saved_model,
    "tf": _write_tf,
}
