"""Grain datasets, which have iterators that can say where they stand and go there.

Keras reads a Grain dataset through `tf.data.Dataset.from_generator`, which may read
ahead: the state after each of the last batches is kept, and the one of the batch that
was trained is stored.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf
from keras.src.trainers.data_adapters import data_adapter_utils

from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._feed import Feed

_AHEAD = 1024  # batches that tf.data may read ahead of the training


class GrainFeed(Feed):
    """A `grain.MapDataset`, `grain.IterDataset` or `grain.DataLoader`."""

    kind = "grain"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._states: dict[int, Any] = {}
        self._start: tuple[int, Any] | None = None

    def _input_exactness(self) -> Exactness:
        return Exactness()

    def watch(self, *, inside_epochs: bool, stops: bool = False) -> None:
        if inside_epochs or stops or self._epochs.steps_per_epoch:
            self._epochs._distributed_dataset = tf.data.Dataset.from_generator(
                self._batches, output_signature=self.adapter._output_tf_signature
            )

    def _batches(self) -> Iterator[Any]:
        read, iterator = self._start or (0, None)
        self._start = None
        if iterator is None:
            iterator = iter(self.adapter._dataset)
        self._states = {read: iterator.get_state()}
        for batch in iterator:
            read += 1
            self._states[read] = iterator.get_state()
            self._states.pop(read - _AHEAD, None)
            yield keras.tree.lists_to_tuples(keras.tree.map_structure(_to_tensorflow, batch))

    def _own_state(self, read: int) -> dict[str, Any]:
        if not read:
            return {"iterator": None}
        state = self._states[read]
        text = state.decode() if isinstance(state, bytes) else json.dumps(state)
        return {"iterator": text, "bytes": isinstance(state, bytes)}

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        text = own["iterator"]
        state = None if text is None else (text.encode() if own["bytes"] else json.loads(text))
        if state is not None:
            # Here, and not in a thread of tf.data's: what it refuses is seen as it is.
            iterator = iter(self.adapter._dataset)
            iterator.set_state(state)
            self._start = read, iterator
        return iter(self._dataset)


def _to_tensorflow(value: Any) -> Any:
    """What Keras's own adapter does to each leaf of a batch."""
    if value is None:
        return tf.experimental.Optional.empty(None)
    if data_adapter_utils.is_scipy_sparse(value):
        return data_adapter_utils.scipy_sparse_to_tf_sparse(value)
    return value
