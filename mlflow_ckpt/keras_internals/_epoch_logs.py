"""The metrics of an epoch that another process began.

Leans on `Trainer._symbolic_build`, `_compile_metrics`, and on `fit` taking the logs of
an epoch from `model._get_metrics_result_or_logs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras

from mlflow_ckpt.keras_internals._training import untouched_python_rng

_LOGS = "_get_metrics_result_or_logs"


def build_metrics(model: keras.Model, element_spec: Any) -> None:
    """Create the variables of the compiled metrics, which Keras does at the first batch.

    Args:
        element_spec: Of a batch, as `tf.data.Dataset.element_spec`.

    Raises:
        ValueError, RuntimeError: What Keras raises where it cannot without a batch.
    """
    metrics = getattr(model, "_compile_metrics", None)
    if metrics is None or metrics.built:
        return
    batch = keras.tree.map_structure(_symbolic, element_spec)
    with untouched_python_rng():
        model._symbolic_build(data_batch=batch)


def _symbolic(spec: Any) -> Any:
    shape = tuple(spec.shape) if spec.shape.rank is not None else ()
    return SimpleNamespace(shape=shape, dtype=spec.dtype.name)


def begin_with_logs(model: keras.Model, logs: Mapping[str, float]) -> None:
    """Let the next epoch end with `logs` if no batch of it is left to train."""
    original = getattr(model, _LOGS)

    def result_or_logs(found: Mapping[str, Any]) -> Any:
        forget_logs(model)
        return original(found or dict(logs))

    # Past `Layer.__setattr__`, which tracks what it is given.
    vars(model)[_LOGS] = result_or_logs


def forget_logs(model: keras.Model) -> None:
    """Undo `begin_with_logs`; safe to call twice."""
    vars(model).pop(_LOGS, None)
