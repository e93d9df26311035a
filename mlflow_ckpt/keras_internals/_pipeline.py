"""What a tf.data pipeline is made of: its order, its iterators, and their checkpoints.

A `shuffle(seed)` that reshuffles gives each iterator an order of its own: the n-th
iterator that was made, on one dataset object or on any derived from it, has the n-th
order, whether or not anybody read the ones before.

An iterator checkpoint is symbolic (`Options.experimental_symbolic_checkpoint`): it says
where each transformation stands. A shuffle alone writes its buffer down, so it may only
have indices below it: samples must not get into a state file. About 5 to 10 microseconds
per element of a buffer (measured on TensorFlow 2.21). Only transformations that were
tried out are trusted with it: `cache()` makes the call hang.

Leans on the classes of `tensorflow.python.data.ops`, on `DatasetV2._inputs` and
`DatasetV2.__iter__`, and on `SerializeIterator` and `DeserializeIterator`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, wraps
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.data.ops import structured_function
from tensorflow.python.eager import context
from tensorflow.python.framework import op_def_registry
from tensorflow.python.ops import gen_dataset_ops

from mlflow_ckpt import own_mark
from mlflow_ckpt.keras_internals._exactness import Exactness

# Each iterator over one of these makes one iterator over each input, at once.
_ONE_TO_ONE = frozenset({
    "CacheDataset", "_BatchDataset", "_FilterDataset", "_MapDataset", "_OptionsDataset",
    "_PaddedBatchDataset", "_ParallelBatchDataset", "_ParallelMapDataset", "_PrefetchDataset",
    "_RebatchDataset", "_RestructuredDataset", "_ShardDataset", "_SkipDataset",
    "_TakeDataset", "_TakeWhileDataset", "_UnbatchDataset", "_WindowDataset", "_ZipDataset",
    "_AssertCardinality", "_AssertCardinalityDataset", "_ScanDataset", "_UniqueDataset",
    "_FlatMapDataset", "_InterleaveDataset", "_ParallelInterleaveDataset",
})  # fmt: skip
# These make iterators over their inputs as they are read.
_AS_READ = frozenset({"_ConcatenateDataset", "_RepeatDataset", "_ShuffleDataset"})
_SOURCES = frozenset({
    "_RangeDataset", "_TensorDataset", "_TensorSliceDataset", "_SparseTensorSliceDataset",
    "_CounterDataset", "TextLineDatasetV2", "TFRecordDatasetV2", "FixedLengthRecordDatasetV2",
    "_TextLineDataset", "_TFRecordDataset", "_FixedLengthRecordDataset",
})  # fmt: skip
# Tried out with a checkpoint in the middle: `tests/test_pipeline.py`.
_CHECKPOINTED = frozenset({
    "_BatchDataset", "_FilterDataset", "_MapDataset", "_OptionsDataset", "_ParallelMapDataset",
    "_PrefetchDataset", "_RangeDataset", "_RepeatDataset", "_ShardDataset", "_ShuffleDataset",
    "_SkipDataset", "_TakeDataset", "_TensorSliceDataset", "_ZipDataset",
})  # fmt: skip
# What may lie below a shuffle, whose buffer is written down.
_INDICES = frozenset({
    "_RangeDataset", "_RepeatDataset", "_ShardDataset", "_ShuffleDataset", "_SkipDataset",
    "_TakeDataset",
})  # fmt: skip
# A larger shuffle buffer would hold up each save for longer than 20 ms.
_CHECKPOINTED_ELEMENTS = 1024

# Stateful to TensorFlow, and yet the same at every run.
_HARMLESS = (
    "Assert", "HashTable", "LookupTable", "Placeholder", "PrintV2", "ReadVariableOp", "VarHandleOp",
    "StatefulPartitionedCall", "PartitionedCall", "If", "While", "Case", "TextLineDataset",
    "TFRecordDataset", "FixedLengthRecordDataset", "InitializeTable", "MutableHashTable",
    "ResourceGather", "TensorSliceDataset", "TensorDataset", "RangeDataset",
)  # fmt: skip


def inputs_of(dataset: Any) -> list[Any]:
    """The datasets that `dataset` is made from."""
    return list(dataset._inputs())


def seeded_globally() -> bool:
    """Whether `tf.random.set_seed` was called, as `keras.utils.set_random_seed` does."""
    return context.context()._seed is not None


def _nodes(dataset: Any) -> Iterator[Any]:
    yield dataset
    for source in inputs_of(dataset):
        yield from _nodes(source)


# --- is the order the same again? ----------------------------------------------


def why_not_exact(dataset: Any) -> Exactness | None:
    """Why another process may see another order; `None` if it sees the same."""
    if dataset.options().deterministic is False:
        return Exactness("unknown", "the tf.data pipeline has the option deterministic=False")
    for node in _nodes(dataset):
        found = _suspect(node)
        if found:
            return found
    return None


def _suspect(node: Any) -> Exactness | None:
    name = type(node).__name__
    if name not in _ONE_TO_ONE | _AS_READ | _SOURCES:
        return Exactness("unknown", f"the tf.data pipeline has a {name.strip('_')}")
    if getattr(node, "_deterministic", "default") == "false":
        return Exactness("unknown", f"{name.strip('_')} of tf.data has deterministic=False")
    if name == "_ShuffleDataset" and int(node._seed) == int(node._seed2) == 0:
        return Exactness("false", "the tf.data pipeline has a shuffle() without a seed")
    if name == "CacheDataset" and any(_reshuffles(below) for below in _nodes(node)):
        return Exactness("unknown", "the tf.data pipeline has a cache() behind a shuffle()")
    for wrapper in vars(node).values():
        if isinstance(wrapper, structured_function.StructuredFunctionWrapper):
            operation = _stateful_operation(wrapper.function)
            if operation:
                return Exactness("unknown", f"the tf.data pipeline runs the operation {operation}")
    return None


def _stateful_operation(function: Any) -> str | None:
    """First operation of a function, or of one that it calls, that may differ between runs."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    for node in nodes:
        definition = op_def_registry.get(node.op)
        if node.op.startswith(_HARMLESS):
            continue
        if definition is None or definition.is_stateful or "PyFunc" in node.op:
            return str(node.op)
    return None


