"""`keras.utils.PyDataset`: the order of its batches, and what the dataset itself remembers.

With `shuffle=True`, which is the default, Keras shuffles the order of the batches with
Python's generator, in a thread of tf.data or of the workers, as the first batch of an
epoch is read. The state of the generator at that moment is all that has to be stored.

Leans on `PyDatasetAdapter._finite_generator`, `_infinite_generator`, `_standardize_batch`,
`enqueuer`, and on `OrderedEnqueuer.start`.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mlflow_ckpt.attributes import Attributes
from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._feed import Feed

_FEW = 16  # numbers in a list that is not an order
_LIMIT = 16 * 2**20  # bytes of an index array: two million samples


class PyDatasetFeed(Feed):
    """A `PyDataset`, with or without workers."""

    kind = "PyDataset"

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._drawn_from: Any = None
        self._start = 0
        self._order: list[int] | None = None
        self._lent: tuple[Any, bool] | None = None
        self._ahead = False
        self._own_methods = callable(getattr(self._data, "checkpoint_state", None)) and callable(
            getattr(self._data, "restore_checkpoint_state", None)
        )
        self._attributes = self._new_attributes()
        self._lost: list[str] = []
        self._inside: _Inside | None = None
        self._changes_inside = False
        self._take_over()

    def _new_attributes(self) -> Attributes:
        return Attributes(
            self._data,
            ignore=frozenset({"_workers", "_use_multiprocessing", "_max_queue_size"}),
            accepts=_is_no_data,
            limit=_LIMIT,
        )

    @property
    def _data(self) -> Any:
        return self.adapter.py_dataset

    @property
    def _finite(self) -> bool:
        return self._data.num_batches is not None

    def _input_exactness(self) -> Exactness:
        if self._lost:
            names = ", ".join(self._lost)
            return Exactness("unknown", f"{type(self._data).__name__}.{names} cannot be stored")
        if self.adapter.enqueuer is not None and self._epochs.steps_per_epoch:
            return Exactness("unknown", "a PyDataset with workers, and steps_per_epoch")
        if self._changes_inside:
            name = type(self._data).__name__
            return Exactness("unknown", f"{name}, or NumPy's generator, changes within an epoch")
        return Exactness()

    # --- the order of an epoch --------------------------------------------------

    def _take_over(self) -> None:
        """Let the batches come in an order that we know, which is the order Keras draws."""
        adapter, enqueuer = self.adapter, self.adapter.enqueuer
        began = adapter.on_epoch_begin

        def noting_begin() -> None:
            began()
            self._inside = _Inside(self._new_attributes())

        adapter.on_epoch_begin = noting_begin
        if enqueuer is None:
            adapter._finite_generator = self._finite_generator
            adapter._infinite_generator = self._infinite_generator
            return
        start = enqueuer.start

        def noting_start() -> None:
            if enqueuer.shuffle and not enqueuer.is_running():
                self._drawn_from = random.getstate()
            start()

        enqueuer.start = noting_start

    def _finite_generator(self) -> Iterator[Any]:
        for index in self._next_order():
            yield self.adapter._standardize_batch(self._data[index])

    def _infinite_generator(self) -> Iterator[Any]:
        first, self._start = self._start, 0
        for index in itertools.count(first):
            yield self.adapter._standardize_batch(self._data[index])

    def _next_order(self) -> list[int]:
        """The rest of the order that was stored, once; after that a new one each time."""
        if self._order is not None:
            order, self._order = self._order, None
            return order
        order = list(range(self._data.num_batches))
        if self.adapter.shuffle:
            self._drawn_from = random.getstate()
            random.shuffle(order)
        return order

    # --- position -----------------------------------------------------------------

    def _own_state(self, read: int) -> dict[str, Any]:
        if read and self._inside is not None and self._inside.changed():
            self._changes_inside = True
        state: dict[str, Any] = {"drawn_from": None, "own": None, "attributes": None}
        if read and self.adapter.shuffle and self._finite and self._drawn_from is not None:
            version, words, gauss = self._drawn_from
            state["drawn_from"] = [version, np.asarray(words, dtype=np.uint32), gauss]
        if self._own_methods:
            state["own"] = self._data.checkpoint_state()
        else:
            state["attributes"], self._lost = self._attributes.changed()
        return state

    def _restore_own(self, own: Mapping[str, Any]) -> None:
        if own["own"] is not None and self._own_methods:
            self._data.restore_checkpoint_state(own["own"])
        elif own["attributes"]:
            names = ", ".join(self._attributes.put(own["attributes"]))
            if names:
                self._misplaced = f"{type(self._data).__name__}.{names} cannot be given back"

    def resume(self, state: Mapping[str, Any], batch: int) -> None:
        # Workers begin to read before the dataset hears of the epoch.
        self._restore_own(state["own"])
        super().resume(state, batch)

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        if self.adapter.enqueuer is None or not self._ahead:
            self._set_order(read, own)
        if self.adapter.enqueuer is not None and not self._ahead:
            self._send_workers_ahead()
        return iter(self._dataset)

    def _set_order(self, read: int, own: Mapping[str, Any]) -> None:
        self._start = read
        if self._finite:
            order = list(range(self._data.num_batches))
            if own["drawn_from"] is not None:
                private = random.Random()
                self._drawn_from = _python_state(own["drawn_from"])
                private.setstate(self._drawn_from)
                private.shuffle(order)
            self._order = order[read:]

    # --- workers --------------------------------------------------------------------

    def _rest_of_epoch(self, state: Mapping[str, Any], first: int) -> Iterator[Any]:
        if self.adapter.enqueuer is not None:
            # They begin to read, and to draw an order, as the epoch begins.
            self._set_order(int(state["read"]), state["own"])
            self._send_workers_ahead()
            self._ahead = True
        yield from super()._rest_of_epoch(state, first)
        self._undo()

    def _send_workers_ahead(self) -> None:
        """Let the workers read the rest of one epoch in the stored order."""
        enqueuer, whole = self.adapter.enqueuer, self._data
        if not self._finite:
            enqueuer.indices, self._start = itertools.count(self._start), 0
            return
        rest, shuffle = self._order or [], enqueuer.shuffle
        self._order = None
        enqueuer.py_dataset, enqueuer.shuffle = _Rest(whole, rest), False

        def finite() -> Iterator[Any]:
            enqueuer.start()
            for _, batch in zip(range(len(rest)), enqueuer.get(), strict=False):
                yield self.adapter._standardize_batch(batch)

        self.adapter._finite_enqueuer_generator = finite
        self._lent = whole, shuffle

    def _undo(self) -> None:
        """Undo what `_send_workers_ahead` did."""
        if self._lent is not None:
            self.adapter.enqueuer.py_dataset, self.adapter.enqueuer.shuffle = self._lent
            vars(self.adapter).pop("_finite_enqueuer_generator", None)
            self._lent = None

    def release(self) -> None:
        super().release()
        self._undo()
        if self.adapter.enqueuer is not None:
            vars(self.adapter.enqueuer).pop("start", None)
        for name in ("_finite_generator", "_infinite_generator", "on_epoch_begin"):
            vars(self.adapter).pop(name, None)


class _Rest:
    """The batches of an epoch that are left, for Keras's workers. Pickled by processes."""

    def __init__(self, dataset: Any, order: list[int]) -> None:
        self._dataset = dataset
        self._order = order

    @property
    def num_batches(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[self._order[index]]


def _python_state(saved: Any) -> tuple[Any, ...]:
    version, words, gauss = saved
    return version, tuple(int(word) for word in words), gauss


class _Inside:
    """What must stay as it is while the batches of an epoch are read, ahead of the training."""

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self._numpy = _numpy_state()

    def changed(self) -> bool:
        state, lost = self._attributes.changed()
        return bool(state or lost) or _numpy_state() != self._numpy


def _numpy_state() -> tuple[bytes, int]:
    _, words, position, *_ = np.random.get_state(legacy=True)
    return np.asarray(words).tobytes(), int(position)


def _is_no_data(name: str, value: Any) -> bool:
    """Whether an attribute may be stored: an order of samples may, samples and labels may not."""
    if isinstance(value, np.ndarray):
        return _is_order(value)
    if isinstance(value, (list, tuple)) and len(value) > _FEW:
        return all(type(item) is int for item in value) and _is_order(np.asarray(value))
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return len(value) <= _FEW and all(_is_small(item) for item in value)
    if isinstance(value, Mapping):
        return len(value) <= _FEW and all(_is_small(item) for item in value.values())
    return True


def _is_small(value: Any) -> bool:
    return value is None or type(value) in (bool, int) or (type(value) is str and len(value) < 64)


def _is_order(array: np.ndarray[Any, Any]) -> bool:
    """Whether it holds every number below its length once."""
    if array.ndim != 1 or array.dtype.kind not in "iu" or not len(array):
        return False
    seen = np.zeros(len(array), dtype=bool)
    if array.min() < 0 or array.max() >= len(array):
        return False
    seen[array] = True
    return bool(seen.all())
