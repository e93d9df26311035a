"""A script that dies of an exception right after a save: run by test_writer.py.

python exit_script.py <tracking URI> <run ID> [away]

With `away` the tracking server takes no checkpoint from it.
"""

from __future__ import annotations

import sys
from typing import Any

import mlflow
from builders import mlp
from mlflow.exceptions import MlflowException

import mlflow_ckpt as ckpt


def away(*_: Any, **__: Any) -> None:
    raise MlflowException("the server is away")


def main(uri: str, run_id: str, state: str = "") -> None:
    mlflow.set_tracking_uri(uri)
    if state == "away":
        mlflow.MlflowClient.create_logged_model = away
    with mlflow.start_run(run_id=run_id):
        ckpt.save_async(mlp())
        raise RuntimeError("right after a save")


if __name__ == "__main__":
    main(*sys.argv[1:])
