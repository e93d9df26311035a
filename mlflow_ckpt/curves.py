"""Draw a run's metric curves so that no step of any key appears twice.

    Curves    makes rows while training goes on, and asks nobody
    Drawn     holds each row against what the run has, when it is delivered

MLflow cannot delete or trim a metric, so what a resumed fit trains again it must not
log again. A replayed point that equals the logged one repeats its row exactly, which
MLflow stores once; one that differs is left out and reported as a divergence.

Epoch metrics have the MLflow step = epoch; `ckpt_step` has the MLflow step = its value.
This module needs no Keras: a spool is delivered without it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mlflow_ckpt.record import STEP_METRIC, MetricRow, Run, Series
from mlflow_ckpt.store import Store, now_ms


class Curves:
    """The curves of one series of one run.

    Args:
        series: Gives the prefix of the keys.
        step_offset: Added to each epoch; -1 beside MLflow's own Keras callback, which
            counts epochs from 0.
    """

    def __init__(self, series: Series, *, step_offset: int = 0) -> None:
        self._prefix = series.prefix
        self._step_offset = step_offset
        self._last: dict[str, MetricRow] = {}

    def epoch_rows(self, values: Mapping[str, float], epoch: int) -> dict[str, MetricRow]:
        """One row per metric."""
        stamp = now_ms()
        return {
            key: self._row(key, value, epoch + self._step_offset, stamp)
            for key, value in values.items()
        }

    def step_row(self, step: int) -> MetricRow:
        """The row by which the server orders checkpoints."""
        return self._row(STEP_METRIC, float(step), step, now_ms())

    def measured_rows(self, values: Mapping[str, float], step: int) -> list[MetricRow]:
        """Rows of what was measured: no replay can repeat them."""
        stamp = now_ms()
        return [self._row(name, value, step, stamp) for name, value in values.items()]

    def _row(self, name: str, value: float, step: int, stamp: int) -> MetricRow:
        key = self._prefix + name
        last = self._last.get(key)
        if last is not None and last.step == step and _same(last.value, value):
            # Two checkpoints of one step repeat one row.
            return last
        self._last[key] = MetricRow(key=key, value=value, timestamp=stamp, step=step)
        return self._last[key]


class Drawn:
    """What a run's curves hold, as far as it has been asked for.

    Args:
        store: Where they are read, each key once, when its first row is delivered.
        run: The run as it is when delivery begins.
    """

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._run = run
        self._known: dict[str, dict[int, MetricRow]] = {}
        self.divergences: list[str] = []

    def admit(self, rows: Iterable[MetricRow], *, replayed: bool = True) -> list[MetricRow]:
        """The rows to log.

        Args:
            replayed: Whether a row whose step is there already should have its value. If not,
                it is left out without a word.

        Raises:
            StoreError: If the run cannot be read.
        """
        admitted: dict[tuple[str, int], MetricRow] = {}
        for row in rows:
            place = (row.key, row.step)
            found = self._admit(row, admitted.get(place), replayed)
            if found is not None:
                admitted[place] = found
        return list(admitted.values())

    def logged(self, rows: Iterable[MetricRow]) -> None:
        """Note that these are on the server now."""
        for row in rows:
            self._rows(row.key).setdefault(row.step, row)

    def _admit(self, row: MetricRow, beside: MetricRow | None, replayed: bool) -> MetricRow | None:
        there = self._rows(row.key).get(row.step) or beside
        if there is None:
            return row
        if _same(there.value, row.value):
            return there
        if replayed and not row.key.endswith(STEP_METRIC):
            self.divergences.append(
                f"{row.key}@{row.step}: logged {there.value!r}, replayed {row.value!r}"
            )
        return None

    def _rows(self, key: str) -> dict[int, MetricRow]:
        if key not in self._known:
            old = key in self._run.metric_names
            self._known[key] = dict(self._store.rows(self._run, key)) if old else {}
        return self._known[key]


def _same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
