"""The callbacks that are compared, each as its own documentation says to use it.

Every entry opens a callback that saves at each epoch's end into a folder of its own, and
closes what it opened. A peer that is not installed, or fails on these versions, is named
in the report with its error.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import mlflow

from mlflow_ckpt import Keep, MlflowCheckpoint

OURS = "mlflow_ckpt"
CONTROL = "without"
KERAS = "Keras ModelCheckpoint .keras"
_ORBAX = ("orbax.checkpoint", "jax")

Opened = AbstractContextManager[keras.callbacks.Callback]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One callback to compare.

    Attributes:
        name: How the report calls it.
        open: Makes the callback; leaving the context closes what it needed.
        needs: Packages it cannot do without.
        own_model: Whether it damages the model it saves, so that it must get one of its own.
    """

    name: str
    open: Callable[[Path], Opened]
    needs: tuple[str, ...] = ()
    own_model: bool = False

    @property
    def missing(self) -> str | None:
        """The package that is not installed, or `None`."""
        return next((name for name in self.needs if not _installed(name)), None)


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def use_store(folder: Path) -> str:
    """Point MLflow at an sqlite database in `folder`, artifacts and spool beside it."""
    os.environ["MLFLOW_CKPT_SPOOL"] = str(folder / "spool")
    return use_server(f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri())


def use_server(uri: str, artifacts: str | None = None) -> str:
    """Point MLflow at a tracking server and a new experiment there; returns the latter's ID."""
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient()
    name = f"bench-{len(client.search_experiments())}"
    experiment_id: str = client.create_experiment(name, artifact_location=artifacts)
    mlflow.set_experiment(experiment_id=experiment_id)
    return experiment_id


def is_ours(callback: keras.callbacks.Callback) -> bool:
    """Whether this package put the callback into the list."""
    return type(callback).__module__.partition(".")[0] == "mlflow_ckpt"


def statistics_of(callback: keras.callbacks.Callback) -> dict[str, Any]:
    """What `MlflowCheckpoint.stats()` says of itself, to be held against the stopwatch."""
    if not isinstance(callback, MlflowCheckpoint):
        return {}
    stats = callback.stats()
    return {
        "strategy": str(stats.strategy),
        "hook_ms": [float(value) for value in stats.hook_ms],
        "stall_ms": [float(value) for value in stats.stall_ms],
        "lag_s": [float(value) for value in stats.lag_s],
        "skipped": int(stats.skipped),
    }


@contextmanager
def ours(
    folder: Path, *, last: int = 1, save_freq: Any = "epoch"
) -> Iterator[keras.callbacks.Callback]:
    """`MlflowCheckpoint` in a new run of the current store. No monitor: nothing is ranked."""
    with mlflow.start_run():
        keep = Keep(last=last, best=None)
        yield MlflowCheckpoint(monitor=None, keep=keep, save_freq=save_freq)


@contextmanager
def keras_model(folder: Path) -> Iterator[keras.callbacks.Callback]:
    yield keras.callbacks.ModelCheckpoint(str(folder / "model.keras"))


@contextmanager
def _keras_weights(folder: Path) -> Iterator[keras.callbacks.Callback]:
    path = str(folder / "model.weights.h5")
    yield keras.callbacks.ModelCheckpoint(path, save_weights_only=True)


@contextmanager
def _backup(folder: Path) -> Iterator[keras.callbacks.Callback]:
    yield keras.callbacks.BackupAndRestore(str(folder / "backup"))


def _orbax(background: bool) -> Callable[[Path], Opened]:
    @contextmanager
    def opened(folder: Path) -> Iterator[keras.callbacks.Callback]:
        yield keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"), save_on_background=background)

    return opened


def _mlflow_callback(weights_only: bool) -> Callable[[Path], Opened]:
    @contextmanager
    def opened(folder: Path) -> Iterator[keras.callbacks.Callback]:
        from mlflow.tensorflow import MlflowModelCheckpointCallback

        with mlflow.start_run():
            yield MlflowModelCheckpointCallback(
                save_best_only=False, save_weights_only=weights_only
            )

    return opened


class LogModel(keras.callbacks.Callback):
    """`mlflow.keras.log_model` at each epoch's end, as MLflow's guide to Keras writes it."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        import mlflow.keras

        mlflow.keras.log_model(self.model, name=f"epoch-{epoch}")


@contextmanager
def _log_model(folder: Path) -> Iterator[keras.callbacks.Callback]:
    with mlflow.start_run():
        yield LogModel()


@contextmanager
def _wandb(folder: Path) -> Iterator[keras.callbacks.Callback]:
    import wandb
    from wandb.integration.keras import WandbModelCheckpoint

    with wandb.init(mode="offline", project="bench", dir=str(folder)):
        yield WandbModelCheckpoint(str(folder / "model.keras"))


VARIANTS: tuple[Variant, ...] = (
    Variant(name=OURS, open=ours),
    Variant(name=KERAS, open=keras_model),
    Variant(name="Keras ModelCheckpoint .weights.h5", open=_keras_weights),
    Variant(name="Keras BackupAndRestore", open=_backup),
    Variant(name="Keras OrbaxCheckpoint, asynchronous", open=_orbax(True), needs=_ORBAX),
    Variant(name="Keras OrbaxCheckpoint, synchronous", open=_orbax(False), needs=_ORBAX),
    Variant(name="MLflow checkpoint callback .h5", open=_mlflow_callback(False), own_model=True),
    Variant(name="MLflow checkpoint callback, weights", open=_mlflow_callback(True)),
    Variant(name="mlflow.keras.log_model", open=_log_model),
    Variant(name="W&B WandbModelCheckpoint, offline", open=_wandb, needs=("wandb",)),
)  # fmt: skip
