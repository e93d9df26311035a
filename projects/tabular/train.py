"""Train a regularised MLP on a table with numbers and a category.

The preprocessing layers are part of the model, so that a served checkpoint takes raw values.
The same script with `--run-id` continues a run: its settings are the defaults, and
`MlflowCheckpoint` finds the newest checkpoint and goes on from there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import data
import keras
import mlflow
import numpy as np
from keras import layers

from mlflow_ckpt import Every, Keep, MlflowCheckpoint
from mlflow_ckpt.report import print_run_summary

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import Command, Finite, Whole, continues_run, log_settings


def build_model(
    measurements: np.ndarray[Any, Any], *, l2: float, dropout: float, learning_rate: float
) -> keras.Model:
    """Normalise the numbers, one-hot the category, and put an MLP behind both.

    Args:
        measurements: Training rows, from which `Normalization` takes mean and variance.
    """
    numbers = keras.Input((measurements.shape[1],), name="measurements")
    category = keras.Input((1,), name="size_class", dtype="int64")

    normalise = layers.Normalization()
    normalise.adapt(measurements)
    one_hot = layers.IntegerLookup(vocabulary=data.SIZE_CLASSES, output_mode="one_hot")

    x = layers.Concatenate()([normalise(numbers), one_hot(category)])
    for units in (64, 32):
        x = layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(l2))(x)
        x = layers.Dropout(dropout)(x)
    benign = layers.Dense(1, activation="sigmoid", name="benign")(x)

    model = keras.Model({"measurements": numbers, "size_class": category}, benign)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.BinaryCrossentropy(),
        metrics=["accuracy", keras.metrics.AUC(name="auc")],
    )
    return model


@click.command(cls=Command)
@continues_run
@click.option("--epochs", type=Whole(min=1), default=60)
@click.option("--batch-size", type=Whole(min=1), default=32)
@click.option("--learning-rate", type=Finite(min=0, min_open=True), default=0.001)
@click.option("--l2", type=Finite(min=0), default=0.001)
@click.option("--dropout", type=Finite(min=0, max=1, max_open=True), default=0.3)
@click.option("--patience", type=Whole(min=1), default=8, help="In epochs.")
@click.option("--save-every", type=Whole(min=1), default=1, help="In epochs.")
@click.option("--keep-last", type=Whole(min=1), default=5)
@click.option("--seed", type=Whole(min=0, max=2**32 - 1), default=0)
def train(
    run_id: str | None,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    l2: float,
    dropout: float,
    patience: int,
    save_every: int,
    keep_last: int,
    seed: int,
) -> None:
    """Train on the breast-cancer table, or go on with a run that was cut short."""
    keras.utils.set_random_seed(seed)
    rows, _ = data.load()
    x = data.inputs(rows)
    model = build_model(x["measurements"], l2=l2, dropout=dropout, learning_rate=learning_rate)

    with mlflow.start_run(run_id=run_id) as run:
        log_settings()
        model.fit(
            x,
            rows["target"].to_numpy(),
            epochs=epochs,
            batch_size=batch_size,
            validation_split=0.2,
            callbacks=[
                MlflowCheckpoint(save_freq=Every(epochs=save_every), keep=Keep(last=keep_last)),
                keras.callbacks.EarlyStopping(monitor="val_loss", patience=patience),
            ],
        )

    print_run_summary(run.info.run_id)


if __name__ == "__main__":
    train()
