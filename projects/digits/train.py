"""Train the network of Keras's save-and-restore tutorial on handwritten digits.

The same script with `--run-id` continues a run: its settings are the defaults, and
`MlflowCheckpoint` finds the newest checkpoint and goes on from there, with the next samples:
their order depends on the seed and the epoch alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import data
import keras
import mlflow

from mlflow_ckpt import EpochData, Every, Keep, MlflowCheckpoint
from mlflow_ckpt.report import print_run_summary

sys.path.append(str(Path(__file__).resolve().parents[1]))
from common import Command, Finite, Whole, continues_run, log_settings


def build_model(pixels: int, learning_rate: float = 0.001) -> keras.Model:
    """Dense 512, Dropout 0.2, Dense 10: one logit per digit."""
    model = keras.Sequential(
        [
            keras.Input((pixels,)),
            keras.layers.Dense(512, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


@click.command(cls=Command)
@continues_run
@click.option("--dataset", type=click.Choice(["digits", "mnist"]), default="digits")
@click.option("--epochs", type=Whole(min=1), default=20)
@click.option("--batch-size", type=Whole(min=1), default=32)
@click.option("--learning-rate", type=Finite(min=0, min_open=True), default=0.001)
@click.option("--save-every", type=Whole(min=1), default=1, help="In epochs.")
@click.option("--keep-last", type=Whole(min=1), default=5)
@click.option("--seed", type=Whole(min=0, max=2**32 - 1), default=0)
def train(
    run_id: str | None,
    dataset: str,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    save_every: int,
    keep_last: int,
    seed: int,
) -> None:
    """Train on the digits, or go on with a run that was cut short."""
    keras.utils.set_random_seed(seed)
    (x, y), validation = data.hold_out(data.load(dataset)[0])
    model = build_model(x.shape[1], learning_rate)

    with mlflow.start_run(run_id=run_id) as run:
        log_settings()
        model.fit(
            EpochData(x, y, batch_size=batch_size, seed=seed),
            epochs=epochs,
            validation_data=validation,
            validation_batch_size=batch_size,
            callbacks=[
                MlflowCheckpoint(save_freq=Every(epochs=save_every), keep=Keep(last=keep_last)),
            ],
        )

    print_run_summary(run.info.run_id)


if __name__ == "__main__":
    train()
