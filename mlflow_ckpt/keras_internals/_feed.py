"""Where a running `fit` stands in its data, and how another process gets to the same place.

Keras makes an iterator over the input per epoch, or one for several epochs, and gives a
callback no way to see or to move it. A `Feed` watches the `EpochIterator` of one `fit`:

    find_feed() -> watch -> state() -> training_state.h5 -> resume() -> begin()

One subclass per kind of input knows how to begin in the middle: `_feed_arrays`,
`_feed_pipeline` (tf.data and whatever else), `_feed_py_dataset`, `_feed_grain`.

Leans on `EpochIterator._enumerate_iterator`, `_get_iterator`, `_current_iterator`,
`_num_batches`, `_steps_seen`, `TFEpochIterator._distributed_dataset`, on the names
`epoch_iterator` and `val_x` in `Trainer.fit`, and on `model._eval_epoch_iterator`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

import keras

from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._training import running_fit


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
        self._epochs = epoch_iterator
        self._model = weakref.ref(model)
        self._validation = names.get("val_x")
        self._made = Count.of(names.get("x"))
        self._validation_made = Count.of(self._validation)
        self.adapter = epoch_iterator.data_adapter
        self.iterator: Any = None
        self._born = (0, 0)
        self._watched: set[int] = set()
        self._pending: tuple[Mapping[str, Any], int] | None = None
        epoch_iterator._get_iterator = lambda: _Counted(self._new_iterator)

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
        own = self._input_exactness()
        return own if own.level != "true" else self._validation_exactness

    @cached_property
    def _validation_exactness(self) -> Exactness:
        if not hasattr(self._validation, "element_spec"):
            return Exactness()
        from mlflow_ckpt.keras_internals._pipeline import why_not_exact

        return why_not_exact(self._validation) or Exactness()

    def _batch_size(self) -> int | None:
        size = self.adapter.batch_size
        return None if size is None else int(size)

    @property
    def element_spec(self) -> Any:
        """Of a batch, as `tf.data.Dataset.element_spec`."""
        return self._dataset.element_spec

    # --- count ----------------------------------------------------------------

    def watch(self, *, inside_epochs: bool) -> None:
        """Get ready for `state`; `inside_epochs` says whether it will be asked within epochs."""

    def watch_validation(self) -> None:
        """Count the iterators over the validation input too. Called as each evaluation begins."""
        evaluated = getattr(self._model(), "_eval_epoch_iterator", None)
        if evaluated is None or id(evaluated) in self._watched:
            return
        self._watched.add(id(evaluated))
        dataset = evaluated._get_iterator()

        def count() -> Any:
            self._validation_made.iterators += 1
            return iter(dataset)

        evaluated._get_iterator = lambda: _Counted(count)

    def _new_iterator(self) -> Any:
        """Make the iterator that the next batches come from."""
        self._born = (self._made.iterators, self._validation_made.iterators)
        self._made.iterators += 1
        self.iterator = iter(self._dataset)
        return self.iterator

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
            "made": self._made.iterators,
            "validation_made": self._validation_made.iterators,
            "num_batches": self._epochs._num_batches,
            "born": list(self._born) if goes_on else None,
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
            self._make_up(int(state["made"]), int(state["validation_made"]))

    def release(self) -> None:
        """Give Keras's iterator its own methods back; safe to call twice."""
        for name in ("_enumerate_iterator", "_get_iterator"):
            vars(self._epochs).pop(name, None)

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
        epochs.data_adapter.on_epoch_begin()
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
        made, validation_made = (int(n) for n in state["born"])
        self._make_up(made, validation_made)
        self._born = (made, validation_made)
        self._made.iterators += 1
        self.iterator = self._iterator_at(int(state["read"]), state["own"])
        self._make_up(int(state["made"]), int(state["validation_made"]))

    def _make_up(self, made: int, validation_made: int) -> None:
        """Make iterators until this many were made, where their number matters."""
        missing = validation_made - self._validation_made.iterators
        if missing > 0 and hasattr(self._validation, "element_spec"):
            from mlflow_ckpt.keras_internals._pipeline import make_iterators

            make_iterators(self._validation, missing)
            self._validation_made.iterators = validation_made

    # --- what a kind of input does its own way ----------------------------------

    def _input_exactness(self) -> Exactness:
        raise NotImplementedError

    def _own_state(self, read: int) -> dict[str, Any]:
        return {}

    def _restore_own(self, own: Mapping[str, Any]) -> None:
        """Restore what `_own_state` returned, but the place in an iterator."""

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        """Make an iterator whose next batch is number `read` (from 0)."""
        raise NotImplementedError


class Count:
    """How many iterators this process has made over one dataset object.

    Fits that share the object share the count: it belongs to the object.
    """

    def __init__(self) -> None:
        self.iterators = 0

    @classmethod
    def of(cls, dataset: Any) -> Count:
        """The count of a `tf.data.Dataset`; of anything else, nobody needs to know it."""
        if not hasattr(dataset, "element_spec"):
            return cls()
        found: Count = vars(dataset).setdefault("_mlflow_ckpt_count", cls())
        return found


class _Counted:
    """Stands for a dataset where Keras says `iter(...)`."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return self._make()


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
