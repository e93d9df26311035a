"""A training whose server never answers again, and whose process is then gone.

python away_script.py <tracking URI> <epochs> <run ID>...

Each run is trained with the server's lock in other hands, so that everything waits in the spool.
The process ends without a word, so the runs still count as running.
"""

from __future__ import annotations

import os
import sys

import keras
import mlflow
from builders import fit, mlp

from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool


def main(uri: str, epochs: str, *run_ids: str) -> None:
    mlflow.set_tracking_uri(uri)
    locks = [Journal.create(Spool().open(), run_id, "ckpt", {}).lock() for run_id in run_ids]
    for run_id, lock in zip(run_ids, locks, strict=True):
        lock.acquire()
        keras.utils.set_random_seed(7)
        mlflow.start_run(run_id=run_id, nested=True)
        callback = MlflowCheckpoint(spool=Spool(drain_timeout=0.0), keep=Keep(last=2, best=1))
        fit(mlp(), callback, epochs=int(epochs))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
