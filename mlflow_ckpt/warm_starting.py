"""Begin a new training with the weights of another run's checkpoint.

Neither the optimizer's state nor an epoch comes along: who wants those continues the run,
or forks it. The run that is trained says what it began from.
"""

from __future__ import annotations

import keras

from mlflow_ckpt.loader import load_weights
from mlflow_ckpt.record import WARM_STARTED_TAG, Checkpoint, Run
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store


def warm_start(model: keras.Model, run_id: str, which: str | Selector = "best") -> Checkpoint:
    """Load a checkpoint's weights into `model`, and record them in the active run, if any.

    Call it before `fit`. A script that is started again with its run ID may call it again:
    what `MlflowCheckpoint` then restores replaces these weights.

    Args:
        model: A built model. What is not a weight, its optimizer included, is left alone.
        run_id, which: Where the weights come from; see `resolve`.

    Returns:
        The checkpoint that was loaded.

    Raises:
        ModelNotBuilt, ModelMismatch, DigestMismatch: As `load_weights`.
        RunNotFound, RunDeleted: If there is no run `run_id`, or MLFLOW_RUN_ID names none.
        StoreError: If the active run refuses the record.
    """
    store = Store()
    target = store.active_run()
    checkpoint = load_weights(model, run_id, which)
    if target is not None and not _is_recorded(store, target):
        store.set_tag(target, WARM_STARTED_TAG, checkpoint.model_id)
        store.log_input(target, checkpoint)
    return checkpoint


def _is_recorded(store: Store, run: Run) -> bool:
    """Whether the run has said what it began from, and has been trained since.

    By now `best` may be another checkpoint, which the run did not begin from.
    """
    if WARM_STARTED_TAG not in run.tags:
        return False
    return any(store.resume_point(run, series) for series in run.series.values())
