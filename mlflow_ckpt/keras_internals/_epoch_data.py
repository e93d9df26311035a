"""An input for `fit` whose order of samples is a pure function of (seed, epoch).

Keras takes a `DataAdapter` (`keras.src.trainers.data_adapters`) in place of data. It asks it
for a dataset once and then, before every epoch, for `on_epoch_begin()` and `iter(dataset)`:
so a dataset that makes up its mind in `__iter__` can serve another order each time, and begin
in the middle of one, which neither arrays nor one `tf.data.Dataset` can.

An epoch counts from 0, a batch within its epoch from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from keras.src.trainers.data_adapters import data_adapter, data_adapter_utils

from mlflow_ckpt.keras_internals._epoch_caller import beginning_epoch, reader, refuse_ignored
from mlflow_ckpt.keras_internals._epoch_dataset import EpochDataset, Unread
from mlflow_ckpt.keras_internals._epoch_source import (
    LARGEST,
    ArraySource,
    FactorySource,
    whole,
)


class EpochData(data_adapter.DataAdapter):
    """A shuffled, sharded input that can be continued at any batch of any epoch.

    Give it to `fit` in place of `x` and `y`, or as `validation_data`:

        data = EpochData(x, y, batch_size=64, seed=7)
        model.fit(data, epochs=20, validation_data=EpochData(vx, vy, shuffle=False))

    Epoch `e` reads the samples in this order, whatever happened before, on every machine and
    with every version of NumPy (`order(e)` returns it):

        key   = numpy.array([seed, e], numpy.uint64)
        words = numpy.random.Philox(key=key).random_raw(n)        # n uint64, n samples
        bits  = (n - 1).bit_length()
        order = sorted(range(n), key=lambda i: (words[i] >> bits, i))
        order = order[i::k][: n // k]                                 # shard=(i, k)

    So the k shards are disjoint and equally long, shuffled anew each epoch, and leave out
    `n % k` samples, other ones each epoch. Batch `b` of all shards together is batch `b` of
    one shard with `k * batch_size`.

    The epochs of every `fit` count on: two fits of three epochs equal one of six, and an epoch
    that a fit breaks off counts as read. `evaluate` and `predict` read the samples in the order
    of the arrays (a factory's epoch 0), without shuffling, and count nothing.

    Beside an `EpochData`, `fit` takes none of `y`, `sample_weight`, `class_weight`,
    `steps_per_epoch`, `validation_split` and another `batch_size`: all are refused. Its
    `shuffle` has no effect. Arrays are read at the first use and kept in memory once more, as
    tensors; changing them later has no effect. Floats become `keras.config.floatx()`.

    Args:
        x: Inputs: an array whose first axis counts samples, or a dict, tuple or list of such.
        y: Targets, in the same way.
        sample_weight: Weights, one array, or one for each output.
        batch_size: Samples in a batch of this shard. The last batch of an epoch may be shorter.
        seed: Of the order, from 0 to 2**64 - 1.
        shuffle: False reads every epoch in the order of the arrays.
        shard: `(index, count)`: the part of each epoch that this process reads.
        drop_remainder: Leave out a last batch that is shorter.

    Raises:
        ConfigError: If an argument has a value that cannot be used.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        batch_size: int = 32,
        seed: int = 0,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
        drop_remainder: bool = False,
    ) -> None:
        self._begin_with(
            ArraySource(
                x,
                y,
                sample_weight,
                batch_size=batch_size,
                seed=seed,
                shuffle=shuffle,
                shard=shard,
                drop_remainder=drop_remainder,
            )
        )

    @classmethod
    def from_factory(
        cls,
        factory: Callable[[int], tf.data.Dataset],
        *,
        batches: int,
        batch_size: int | None = None,
    ) -> EpochData:
        """Read epoch `e` from `factory(e)`, a `tf.data.Dataset` made for that epoch alone.

        The factory is called eagerly with a Python int: once for every epoch that `fit` reads,
        with 0 for every reading by `evaluate` or `predict`, and to see what it returns. It must
        return the same batches for the same epoch: seed every `shuffle` from the epoch, use
        stateless random operations, and return a dataset made in the call, not one that
        shuffles itself anew each time. An epoch continued at batch `b` skips the batches
        before it, which may cost as much as reading them.

        Args:
            factory: Takes the epoch, from 0.
            batches: Batches in every epoch.
            batch_size: Samples in a batch, if you want Keras to know.

        Raises:
            ConfigError: If an argument has a value that cannot be used; in `fit`, if the
                factory returns no dataset, or one that says it has another number of batches.
        """
        data = cls.__new__(cls)
        data._begin_with(FactorySource(factory, batches=batches, batch_size=batch_size))
        return data

    def _begin_with(self, source: ArraySource | FactorySource) -> None:
        self._source = source
        self._epoch = -1
        self._start = 0
        self._due: tuple[int | None, int] | None = None

    # --- where the input stands ---------------------------------------------------

    @property
    def epoch(self) -> int:
        """The data epoch that `fit` reads, or read last; -1 before the first.

        The next one is always `epoch + 1`: after `move_to(e, b)` this is `e - 1` until `fit`
        begins to read.
        """
        return self._epoch

    def move_to(self, epoch: int, batch: int = 0) -> None:
        """Make the next epoch of a `fit` data epoch `epoch`, from its batch `batch` on.

        The epoch after that one is whole again. Nothing is read here, and for arrays nothing
        later: the order is known without it. With `num_batches` nothing of the epoch is left,
        and `fit` begins the next. `MlflowCheckpoint` calls this when it resumes; beside one,
        leave it to do so.

        Raises:
            ConfigError: If there is no such epoch or batch.
        """
        epoch, batch = self._place(epoch, batch)
        self._epoch, self._start, self._due = epoch - 1, batch, None

    def order(self, epoch: int) -> Any:
        """Positions of the samples that data epoch `epoch` reads, in its order, as int64.

        Raises:
            ConfigError: If the input is a factory, which alone knows, or `epoch` is below 0.
        """
        return self._source.order(self._place(epoch, 0)[0])

    def dataset_of(self, epoch: int, batch: int = 0) -> tf.data.Dataset:
        """The batches of data epoch `epoch`, from `batch` on, for a training loop of your own.

        It changes nothing about what `fit` reads next.

        Raises:
            ConfigError: If there is no such epoch or batch.
        """
        return self._source.dataset(*self._place(epoch, batch))

    @property
    def element_spec(self) -> Any:
        """Shapes and types of a batch, as `tf.data.Dataset.element_spec` has them."""
        return self._source.element_spec

    def get_config(self) -> dict[str, Any]:
        """What, besides the samples, decides the batches: plain values to compare."""
        return self._source.config()

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"EpochData({values})"

    # --- what Keras calls ---------------------------------------------------------

    def on_epoch_begin(self) -> None:
        """Let one reading begin: of the next epoch in a `fit`, else in the order as given."""
        if reader()[0] not in ("fit", None):
            self._due = (None, 0)
            return
        counter = beginning_epoch()
        if counter is not None and self._start == self.num_batches:
            self._epoch, self._start = self._epoch + 1, 0
        self._epoch += 1
        self._due = (self._epoch, self._start)
        if counter is not None:
            # A step that finds no data still counts an update and draws random numbers.
            counter._num_batches = self.num_batches - self._start
        self._start = 0

    def on_epoch_end(self) -> None:
        """Refuse a `fit` with arguments that Keras would drop.

        Every backend comes here once before training, at `EpochIterator.reset()`: it is the
        one moment before `on_train_begin` at which those arguments can be seen.
        """
        name, names = reader()
        if name == "fit" and names.get("x") is self:
            refuse_ignored(names, self.batch_size)

    def get_tf_dataset(self) -> tf.data.Dataset:
        return EpochDataset(self)

    def get_numpy_iterator(self) -> Iterator[Any]:
        due = self._take()
        return Unread() if due is None else self._source.arrays(*due)

    def get_jax_iterator(self) -> Iterator[Any]:
        return self.get_numpy_iterator()

    def get_torch_dataloader(self) -> Any:
        return data_adapter_utils.get_torch_dataloader(self.get_numpy_iterator())

    @property
    def num_batches(self) -> int:
        return self._source.batches

    @property
    def batch_size(self) -> int | None:
        return self._source.batch_size

    @property
    def has_partial_batch(self) -> bool | None:
        last = self._source.last_batch
        return None if last is None else last > 0

    @property
    def partial_batch_size(self) -> int | None:
        return self._source.last_batch or None

    # --- the rest -----------------------------------------------------------------

    def iterate(self) -> Iterator[Any]:
        """What `iter` of the dataset is: the epoch that has begun, once."""
        due = self._take()
        return Unread() if due is None else self._source.iterate(*due)

    def _place(self, epoch: Any, batch: Any) -> tuple[int, int]:
        return (
            whole("epoch", epoch, "epochs count from 0", LARGEST),
            whole("batch", batch, f"an epoch has {self.num_batches} batches", self.num_batches),
        )

    def _take(self) -> tuple[int | None, int] | None:
        due, self._due = self._due, None
        return due
