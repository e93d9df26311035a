"""Keras file formats: which file of a checkpoint holds what, and Keras's own way to write it.

    data/model.keras         a whole model, as `keras.saving.load_model` reads it
    data/model.weights.h5    weights and optimizer, with data/config.json where the model has one

Legacy `.h5` is never written from a live model: Keras's writer pops the optimizer out
of the model's own compile config. `exporting.py` writes it from a reloaded copy.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import members
from mlflow_ckpt.errors import SaveFailed
from mlflow_ckpt.say import first_line

MODEL, WEIGHTS, CONFIG, MEMBER = members.MODEL, members.WEIGHTS, members.CONFIG, members.MEMBER


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
        raise unserializable(model, error) from error
    _sync(path)


def write_weights(model: keras.Model, directory: Path) -> None:
    """Write `data/model.weights.h5`, and `data/config.json` where the model serialises.

    A subclassed model without `get_config` has no config: `load_weights` is its way back.

    Raises:
        SaveFailed: If a layer stores what Keras cannot write.
    """
    path = directory / WEIGHTS
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.save_weights(path)
    except (TypeError, ValueError) as error:
        raise SaveFailed(
            f"Keras could not write the model {model.name!r}: {first_line(error)}", reason=error
        ) from error
    _sync(path)
    if (config := serialized_or_none(model)) is not None:
        (directory / CONFIG).write_text(json.dumps(config), encoding="utf-8")


def serialized_or_none(model: keras.Model) -> dict[str, Any] | None:
    """The model's config with its compile config, or `None` if its class has no `get_config`."""
    try:
        config = keras.saving.serialize_keras_object(model)
        json.dumps(config)
    except (NotImplementedError, TypeError, ValueError):
        return None
    return dict(config)


def unserializable(model: keras.Model, error: Exception) -> SaveFailed:
    """What to raise when Keras refuses to write a model whole."""
    return SaveFailed(
        f"Keras could not write the model {model.name!r} whole: {first_line(error)} "
        "Give its class get_config(), or pass save_weights_only=True.",
        reason=error,
    )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
