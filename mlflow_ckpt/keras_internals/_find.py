"""Find the input of the `fit` that is running below us."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras

from mlflow_ckpt.keras_internals._training import running_fit

if TYPE_CHECKING:
    from mlflow_ckpt.keras_internals._feed import Feed


def find_feed(model: keras.Model) -> Feed | None:
    """The feed of the `fit` that is running below us; `None` in a loop of the user's own.

    Every caller within one `fit` gets the same one.
    """
    names = running_fit()
    epoch_iterator = names.get("epoch_iterator")
    if epoch_iterator is None or not hasattr(epoch_iterator, "_distributed_dataset"):
        return None
    if not hasattr(epoch_iterator, "mlflow_ckpt_feed"):
        kind = _kind_of(epoch_iterator.data_adapter)
        epoch_iterator.mlflow_ckpt_feed = kind(epoch_iterator, model, names)
    feed: Feed = epoch_iterator.mlflow_ckpt_feed
    return feed


def _kind_of(adapter: Any) -> type[Feed]:
    # Only now: they import TensorFlow, which other backends do without.
    from mlflow_ckpt.keras_internals import (
        _feed_arrays,
        _feed_epoch_data,
        _feed_grain,
        _feed_pipeline,
        _feed_py_dataset,
    )

    return {
        "ArrayDataAdapter": _feed_arrays.ArrayFeed,
        "EpochData": _feed_epoch_data.EpochDataFeed,
        "GrainDatasetAdapter": _feed_grain.GrainFeed,
        "PyDatasetAdapter": _feed_py_dataset.PyDatasetFeed,
        "TFDatasetAdapter": _feed_pipeline.PipelineFeed,
    }.get(type(adapter).__name__, _feed_pipeline.OtherFeed)
