"""A training slow enough to be hit anywhere: run by test_fault_signals.py, here or as a process.

python signal_script.py <tracking URI> <run ID> <epochs> <seconds a batch> <grace> [series]...

A process prints `begun` once its first epoch begins, `batch` after each batch, `test` after
each one of a validation, `epoch` after each epoch, and `returned` once `fit` has come back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import mlflow
from builders import data, mlp

from mlflow_ckpt import Every, Interrupt, Keep, MlflowCheckpoint, Spool

BATCH, BATCHES = 16, 4

Tell = Callable[[str], object]


class OfThisProcess(keras.callbacks.Callback):
    """A callback whose memory is no part of a checkpoint."""

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Each process speaks for itself."""


class Pace(OfThisProcess):
    """Take so many seconds for each batch, and say how far this process is."""

    def __init__(self, seconds: float, tell: Tell) -> None:
        super().__init__()
        self._seconds = seconds
        self._tell = tell
        self._begun = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not self._begun:
            self._begun = True
            self._tell("begun")

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        time.sleep(self._seconds)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tell("batch")

    def on_test_batch_begin(self, batch: int, logs: Any = None) -> None:
        time.sleep(self._seconds)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tell("test")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._tell("epoch")


def train(
    run_id: str,
    *more: keras.callbacks.Callback,
    epochs: int = 2,
    seconds: float = 0.0,
    grace: float = 30.0,
    series: Sequence[str] = ("ckpt",),
    tell: Tell = lambda word: None,
    model: keras.Model | None = None,
    **arguments: Any,
) -> keras.Model:
    """Train in a run, as a script does that is started again and again.

    Args:
        model: `None` seeds and builds one.
    """
    if model is None:
        model = seeded()
    x, y = data()
    given = {"x": x, "y": y, "batch_size": BATCH, "validation_data": (x, y)} | arguments
    with mlflow.start_run(run_id=run_id):
        model.fit(
            **given,
            epochs=epochs,
            validation_batch_size=BATCH,
            verbose=0,
            callbacks=[
                Pace(seconds, tell),
                keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, cooldown=1),
                *(checkpoint(name, grace) for name in series),
                *more,
            ],
        )
        tell("returned")
    return model


def seeded(build: Callable[[], keras.Model] = mlp) -> keras.Model:
    keras.utils.set_random_seed(3)
    return build()


def checkpoint(name: str, grace: float) -> MlflowCheckpoint:
    return MlflowCheckpoint(
        name=name,
        save_freq=Every(epochs=2),
        keep=Keep(last=3, best=1),
        interrupt=Interrupt(grace_seconds=grace),
        spool=Spool(drain_timeout=60.0),
    )


def main(uri: str, run_id: str, epochs: str, seconds: str, grace: str, *series: str) -> None:
    mlflow.set_tracking_uri(uri)
    train(
        run_id,
        epochs=int(epochs),
        seconds=float(seconds),
        grace=float(grace),
        series=series or ("ckpt",),
        tell=lambda word: print(word, flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
