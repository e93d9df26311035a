"""`EpochData`: a position is the number of an epoch and of a batch in it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from mlflow_ckpt.keras_internals import _pipeline
from mlflow_ckpt.keras_internals._exactness import Exactness
from mlflow_ckpt.keras_internals._feed import Feed


class EpochDataFeed(Feed):
    """An input whose order is a pure function of its seed and the epoch."""

    kind = "EpochData"

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "order": self.adapter.get_config()}

    def _input_exactness(self) -> Exactness:
        return self._first_epoch_exactness

    @cached_property
    def _first_epoch_exactness(self) -> Exactness:
        # Asked at every checkpoint, and to make an epoch's dataset draws its whole order.
        first = self.adapter.dataset_of(max(0, self.adapter.epoch))
        return _pipeline.why_not_exact(first) or Exactness()

    def _own_state(self, read: int) -> dict[str, Any]:
        return {"epoch": int(self.adapter.epoch), "batch": read}

    def _restore_own(self, own: Mapping[str, Any]) -> None:
        if not own["batch"]:
            self.adapter.move_to(int(own["epoch"]) + 1, 0)

    def _rest_of_epoch(self, state: Mapping[str, Any], first: int) -> Any:
        own = state["own"]
        self.adapter.move_to(int(own["epoch"]), int(own["batch"]))
        return super()._rest_of_epoch(state, first)

    def _iterator_at(self, read: int, own: Mapping[str, Any]) -> Any:
        return iter(self._dataset)
