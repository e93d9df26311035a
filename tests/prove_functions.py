"""Training functions that test_testing.py proves, in processes of their own.

Each trains three epochs of two batches, so that the checkpoints stand after batch 2, 4 and 6.
"""

from __future__ import annotations

import os
from typing import Any

import keras
import mlflow
from builders import fit, mlp

from mlflow_ckpt import MlflowCheckpoint


def train(*callbacks: Any, **arguments: Any) -> None:
    keras.utils.set_random_seed(3)
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint(), *callbacks, **arguments)


def sound() -> None:
    train()


class Nudge(keras.callbacks.Callback):
    """Moves one weight by a little in a process that resumed, after the first epoch it trains."""

    def on_train_begin(self, logs: Any = None) -> None:
        run = mlflow.active_run()
        self.resumed = "loss" in run.data.metrics  # what start_run() read from the server

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.resumed:
            kernel = self.model.weights[0]
            kernel.assign(kernel + 1e-6)


def nudged() -> None:
    train(Nudge())


def from_scratch() -> None:
    """Nothing of what an earlier process saved is found: the end is exact all the same."""
    client = mlflow.MlflowClient()
    run = client.get_run(os.environ["MLFLOW_RUN_ID"])
    for model in client.search_logged_models([run.info.experiment_id]):
        if model.source_run_id == run.info.run_id:
            client.set_logged_model_tags(model.model_id, {"ckpt.complete": "hidden"})
    train()


def another_series() -> None:
    """Every process writes a series of its own."""
    keras.utils.set_random_seed(3)
    with mlflow.start_run() as run:
        known = [tag for tag in run.data.tags if tag.startswith("ckpt.series.")]
        fit(mlp(), MlflowCheckpoint(name=f"ckpt{len(known)}"))


def unseeded() -> None:
    with mlflow.start_run():
        fit(mlp(), MlflowCheckpoint())


def failing() -> None:
    raise RuntimeError("there is no data today")


def without_checkpoints() -> None:
    fit(mlp())


def two_series() -> None:
    """A head, then all of it: with a model, and a series, of its own."""
    keras.utils.set_random_seed(3)
    with mlflow.start_run():
        model = mlp()
        fit(model, MlflowCheckpoint(name="head"), epochs=2)
        model.compile(keras.optimizers.SGD(0.1), loss=model.loss)
        fit(model, MlflowCheckpoint(name="all", monitor="loss"), epochs=3)


def in_pairs() -> None:
    """Two batches in one call of the train step; four per epoch."""
    keras.utils.set_random_seed(3)
    with mlflow.start_run():
        fit(mlp(steps_per_execution=2), MlflowCheckpoint(), epochs=2, batch_size=16)
