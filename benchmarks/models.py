"""The model that is trained, its data, and one timed `fit`.

A stack of equal Dense layers with Adam: its state is the weights and two slots of the same
size, so that `mib` alone says how large a checkpoint is. Sizes are MiB (2**20 bytes).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

LAYERS = 6
_FLOAT = 4


def mlp(mib: float, *, trained: bool = True) -> keras.Model:
    """A model whose weights, and Adam's two slots if `trained`, take `mib` MiB.

    A model that is not `trained` is not compiled either: all its state is weights.
    """
    keras.utils.set_random_seed(0)
    copies = 3 if trained else 1
    parameters = mib * 2**20 / (_FLOAT * copies)
    width = max(4, round((math.sqrt(1 + 4 * parameters / LAYERS) - 1) / 2))
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(LAYERS - 1)]
    model = keras.Sequential([keras.Input((width,)), *layers, keras.layers.Dense(width)])
    if trained:
        # A tiny rate: the steps of the thousandth batch must cost what those of the first did.
        model.compile(keras.optimizers.Adam(1e-5), "mse")
        model.optimizer.build(model.trainable_variables)
    return model


def state(model: keras.Model) -> list[np.ndarray[Any, Any]]:
    """Copies of all tensors that a checkpoint of the model holds."""
    variables = list(model.weights) + list(model.optimizer.variables if model.optimizer else ())
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def batch_size(mib: float) -> int:
    """Rows of a batch that let a step keep two cores busy for about 100 ms."""
    return 64 if mib < 512 else 16


def data(model: keras.Model, mib: float) -> tf.data.Dataset:
    """One batch for ever: no input pipeline competes with what is measured."""
    shape = (batch_size(mib), model.input_shape[-1])
    rows = np.random.default_rng(0).random(shape, dtype=np.float32)
    return tf.data.Dataset.from_tensors((rows, rows)).repeat()


def fit(
    model: keras.Model,
    dataset: tf.data.Dataset,
    *,
    epochs: int,
    steps: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> float:
    """Train and return the seconds that the whole `fit` took."""
    began = time.perf_counter()
    model.fit(dataset, epochs=epochs, steps_per_epoch=steps, callbacks=list(callbacks), verbose=0)
    return time.perf_counter() - began
