"""What Keras holds of an `EpochData`: a dataset that is another one in every epoch.

Keras asks its input for one dataset and then, for every epoch, for `iter(dataset)`. Under the
default strategy nothing else is done with it: `experimental_distribute_dataset` returns it as
it is. Leans on `DatasetV2._variant_tensor` being what every other use asks for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn, Protocol

import tensorflow as tf

from mlflow_ckpt.errors import ConfigError


class ByEpoch(Protocol):
    """An input that knows its epoch."""

    @property
    def element_spec(self) -> Any: ...

    @property
    def num_batches(self) -> int: ...

    def iterate(self) -> Iterator[Any]: ...


class EpochDataset(tf.data.Dataset):
    """Iterated by Python, it is the current epoch; nothing else can be done with it."""

    def __init__(self, data: ByEpoch) -> None:
        self._data = data
        super().__init__(None)

    def __iter__(self) -> Iterator[Any]:
        return self._data.iterate()

    @property
    def element_spec(self) -> Any:
        return self._data.element_spec

    def cardinality(self) -> Any:
        return tf.constant(self._data.num_batches, tf.int64)

    def _inputs(self) -> list[Any]:
        return []

    @property
    def _variant_tensor(self) -> NoReturn:
        """The graph of a dataset: here it would stand for one epoch forever."""
        raise ConfigError(
            "Expected an EpochData to be read by Keras without a tf.distribute strategy, and not "
            "to be transformed. Received: a request for its graph. Train on one device for each "
            "process with shard=(index, count), transform inside EpochData.from_factory, or use "
            "EpochData.dataset_of(epoch), which is an ordinary dataset of one epoch."
        )


class Unread:
    """Keras makes one iterator more at the end of an epoch, and never reads it."""

    def __iter__(self) -> Unread:
        return self

    def __next__(self) -> NoReturn:
        raise ConfigError(
            "Expected an EpochData to be read once for each on_epoch_begin(). Received: a second "
            "reading. Use EpochData.dataset_of(epoch) in a training loop of your own."
        )
