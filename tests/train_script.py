"""A training script that is killed: run as a process of its own by test_kill.py.

python train_script.py <tracking URI> <run ID> <epochs> <kill after epoch, 0: never> [at-once]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import keras
import mlflow
from builders import fit, mlp

from mlflow_ckpt import Every, MlflowCheckpoint


class KillAfter(keras.callbacks.Callback):
    """SIGKILL this process once an epoch (from 1) is over.

    Args:
        epoch: Which one; 0 kills never.
        logged: Whether to wait until the server has its metrics, as a real epoch lets it:
            these take milliseconds, and the kill would come while they are on their way.
    """

    def __init__(self, epoch: int, run_id: str, logged: bool) -> None:
        super().__init__()
        self.at = epoch
        self.run_id = run_id
        self.logged = logged

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.at and epoch == self.at:
            while self.logged and not self._has(epoch):
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

    def _has(self, epoch: int) -> bool:
        rows = mlflow.MlflowClient().get_metric_history(self.run_id, "loss")
        return any(row.step == epoch for row in rows)


def main(uri: str, run_id: str, epochs: str, kill_after: str, logged: str = "logged") -> None:
    mlflow.set_tracking_uri(uri)
    keras.utils.set_random_seed(3)
    with mlflow.start_run(run_id=run_id):
        model = mlp()
        checkpoint = MlflowCheckpoint(save_freq=Every(epochs=5))
        kill = KillAfter(int(kill_after), run_id, logged == "logged")
        fit(model, checkpoint, kill, epochs=int(epochs))


if __name__ == "__main__":
    main(*sys.argv[1:])
