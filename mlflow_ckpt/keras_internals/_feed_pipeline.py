"""tf.data pipelines, and everything else that Keras reads through one.

A position is the number of iterators made before, and where the current one stands:
its own checkpoint where the pipeline is one that a checkpoint was tried with, else the
number of elements read from it, which are then read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import tensorflow as tf

from mlflow_ckpt import own_mark
from mlflow_ckpt.keras_internals import _pipeline, _skipping
from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._feed import Feed
from mlflow_ckpt.say import say


class PipelineFeed(Feed):
    """A `tf.data.Dataset`."""

    kind = "tf.data"
    _checkpoints = False

    def _shuffled_input(self) -> Any:
        return self._dataset

    def _input_exactness(self) -> Exactness:
        found = self._pipeline_exactness
        if found.level == "true" and self._uncounted and max(self._counts(), default=0) > 1:
            reason = "the order of the tf.data pipeline depends on what was read before"
            return Exactness("unknown", reason)
        return found

    @cached_property
    def _pipeline_exactness(self) -> Exactness:
        return _pipeline.why_not_exact(self._dataset) or Exactness()

    @cached_property
    def _uncounted(self) -> bool:
        return not _pipeline.counts_every_iterator(self._dataset)

    def watch(self, *, inside_epochs: bool, stops: bool = False) -> None:
        if inside_epochs and not self._checkpoints and _pipeline.can_checkpoint(self._dataset):
            # Before the first iterator is made; it is the same pipeline all the same.
            self._epochs._distributed_dataset = _pipeline.with_checkpoints(self._dataset)
            self._checkpoints = True

    def resume(self, state: Mapping[str, Any], batch: int) -> None:
        self.watch(inside_epochs=state["own"].get("iterator") is not None)
        super().resume(state, batch)

    def _own_state(self, read: int) -> dict[str, Any]:
        if not (read and self._checkpoints and self.iterator is not None):
            return {}
        stands = _pipeline.IteratorCheckpoint(self.iterator)
        return {
            "tensorflow": tf.__version__,
            "iterator": stands,
            "mark": _pipeline.Mark(stands),
        }

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        stored = own.get("iterator")
        if (
            stored is not None
            and own["tensorflow"] == tf.__version__
            and self._checkpoints
            # Whoever else wrote it, what TensorFlow would do with it is anybody's guess.
            and own_mark.is_own(stored.tobytes(), _bytes(own.get("mark")))
        ):
            return self._checkpointed(stored)
        return self._read_again(read) if read else iter(self._dataset)

    def _checkpointed(self, stored: Any) -> Any:
        iterator = iter(self._dataset)
        _pipeline.restore_checkpoint(iterator, stored)
        return iterator

    def _read_again(self, count: int) -> Any:
        """An iterator that has `count` elements behind it."""

        def tell(read: int, seconds: float) -> None:
            whole = seconds / read * count
            say(f"reading {count} batches of the input again to find the place: ~{whole:.0f} s.")

        skipped = count - 1 if self._pipeline_exactness.level == "true" else 0
        iterator = iter(_skipping.without_first(self._dataset, skipped))
        # The last one is read, so that the time it takes is taken here.
        seconds = _skipping.advance(iterator, count - skipped, tell)
        if seconds > 5:
            say(f"read {count} batches of the input again in {seconds:.1f} s.")
        return iterator


def _bytes(mark: Any) -> bytes:
    return b"" if mark is None else bytes(mark.tobytes())


class OtherFeed(PipelineFeed):
    """A generator, a torch `DataLoader`: what nobody can tell the order of."""

    kind = "other"

    def _shuffled_input(self) -> Any:
        return None

    def _input_exactness(self) -> Exactness:
        kind = type(self.adapter).__name__.removesuffix("Adapter")
        names = {"GeneratorData": "a Python generator", "TorchDataLoader": "a torch DataLoader"}
        return Exactness("unknown", f"the input is {names.get(kind, kind)}")

    def watch(self, *, inside_epochs: bool, stops: bool = False) -> None:
        """Nothing: such an input has no checkpoint of its own."""
