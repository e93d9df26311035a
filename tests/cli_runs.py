"""A run with checkpoints, and one without, for tests of the command line."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import keras
import mlflow
from builders import fit, mlp

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, MlflowCheckpoint


@dataclass(frozen=True)
class Trained:
    """A database with a run that has checkpoints and one that has none."""

    uri: str
    run_id: str
    empty: str


def train(folder: Path, empty_database: Path) -> Trained:
    """Two checkpoints of a fit, one saved by hand in a series of its own."""
    shutil.copy(empty_database, folder / "runs.db")
    uri = f"sqlite:///{folder / 'runs.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("cli", (folder / "artifacts").as_uri())
    keras.utils.set_random_seed(7)
    with mlflow.start_run(experiment_id=experiment) as run:
        fit(mlp(), MlflowCheckpoint(save_freq=Every(epochs=2)), epochs=4)
        ckpt.save(mlp(), metrics={"score": 0.1})
    with mlflow.start_run(experiment_id=experiment) as empty:
        pass
    return Trained(uri, run.info.run_id, empty.info.run_id)
