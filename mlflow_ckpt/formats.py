"""Keras file formats: which file of a checkpoint holds what, and how to read it back.

    data/model.keras         a whole model, as `keras.saving.load_model` reads it
    data/model.weights.h5    weights and optimizer, with data/config.json where the model has one

Legacy `.h5` is never written from a live model: Keras's writer pops the optimizer out
of the model's own compile config. `export.py` writes it from a reloaded copy.
"""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.errors import (
    ArchitectureMissing,
    ModelMismatch,
    ModelNotLoadable,
    SaveFailed,
)

MODEL = "data/model.keras"
WEIGHTS = "data/model.weights.h5"
CONFIG = "data/config.json"
_MEMBER = "model.weights.h5"


def write_model(model: keras.Model, directory: Path) -> None:
    """Write `data/model.keras`.

    Raises:
        SaveFailed: If the model does not serialise.
    """
    path = directory / MODEL
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save(path)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise SaveFailed(
            f"Keras could not write the model {model.name!r} whole: {_first_line(error)} "
            "Give its class get_config(), or pass save_weights_only=True.",
            reason=error,
        ) from error
    _sync(path)


def write_weights(model: keras.Model, directory: Path) -> None:
    """Write `data/model.weights.h5`, and `data/config.json` where the model serialises.

    A subclassed model without `get_config` has no config: `load_weights` is its way back.
    """
    path = directory / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(path)
    _sync(path)
    try:
        config = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError):
        return
    (directory / CONFIG).write_text(config, encoding="utf-8")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read_model(
    directory: Path,
    *,
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
    source: str,
    recorded: Mapping[str, Any],
) -> keras.Model:
    """Rebuild the model that the verified files below `directory` hold.

    Args:
        recorded: Its fingerprint, which says whether an optimizer had any state to restore.

    Raises:
        ArchitectureMissing: If only weights were stored, and no config.
        ModelNotLoadable: If Keras cannot or, in safe mode, will not rebuild it.
    """
    whole, config = directory / MODEL, directory / CONFIG
    never_trained = not any(o["trains"] for o in recorded.get("optimizers", []))
    try:
        if whole.exists():
            with warnings.catch_warnings():
                if never_trained:
                    # Keras builds the optimizer, finds no state for it and warns; there was none.
                    warnings.filterwarnings("ignore", message="Skipping variable loading")
                return keras.saving.load_model(
                    whole, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
                )
        if not config.exists():
            raise ArchitectureMissing(
                f"{source} holds weights only, and its model has no config to rebuild it from. "
                "Build the model yourself and call: load_weights(model, run_id, which)"
            )
        raw = json.loads(config.read_text(encoding="utf-8"))
        if not compile:
            raw["compile_config"] = None
        model = keras.saving.deserialize_keras_object(
            raw, custom_objects=custom_objects, safe_mode=safe_mode
        )
        model.load_weights(directory / WEIGHTS)
        return model
    except (TypeError, ValueError, RuntimeError, zipfile.BadZipFile, OSError) as error:
        if isinstance(error, ArchitectureMissing):
            raise
        raise ModelNotLoadable(
            f"Keras could not rebuild the model of {source}: {_first_line(error)} "
            "A custom class goes into custom_objects={'Name': Name}; safe_mode=False runs code "
            "stored in the file and is for files you trust."
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0]
    return text if text.endswith(".") else f"{text}."


def load_weights(model: keras.Model, directory: Path, *, source: str) -> None:
    """Load the stored weights, and nothing else, into `model`: no optimizer state.

    Raises:
        ModelMismatch: If a layer refuses its variables.
    """
    path = directory / WEIGHTS
    if not path.exists():
        path = _extract_weights(directory)
    optimizers = [optimizer for _, optimizer in fingerprint.optimizers_of(model)]
    try:
        with keras_internals.regarded_as_built(model):
            keras.saving.load_weights(model, path, objects_to_skip=optimizers)
    except (ValueError, KeyError) as error:
        raise ModelMismatch(f"The model does not fit {source}: {_first_line(error)}") from error


def _extract_weights(directory: Path) -> Path:
    """Take the weights out of the `.keras` archive; Keras stores them uncompressed."""
    with zipfile.ZipFile(directory / MODEL) as archive:
        info = archive.getinfo(_MEMBER)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ModelNotLoadable(f"Expected {_MEMBER} to be stored uncompressed in {MODEL}.")
        return Path(archive.extract(info, directory / "extracted"))


def load_training_state(model: keras.Model, directory: Path, *, source: str) -> None:
    """Load weights and the state of every optimizer into `model`, whose optimizers are built.

    Raises:
        ModelMismatch: If Keras leaves an optimizer out instead of filling it.
    """
    path = directory / MODEL
    if not path.exists():
        path = directory / WEIGHTS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with keras_internals.regarded_as_built(model):
                keras_internals.load_whole_state(model, str(path))
        except (ValueError, KeyError) as error:
            raise ModelMismatch(f"The model does not fit {source}: {_first_line(error)}") from error
    for warning in caught:
        if "Skipping variable loading" in str(warning.message):
            raise ModelMismatch(f"The model does not fit {source}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
