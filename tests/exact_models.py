"""Models that the exact-resume matrix trains: each holds state that a resume can lose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from builders import CLASSES, FEATURES, Gan, Subclassed
from exact_cells import EPOCHS, SAMPLES, Cell

VALIDATION = 16


class Kind(NamedTuple):
    """How to make one and what it is fed.

    Attributes:
        build: Makes the model; the argument is what it is compiled with besides a loss.
        shape: Of one sample.
        monitor: What its callbacks look at.
        labels: Whether it has any; without labels there is no validation.
    """

    build: Callable[[Cell], keras.Model]
    shape: tuple[int, ...] = (FEATURES,)
    monitor: str = "val_loss"
    labels: bool = True


def samples(cell: Cell, count: int, seed: int) -> tuple[Any, Any]:
    """Inputs and labels for a cell's model, the same at every call."""
    generator = np.random.default_rng(seed)
    x = generator.random((count, *KINDS[cell.model].shape), dtype=np.float32)
    return x, (x.reshape(count, -1)[:, :3].sum(axis=1) * 10).astype(np.int64) % CLASSES


def compiled(model: keras.Model, cell: Cell, optimizer: Any) -> keras.Model:
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=[] if cell.weights == "none" else ["accuracy"],
        steps_per_execution=cell.steps_per_execution,
    )
    return model


def adam(cell: Cell, **arguments: Any) -> keras.optimizers.Optimizer:
    """Adam, with the moving average that SwapEMAWeights needs."""
    if cell.callbacks == "swap":
        arguments |= {"use_ema": True, "ema_momentum": 0.9}
    return keras.optimizers.Adam(0.01, **arguments)


def _mlp(cell: Cell) -> keras.Model:
    layers = [
        keras.Input((FEATURES,)),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(CLASSES),
    ]
    return compiled(keras.Sequential(layers), cell, adam(cell))


def _convnet(cell: Cell) -> keras.Model:
    """Augmentation, batch statistics, a moving average, and a rate that falls by the batch."""
    layers = [
        keras.Input(KINDS["convnet"].shape),
        keras.layers.RandomFlip(),
        keras.layers.RandomTranslation(0.1, 0.1),
        keras.layers.GaussianNoise(0.05),
        keras.layers.Conv2D(4, 3),
        keras.layers.BatchNormalization(momentum=0.9),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(CLASSES),
    ]
    rate = keras.optimizers.schedules.CosineDecay(0.05, EPOCHS * SAMPLES // 8)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, use_ema=True, ema_momentum=0.9)
    return compiled(keras.Sequential(layers), cell, optimizer)


def _lstm(cell: Cell) -> keras.Model:
    layers = [
        keras.Input(KINDS["lstm"].shape),
        keras.layers.LSTM(6, dropout=0.1, recurrent_dropout=0.2),
        keras.layers.Dense(CLASSES),
    ]
    return compiled(keras.Sequential(layers), cell, adam(cell))


def _mixed(cell: Cell) -> keras.Model:
    """Half precision, with a loss scale that grows every fifth batch."""
    keras.config.set_dtype_policy("mixed_float16")
    layers = [
        keras.Input((FEATURES,)),
        keras.layers.Dense(8, activation="relu"),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(CLASSES, dtype="float32"),
    ]
    scaled = keras.optimizers.LossScaleOptimizer(
        adam(cell), initial_scale=1024.0, dynamic_growth_steps=5
    )
    return compiled(keras.Sequential(layers), cell, scaled)


def _gan(cell: Cell) -> keras.Model:
    model = Gan()
    model.compile(keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.01))
    return model


def _shared(cell: Cell) -> keras.Model:
    """One layer twice, under gradients that are gathered over five batches."""
    inputs = keras.Input((FEATURES,))
    again = keras.layers.Dense(FEATURES, activation="relu")
    hidden = keras.layers.Dropout(0.2)(again(again(inputs)))
    model = keras.Model(inputs, keras.layers.Dense(CLASSES)(hidden))
    return compiled(model, cell, adam(cell, gradient_accumulation_steps=5))


def _subclassed(cell: Cell) -> keras.Model:
    """It has no variables before its first batch."""
    return compiled(Subclassed(units=6), cell, adam(cell, clipnorm=1.0))


KINDS: Mapping[str, Kind] = {
    "convnet": Kind(_convnet, (8, 8, 1)),
    "gan": Kind(_gan, monitor="d_loss", labels=False),
    "lstm": Kind(_lstm, (5, 4)),
    "mixed": Kind(_mixed),
    "mlp": Kind(_mlp),
    "shared": Kind(_shared),
    "subclassed": Kind(_subclassed),
}
