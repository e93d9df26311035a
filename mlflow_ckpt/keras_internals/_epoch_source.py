"""What an `EpochData` reads: arrays in an order of each epoch, or a dataset made for it.

Both answer for any epoch and any first batch in it, and remember nothing in between.
The epoch None stands for the order of the arrays themselves.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlflow_ckpt.errors import ConfigError

LARGEST = 2**64 - 1  # of a seed and of an epoch: each is one word of Philox's key


def whole(name: str, value: Any, why: str, most: int | None = None, *, least: int = 0) -> int:
    """`value` as a Python int from `least` to `most`.

    Raises:
        ConfigError: If it is anything else. It quotes `why`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        span = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise ConfigError(
            f"Expected {name} to be a whole number {span}: {why}. Received: {name}={value!r}."
        )
    return number


def shuffled(samples: int, seed: int, epoch: int) -> np.ndarray[Any, Any]:
    """A permutation of `samples` positions, int64, from the random words of (seed, epoch).

    It sorts raw Philox words with the position in their low bits. NumPy promises that the
    words stay, as it does not for `Generator.permutation`; and as no two are equal, every
    sorting algorithm returns the same.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(samples)
    bits = np.uint64((samples - 1).bit_length())
    words >>= bits
    words <<= bits
    words |= np.arange(samples, dtype=np.uint64)
    words.sort()
    words &= (np.uint64(1) << bits) - np.uint64(1)
    return words.view(np.int64)


class ArraySource:
    """Arrays in memory, of which a batch is gathered by position."""

    def __init__(
        self,
        x: Any,
        y: Any,
        sample_weight: Any,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool,
        shard: tuple[int, int],
        drop_remainder: bool,
    ) -> None:
        if y is None and sample_weight is not None:
            raise ConfigError(
                "Expected y beside sample_weight: Keras drops weights without targets. "
                "Received: y=None. Give both, or neither."
            )
        given = keras.utils.pack_x_y_sample_weight(x, y, sample_weight)
        self._arrays = keras.tree.map_structure(_as_array, keras.tree.lists_to_tuples(given))
        self._samples = _samples(keras.tree.flatten(self._arrays))
        self.batch_size = whole("batch_size", batch_size, "it counts samples", least=1)
        self._seed = whole("seed", seed, "one word of a key", LARGEST)
        self._shuffle = bool(shuffle)
        self._shard = _as_shard(shard)
        self._drop_remainder = bool(drop_remainder)

        self._length = self._samples // self._shard[1]
        self.last_batch = 0 if drop_remainder else self._length % self.batch_size
        self.batches = self._length // self.batch_size + (self.last_batch > 0)
        if not self.batches:
            raise ConfigError(
                f"Expected samples for at least one batch of {self.batch_size}. Received: "
                f"{self._samples} samples for {self._shard[1]} shard(s), "
                f"drop_remainder={self._drop_remainder}. Use a smaller batch_size or fewer shards."
            )

    def config(self) -> dict[str, Any]:
        return {
            "samples": self._samples,
            "batch_size": self.batch_size,
            "seed": self._seed,
            "shuffle": self._shuffle,
            "shard": list(self._shard),
            "drop_remainder": self._drop_remainder,
        }

    def order(self, epoch: int | None) -> np.ndarray[Any, Any]:
        if epoch is None or not self._shuffle:
            positions = np.arange(self._samples, dtype=np.int64)
        else:
            positions = shuffled(self._samples, self._seed, epoch)
        index, count = self._shard
        used = self._length if self.last_batch else self.batches * self.batch_size
        return positions[index::count][:used]

    def dataset(self, epoch: int | None, start: int) -> tf.data.Dataset:
        """The rest of an epoch, as a pipeline of which every part can be seen."""
        return self._made_by(self._batches, epoch, start)

    def iterate(self, epoch: int | None, start: int) -> Iterator[Any]:
        """Read the same; the pipeline is traced once, as that takes longer than a short epoch."""
        return iter(self._made_by(self._traced, epoch, start))

    def arrays(self, epoch: int | None, start: int) -> Iterator[Any]:
        order, size = self.order(epoch), self.batch_size
        for first in range(start * size, len(order), size):
            chosen = order[first : first + size]
            yield keras.tree.map_structure(lambda array, i=chosen: array[i], self._arrays)

    @cached_property
    def element_spec(self) -> Any:
        return self.dataset(None, 0).element_spec

    def _made_by(self, make: Any, epoch: int | None, start: int) -> tf.data.Dataset:
        rest = self.order(epoch)[start * self.batch_size :]
        with tf.device("CPU:0"):
            return make(tf.constant(rest)).with_options(_plain())

    def _batches(self, positions: Any) -> tf.data.Dataset:
        """Gather batch after batch of these positions."""
        tensors, size = self._tensors, self.batch_size
        count = tf.size(positions, out_type=tf.int64)
        full = count // size * size
        rows = tf.data.Dataset.from_tensor_slices(tf.reshape(positions[:full], [-1, size]))
        if self.last_batch:
            # No batch at all if the epoch is continued behind its last one.
            left = tf.cast(count > full, tf.int64)
            rows = rows.concatenate(tf.data.Dataset.from_tensors(positions[full:]).take(left))
        return rows.map(
            lambda row: keras.tree.map_structure(lambda tensor: tf.gather(tensor, row), tensors),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        ).prefetch(tf.data.AUTOTUNE)

    @cached_property
    def _traced(self) -> Any:
        signature = [tf.TensorSpec([None], tf.int64)]
        traced = tf.function(self._batches, input_signature=signature, autograph=False)
        return traced.get_concrete_function()

    @cached_property
    def _tensors(self) -> Any:
        with tf.init_scope(), tf.device("CPU:0"):  # kept, so no part of a graph being traced
            return keras.tree.map_structure(tf.convert_to_tensor, self._arrays)


class FactorySource:
    """A function that makes the dataset of an epoch."""

    last_batch = None

    def __init__(
        self, factory: Callable[[int], tf.data.Dataset], *, batches: int, batch_size: int | None
    ) -> None:
        if not callable(factory):
            raise ConfigError(
                "Expected a function of the epoch that returns a tf.data.Dataset. "
                f"Received: factory={factory!r}. Wrap it: lambda epoch: ..."
            )
        self._factory = factory
        self.batches = whole("batches", batches, "it counts the batches of an epoch", least=1)
        if batch_size is not None:
            batch_size = whole("batch_size", batch_size, "it counts samples", least=1)
        self.batch_size = batch_size
        self._spec: Any = None

    def config(self) -> dict[str, Any]:
        return {"batches": self.batches, "batch_size": self.batch_size}

    def order(self, epoch: int | None) -> np.ndarray[Any, Any]:
        raise ConfigError(
            "Expected an EpochData of arrays: only the factory knows its samples. "
            f"Received: order({epoch!r}) of EpochData.from_factory(). Read dataset_of({epoch!r})."
        )

    def dataset(self, epoch: int | None, start: int) -> tf.data.Dataset:
        made = self._factory(epoch or 0)
        if not isinstance(made, tf.data.Dataset):
            raise ConfigError(
                "Expected a tf.data.Dataset from the factory of an EpochData. "
                f"Received: {type(made).__name__}."
            )
        count = int(made.cardinality())
        if count not in (self.batches, tf.data.UNKNOWN_CARDINALITY):
            found = "endless batches" if count == tf.data.INFINITE_CARDINALITY else f"{count}"
            raise ConfigError(
                f"Expected a dataset of {self.batches} batches from the factory of an EpochData. "
                f"Received: {found}. Change `batches`, or use `.take({self.batches})`."
            )
        self._spec = made.element_spec
        return made.skip(start) if start else made

    def iterate(self, epoch: int | None, start: int) -> Iterator[Any]:
        return iter(self.dataset(epoch, start))

    def arrays(self, epoch: int | None, start: int) -> Iterator[Any]:
        return iter(self.dataset(epoch, start).as_numpy_iterator())

    @property
    def element_spec(self) -> Any:
        if self._spec is None:
            self.dataset(None, 0)
        return self._spec


def _plain() -> tf.data.Options:
    """No rewriting of the graph, which takes longer than it saves (Keras does so too)."""
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return options


def _as_array(leaf: Any) -> np.ndarray[Any, Any]:
    if not hasattr(leaf, "__array__") or not hasattr(leaf, "shape"):
        raise ConfigError(
            "Expected arrays, or dicts, tuples and lists of arrays. "
            f"Received: {type(leaf).__name__}. Convert it with numpy.asarray, or use "
            "EpochData.from_factory for what is no array."
        )
    array = np.asarray(leaf)
    if "float" in array.dtype.name:  # bfloat16 is none of NumPy's own
        return array.astype(keras.config.floatx(), copy=False)
    return array


def _samples(arrays: list[np.ndarray[Any, Any]]) -> int:
    lengths = {array.shape[0] if array.ndim else None for array in arrays}
    if len(lengths) != 1 or None in lengths or 0 in lengths:
        shapes = ", ".join(str(array.shape) for array in arrays) or "no array"
        raise ConfigError(
            "Expected arrays with the same number of samples, one or more, on their first axis. "
            f"Received: shapes {shapes}."
        )
    (samples,) = lengths
    return int(samples or 0)


def _as_shard(shard: Any) -> tuple[int, int]:
    try:
        index, count = shard
    except (TypeError, ValueError):
        raise ConfigError(
            f"Expected shard=(index, count), for example (0, 4). Received: shard={shard!r}."
        ) from None
    count = whole("shard[1]", count, "it counts the shards", least=1)
    return whole("shard[0]", index, "it counts from 0", count - 1), count
