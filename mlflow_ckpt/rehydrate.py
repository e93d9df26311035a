"""Bring a model back from the open, verified files of a checkpoint.

Tensors come out of a memory map (`mapped.py`), through Keras's own loading of each layer.
Where Keras has moved what that leans on, or the weights are of another kind, its public
loader reads a copy of the file instead; `mlflow_ckpt`'s log says why, at DEBUG.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.errors import ArchitectureMissing, ModelMismatch, ModelNotLoadable
from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS, first_line
from mlflow_ckpt.mapped import MappedWeights

_logger = logging.getLogger("mlflow_ckpt")

Files = Mapping[str, BinaryIO]


def read_model(
    files: Files,
    *,
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
    source: str,
    recorded: Mapping[str, Any],
) -> keras.Model:
    """Rebuild the model that verified files hold.

    Args:
        files: Open files by their path in the checkpoint.
        recorded: Its fingerprint, which says whether an optimizer had any state to restore.

    Raises:
        ArchitectureMissing: If only weights were stored, and no config.
        ModelNotLoadable: If Keras cannot or, in safe mode, will not rebuild it, or if a file
            is not what Keras writes.
    """
    if MODEL not in files and CONFIG not in files:
        raise ArchitectureMissing(
            f"{source} holds weights only, and its model has no config to rebuild it from. "
            "Build the model yourself and call: load_weights(model, run_id, which)"
        )
    read = _read_whole if MODEL in files else _read_parts
    never_trained = not any(o["trains"] for o in recorded.get("optimizers", []))
    try:
        with warnings.catch_warnings():
            if never_trained and MODEL in files:
                # Keras builds the optimizer, finds no state for it and warns; there was none.
                warnings.filterwarnings("ignore", message="Skipping variable loading")
            return read(files, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode)
    except (TypeError, ValueError, RuntimeError, LookupError, OSError, zipfile.BadZipFile) as error:
        if isinstance(error, ModelNotLoadable):
            raise
        raise ModelNotLoadable(
            f"Keras could not rebuild the model of {source}: {first_line(error)} "
            "A custom class goes into custom_objects={'Name': Name}; safe_mode=False runs code "
            "stored in the file and is for files you trust."
        ) from error


def _read_whole(files: Files, **options: Any) -> keras.Model:
    file = files[MODEL]
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if not _by_keras(None if MEMBER in names else f"{MODEL} has no {MEMBER}"):
            config = archive.read("config.json").decode("utf-8")
            with MappedWeights(file) as weights:
                return keras_internals.rebuild(config, weights, archive=archive, **options)
    with _copy(file, "model.keras") as path:
        return keras.saving.load_model(path, **options)


def _read_parts(files: Files, *, compile: bool, **options: Any) -> keras.Model:
    files[CONFIG].seek(0)
    config = files[CONFIG].read().decode("utf-8")
    if not _by_keras():
        with MappedWeights(files[WEIGHTS]) as weights:
            return keras_internals.rebuild(
                config, weights, archive=None, compile=compile, **options
            )
    raw = json.loads(config)
    if not compile:
        raw["compile_config"] = None
    model = keras.saving.deserialize_keras_object(raw, **options)
    with _copy(files[WEIGHTS], "model.weights.h5") as path:
        model.load_weights(path)
    return model


def load_weights(model: keras.Model, files: Files, *, source: str) -> None:
    """Load the stored weights, and nothing else, into `model`: no optimizer state.

    Raises:
        ModelMismatch: If a layer refuses its variables.
        ModelNotLoadable: If the file is not what Keras writes. Nothing was assigned.
    """
    optimizers = [optimizer for _, optimizer in fingerprint.optimizers_of(model)]
    try:
        with keras_internals.regarded_as_built(model):
            if not _by_keras():
                with MappedWeights(_weights_file(files)) as weights:
                    keras_internals.load_state(model, weights, skip=optimizers)
                return
            with _weights_copy(files) as path:
                keras.saving.load_weights(model, path, objects_to_skip=optimizers)
    except (ValueError, KeyError) as error:
        raise _mismatch(error, source) from error


def load_what_fits(model: keras.Model, files: Files, *, source: str) -> list[str]:
    """Load the weights of the layers that still fit, and return what was left out, in words.

    No optimizer state. Keras matches layers by their place in the model.

    Raises:
        ModelNotLoadable: If the file is not what Keras writes.
    """
    optimizers = [optimizer for _, optimizer in fingerprint.optimizers_of(model)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with keras_internals.regarded_as_built(model), _weights_copy(files) as path:
                keras.saving.load_weights(
                    model, path, skip_mismatch=True, objects_to_skip=optimizers
                )
        except (ValueError, KeyError) as error:
            raise _mismatch(error, source) from error
    left = ["the state of the optimizer, which starts anew"]
    for warning in caught:
        if "could not be loaded" in str(warning.message):
            left.insert(0, str(warning.message).partition("Example error")[0].strip(" ."))
    return left


def load_training_state(model: keras.Model, files: Files, *, source: str) -> None:
    """Load weights and the state of every optimizer into `model`, whose optimizers are built.

    Raises:
        ModelMismatch: If Keras leaves an optimizer out instead of filling it.
        ModelNotLoadable: If the file is not what Keras writes. Nothing was assigned.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with keras_internals.regarded_as_built(model):
                _load_everything(model, files)
        except (ValueError, KeyError) as error:
            raise _mismatch(error, source) from error
    for warning in caught:
        if "Skipping variable loading" in str(warning.message):
            raise ModelMismatch(f"The model does not fit {source}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _load_everything(model: keras.Model, files: Files) -> None:
    if not _by_keras():
        with MappedWeights(_weights_file(files)) as weights:
            keras_internals.load_state(model, weights)
        return
    with _weights_copy(files) as path:
        keras_internals.load_whole_state(model, str(path))


def _mismatch(error: Exception, source: str) -> Exception:
    if isinstance(error, ModelNotLoadable):
        return error
    return ModelMismatch(f"The model does not fit {source}: {first_line(error)}")


# --- Keras's own loader -------------------------------------------------------


def _by_keras(reason: str | None = None) -> bool:
    """Whether Keras's public loader must read the files, for `reason` or for a moved seam."""
    reason = reason or keras_internals.missing_seams()
    if reason is not None:
        _logger.debug("Keras's own loader reads the checkpoint, not the map: %s.", reason)
    return reason is not None


def _weights_file(files: Files) -> BinaryIO:
    return files[WEIGHTS] if WEIGHTS in files else files[MODEL]


@contextmanager
def _weights_copy(files: Files) -> Iterator[Path]:
    """A `.weights.h5` on disk: Keras skips objects in no other file."""
    if WEIGHTS in files:
        with _copy(files[WEIGHTS], "model.weights.h5") as path:
            yield path
        return
    with (
        zipfile.ZipFile(files[MODEL]) as archive,
        archive.open(MEMBER) as member,
        _copy(member, "model.weights.h5") as path,
    ):
        yield path


@contextmanager
def _copy(file: Any, name: str) -> Iterator[Path]:
    """The content of an open file under a path of its own, which nobody else can change."""
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        path = Path(folder) / name
        file.seek(0)
        with path.open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
        yield path
