"""A training script that is killed: run as a process of its own by test_kill.py.

python train_script.py <tracking URI> <run ID> <epochs> <kill after epoch, 0: never>
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import keras
import mlflow
from builders import fit, mlp

from mlflow_ckpt import Every, MlflowCheckpoint


class KillAfter(keras.callbacks.Callback):
    """SIGKILL this process once an epoch (from 1) and its metrics are over."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.at = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.at and epoch == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(uri: str, run_id: str, epochs: str, kill_after: str) -> None:
    mlflow.set_tracking_uri(uri)
    keras.utils.set_random_seed(3)
    with mlflow.start_run(run_id=run_id):
        model = mlp()
        checkpoint = MlflowCheckpoint(save_freq=Every(epochs=5))
        fit(model, checkpoint, KillAfter(int(kill_after)), epochs=int(epochs))


if __name__ == "__main__":
    main(*sys.argv[1:])
