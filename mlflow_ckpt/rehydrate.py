"""Bring a model back from the files of a checkpoint, which must be verified before."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.errors import ArchitectureMissing, ModelMismatch, ModelNotLoadable
from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS, first_line


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
            f"Keras could not rebuild the model of {source}: {first_line(error)} "
            "A custom class goes into custom_objects={'Name': Name}; safe_mode=False runs code "
            "stored in the file and is for files you trust."
        ) from error


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
        raise ModelMismatch(f"The model does not fit {source}: {first_line(error)}") from error


def _extract_weights(directory: Path) -> Path:
    """Take the weights out of the `.keras` archive; Keras stores them uncompressed."""
    with zipfile.ZipFile(directory / MODEL) as archive:
        info = archive.getinfo(MEMBER)
        if info.compress_type != zipfile.ZIP_STORED:
            raise ModelNotLoadable(f"Expected {MEMBER} to be stored uncompressed in {MODEL}.")
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
            raise ModelMismatch(f"The model does not fit {source}: {first_line(error)}") from error
    for warning in caught:
        if "Skipping variable loading" in str(warning.message):
            raise ModelMismatch(f"The model does not fit {source}: {warning.message}")
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
