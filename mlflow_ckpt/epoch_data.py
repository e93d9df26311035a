"""Give `fit` an input that a resumed run can continue at any batch.

An array that `fit` shuffles, or a `tf.data.Dataset.shuffle`, is in an order that depends on
what was read before; the order of an `EpochData` depends on its seed and the epoch alone.
The class stands in `keras_internals`, as it is one of Keras's own data adapters.
"""

from __future__ import annotations

from mlflow_ckpt.keras_internals import EpochData

__all__ = ["EpochData"]
