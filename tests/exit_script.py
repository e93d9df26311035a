"""A script that dies of an exception right after a save: run by test_writer.py.

python exit_script.py <tracking URI> <run ID>
"""

from __future__ import annotations

import sys

import mlflow
from builders import mlp

import mlflow_ckpt as ckpt


def main(uri: str, run_id: str) -> None:
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(run_id=run_id):
        ckpt.save_async(mlp())
        raise RuntimeError("right after a save")


if __name__ == "__main__":
    main(*sys.argv[1:])