def _reshuffles(node: Any) -> bool:
    return type(node).__name__ == "_ShuffleDataset" and bool(node._reshuffle_each_iteration)


# --- how many iterators were made ------------------------------------------------

_COUNT = "_mlflow_ckpt_iterators"


def count_iterators() -> None:
    """Count, from now on, the iterators that are made over each reshuffling node.

    TensorFlow counts them where nobody can read it. All of them count, also those that a
    user's own code makes between epochs.
    """
    made_by = tf.data.Dataset.__iter__
    if hasattr(made_by, _COUNT):
        return

    @wraps(made_by)
    def counting(dataset: Any) -> Any:
        iterator = made_by(dataset)
        for node in shuffles(dataset):
            vars(node)[_COUNT] = iterators_of(node) + 1
        return iterator

    setattr(counting, _COUNT, True)
    tf.data.Dataset.__iter__ = counting


def shuffles(dataset: Any) -> list[Any]:
    """Nodes whose order depends on how many iterators were made, none below another one."""
    if _reshuffles(dataset):
        return [dataset]
    return [node for source in inputs_of(dataset) for node in shuffles(source)]


def iterators_of(node: Any) -> int:
    """How many iterators over one of `shuffles` have been counted."""
    found: int = vars(node).get(_COUNT, 0)
    return found


def counts_every_iterator(dataset: Any) -> bool:
    """Whether each reshuffling node gets exactly one iterator for each one over the whole.

    A shuffle makes the iterator over its input when it is read, and not before.
    """
    return not any(
        _reshuffles(below)
        for node in _nodes(dataset)
        if type(node).__name__ not in _ONE_TO_ONE
        for source in inputs_of(node)
        for below in _nodes(source)
    )


def make_iterators(nodes: Sequence[Any], counts: Sequence[int]) -> bool:
    """Bring each of `shuffles` to its count; `False` if one had more already."""
    for node, count in zip(nodes, counts, strict=True):
        while iterators_of(node) < count:
            iter(node)
    return [iterators_of(node) for node in nodes] == list(counts)


# --- a checkpoint of an iterator --------------------------------------------------


def can_checkpoint(dataset: Any) -> bool:
    """Whether every transformation below is one that a symbolic checkpoint was tried with."""
    if any(type(node).__name__ not in _CHECKPOINTED for node in _nodes(dataset)):
        return False
    shuffled = [node for node in _nodes(dataset) if type(node).__name__ == "_ShuffleDataset"]
    indices = all(type(below).__name__ in _INDICES for node in shuffled for below in _nodes(node))
    small = sum(int(node._buffer_size) for node in shuffled) <= _CHECKPOINTED_ELEMENTS
    return indices and small and why_not_exact(dataset) is None


def with_checkpoints(dataset: Any) -> Any:
    """The same dataset, whose iterators can be checkpointed."""
    options = tf.data.Options()
    options.experimental_symbolic_checkpoint = True
    return dataset.with_options(options)


class IteratorCheckpoint:
    """Where an iterator stands.

    It turns into an array of bytes when it is asked for one, which takes longer than to
    make it and can be done in another thread. TensorFlow logs a line at each one, at INFO.
    """

    def __init__(self, iterator: Any) -> None:
        self._state = gen_dataset_ops.serialize_iterator(
            iterator._iterator_resource, external_state_policy=2
        )

    @cached_property
    def data(self) -> bytes:
        return bytes(tf.io.serialize_tensor(self._state).numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.data, dtype=np.uint8)


class Mark:
    """Says, when it is asked for an array, that this user made an iterator's checkpoint."""

    def __init__(self, checkpoint: IteratorCheckpoint) -> None:
        self._checkpoint = checkpoint

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.frombuffer(own_mark.mark(self._checkpoint.data), dtype=np.uint8)


def restore_checkpoint(iterator: Any, saved: np.ndarray[Any, Any]) -> None:
    """Bring a new iterator over the same pipeline to where another one was checkpointed.

    Only for bytes that `own_mark` knows: of 520 checkpoints with some bytes changed, 37 ended
    the process inside TensorFlow 2.21.
    """
    state = tf.io.parse_tensor(saved.tobytes(), tf.variant)
    gen_dataset_ops.deserialize_iterator(iterator._iterator_resource, state)
