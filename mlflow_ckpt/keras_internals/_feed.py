"""Where a running `fit` stands in its data, and how another process gets to the same place.

Keras makes an iterator over the input per epoch, or one for several epochs, and gives a
callback no way to see or to move it. A `Feed` watches the `EpochIterator` of one `fit`:

    find_feed() -> watch -> state() -> training_state.h5 -> resume() -> begin()

One subclass per kind of input knows how to begin in the middle: `_feed_arrays`,
`_feed_pipeline` (tf.data and whatever else), `_feed_py_dataset`, `_feed_grain`.

Leans on `EpochIterator._enumerate_iterator`, `_get_iterator`, `_current_iterator`,
`_num_batches`, `_steps_seen`, `TFEpochIterator._distributed_dataset`, on the names
`epoch_iterator` and `val_x` in `Trainer.fit`.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from mlflow_ckpt.keras_internals import _pipeline
from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._place import finding_place


class Feed:
    """The input of one `fit`.

    Args:
        epoch_iterator: The one that `fit` reads.
        model, names: The model, and the local names of its `fit`.

    Attributes:
        kind: Name of the kind of input, as it stands in the state file.
    """

    kind: ClassVar[str] = "other"

    def __init__(self, epoch_iterator: Any, model: keras.Model, names: Mapping[str, Any]) -> None:
        # It leads to us: both would live, with the data, until a garbage collection.
        self._epochs_reference = weakref.ref(epoch_iterator)
        self._model = weakref.ref(model)
        self._validation = names.get("val_x")
        self.adapter = epoch_iterator.data_adapter
        self.iterator: Any = None
        self._born: list[int] = []
        self._misplaced = ""
        self._pending: tuple[Mapping[str, Any], int] | None = None
        epoch_iterator._get_iterator = lambda: _Iterable(self._new_iterator)
        _pipeline.count_iterators()

    @property
    def _epochs(self) -> Any:
        """Keras's `EpochIterator`, which lives as long as the `fit`."""
        return self._epochs_reference()

    # --- what it is -----------------------------------------------------------

    @property
    def batches(self) -> int | None:
        """Batches of an epoch, where Keras knows them beforehand."""
        known: int | None = self._epochs.steps_per_epoch or self.adapter.num_batches
        return known

    def facts(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same, as plain data."""
        return {
            "kind": self.kind,
            "element_spec": _plain_spec(self._dataset),
            "cardinality": self.batches,
            "batch_size": self._batch_size(),
        }

    def exactness(self) -> Exactness:
        """Whether this input is known to come back in the same order."""
        if self._misplaced:
            return Exactness("unknown", self._misplaced)
        own = self._input_exactness()
        return own if own.level != "true" else self._validation_exactness

    @cached_property
    def _validation_exactness(self) -> Exactness:
        """The order of the validation matters too: it decides how its sums are rounded."""
        data = self._validation
        if isinstance(data, tf.data.Dataset):
            return _pipeline.why_not_exact(data) or Exactness()
        if isinstance(data, keras.utils.PyDataset) and (
            type(data).on_epoch_begin is not keras.utils.PyDataset.on_epoch_begin
            or type(data).on_epoch_end is not keras.utils.PyDataset.on_epoch_end
        ):
            return Exactness("unknown", "the validation is a PyDataset that changes between epochs")
        if isinstance(data, Iterator):
            return Exactness("unknown", "the validation is a Python generator")
        return Exactness()

    def _batch_size(self) -> int | None:
        size = self.adapter.batch_size
        return None if size is None else int(size)

    @property
    def element_spec(self) -> Any:
        """Of a batch, as `tf.data.Dataset.element_spec`."""
        return self._dataset.element_spec

    # --- count ----------------------------------------------------------------

    def watch(self, *, inside_epochs: bool, stops: bool = False) -> None:
        """Get ready for `state`.

        Args:
            inside_epochs: Whether it will be asked within epochs.
            stops: Whether it may be asked there once, as the fit ends. An input that can find
                such a place again by reading to it needs no more for that.
        """

    def _new_iterator(self) -> Any:
        """Make the iterator that the next batches come from."""
        self._born = self._counts()
        self.iterator = iter(self._dataset)
        return self.iterator

    @cached_property
    def _shuffles(self) -> list[Any]:
        """Nodes of the input and of the validation whose iterators are counted."""
        datasets = (self._shuffled_input(), self._validation)
        return [
            node
            for dataset in datasets
            if isinstance(dataset, tf.data.Dataset)
            for node in _pipeline.shuffles(dataset)
        ]

    def _counts(self) -> list[int]:
        return [_pipeline.iterators_of(node) for node in self._shuffles]

    @property
    def _dataset(self) -> Any:
        return self._epochs._distributed_dataset

    # --- store and find a position --------------------------------------------

    def state(self, batch: int) -> dict[str, Any]:
        """The position after `batch` batches of the running epoch; 0 stands for its beginning."""
        goes_on = batch > 0 or self._iterator_spans_epochs()
        own = self._own_state(self._read(batch) if goes_on else 0)
        found = self.exactness()
        return {
            "kind": self.kind,
            "made": self._counts(),
            "num_batches": self._epochs._num_batches,
            "born": self._born if goes_on else None,
            "read": self._read(batch) if goes_on else 0,
            "own": own,
            "exactness": [found.level, found.reason],
        }

    def resume(self, state: Mapping[str, Any], batch: int) -> None:
        """Let the epoch that begins next begin after `batch` batches of it."""
        self._pending = (state, batch)

    def begin(self) -> None:
        """Go to the position that `resume` named. Called once, before the first epoch."""
        if self._pending is None:
            return
        (state, batch), self._pending = self._pending, None
        with finding_place():
            self._begin_at(state, batch)

    def _begin_at(self, state: Mapping[str, Any], batch: int) -> None:
        self._epochs._num_batches = state["num_batches"]
        if batch:
            rest = self._rest_of_epoch(state, batch)
            self._epochs._enumerate_iterator = lambda: rest
        elif state["born"] is not None:
            self._go_to(state)
            self._epochs._current_iterator = self.iterator
            self._epochs._steps_seen = int(state["read"])
        else:
            self._restore_own(state["own"])
            self._make_up(state["made"])

    def release(self) -> None:
        """Give Keras's iterator its own methods back; safe to call twice."""
        self.iterator = None
        epochs = self._epochs
        for name in ("_enumerate_iterator", "_get_iterator"):
            if epochs is not None:
                vars(epochs).pop(name, None)

    def _iterator_spans_epochs(self) -> bool:
        return bool(self._epochs.steps_per_epoch) and self._epochs._current_iterator is not None

    def _read(self, batch: int) -> int:
        """Batches read from the current iterator."""
        if self._epochs.steps_per_epoch:
            return int(self._epochs._steps_seen)
        return batch

    def _rest_of_epoch(self, state: Mapping[str, Any], first: int) -> Iterator[Any]:
        """What `EpochIterator._enumerate_iterator` yields, from batch `first` of an epoch on."""
        epochs = self._epochs
        del epochs._enumerate_iterator  # the epochs after this one are Keras's own
        # The epoch has begun before; its second beginning must not draw from a generator.
        generators = random.getstate(), np.random.get_state(legacy=True)
        epochs.data_adapter.on_epoch_begin()
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        with finding_place():
            self._go_to(state)
        size = epochs.steps_per_execution
        steps = epochs.steps_per_epoch or epochs._num_batches or 0
        if steps:
            epochs._current_iterator = self.iterator
            epochs._steps_seen = int(state["read"])
            for step in range(first, steps, size):
                if epochs._num_batches and epochs._steps_seen >= epochs._num_batches:
                    break
                epochs._steps_seen += size
                yield step, step + size - 1, epochs._current_iterator
            if epochs._num_batches and epochs._steps_seen >= epochs._num_batches:
                epochs._current_iterator = iter(epochs._get_iterator())
                epochs._steps_seen = 0
        else:
            step, iterator = first, self.iterator
            while True:
                epochs._steps_seen = step + size
                yield step, step + size - 1, iterator
                step += size
        epochs.data_adapter.on_epoch_end()

    def _go_to(self, state: Mapping[str, Any]) -> None:
        """Make all iterators that the other process had made; read on in the current one."""
        self._restore_own(state["own"])
        self._make_up(state["born"])
        self._born = self._counts()
        self.iterator = self._iterator_at(int(state["read"]), state["own"])
        self._make_up(state["made"])

    def _make_up(self, counts: Sequence[int]) -> None:
        """Make iterators until as many were made over each shuffle as the other process made."""
        if len(counts) != len(self._shuffles):
            self._misplaced = "the tf.data pipeline has other shuffles than before"
        elif not _pipeline.make_iterators(self._shuffles, counts):
            self._misplaced = "more iterators were made over a shuffle than before"

    # --- what a kind of input does its own way ----------------------------------

    def _input_exactness(self) -> Exactness:
        raise NotImplementedError

    def _shuffled_input(self) -> Any:
        """The dataset whose shuffles depend on the number of iterators, if it is one."""
        return None

    def _own_state(self, read: int) -> dict[str, Any]:
        return {}

    def _restore_own(self, own: Mapping[str, Any]) -> None:
        """Restore what `_own_state` returned, but the place in an iterator."""

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        """Make an iterator whose next batch is number `read` (from 0)."""
        raise NotImplementedError


class _Iterable:
    """Stands for a dataset where Keras says `iter(...)`."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return self._make()


def _plain_spec(dataset: Any) -> Any:
    """The element spec as `[structure path, dtype, shape]` rows; `-1` is an open dimension."""
    rows: list[list[Any]] = []
    for path, spec in keras.tree.flatten_with_path(dataset.element_spec):
        shape = getattr(spec, "shape", None)
        if getattr(spec, "dtype", None) is None or shape is None:
            rows.append(["/".join(map(str, path)), str(spec), []])
            continue
        sizes = None if shape.rank is None else [-1 if n is None else int(n) for n in shape]
        # How many samples a batch has is the batch size's business.
        rows.append(["/".join(map(str, path)), spec.dtype.name, sizes and [-1, *sizes[1:]]])
    return rows
