"""Arrays: Keras draws one permutation and slices it, so a position is a place in the slices.

Leans on the shape of `ArrayDataAdapter.get_tf_dataset`: a map over
`zip((batches of indices, the arrays))`, then options and a prefetch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._feed import Feed
from mlflow_ckpt.keras_internals._pipeline import inputs_of, seeded_globally


class ArrayFeed(Feed):
    """NumPy arrays, tensors, data frames: what Keras slices itself."""

    kind = "arrays"

    def _input_exactness(self) -> Exactness:
        if self.adapter._shuffle and not seeded_globally():
            return Exactness(
                "false",
                "arrays are shuffled without a seed: call keras.utils.set_random_seed first",
            )
        return Exactness()

    def _batch_size(self) -> int:
        return int(self.adapter._batch_size)

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "samples": int(self.adapter._num_samples)}

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        return iter(_from_batch(self._dataset, read))


def _from_batch(dataset: Any, first: int) -> Any:
    """The same dataset without its first batches: they are skipped as indices, and never sliced."""
    if not first:
        return dataset
    mapped = dataset
    while type(mapped).__name__ != "_ParallelMapDataset":
        (mapped,) = inputs_of(mapped)
    (zipped,) = inputs_of(mapped)
    indices, arrays = inputs_of(zipped)
    tensorflow = _tensorflow()
    rest = tensorflow.data.Dataset.zip((indices.skip(first), arrays)).map(
        mapped._map_func._func, num_parallel_calls=tensorflow.data.AUTOTUNE
    )
    return rest.with_options(dataset.options()).prefetch(tensorflow.data.AUTOTUNE)


def _tensorflow() -> Any:
    assert keras.backend.backend() == "tensorflow"
    import tensorflow

    return tensorflow
