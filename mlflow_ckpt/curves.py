"""Draw a run's metric curves so that no step of any key appears twice.

MLflow cannot delete or trim a metric, so what a resumed fit trains again it must not
log again. A replayed point that equals the logged one repeats its row exactly, which
MLflow stores once; one that differs is left out and reported as a divergence.

Epoch metrics have the MLflow step = epoch; `ckpt_step` has the MLflow step = its value.

What the run has logged is read before training, for every key that the series is known
to have. A key that shows up later (a callback's own, in the logs of the first epoch) is
read when it does: nobody can know it before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from mlflow_ckpt.record import STEP_METRIC, MetricRow, Run, Series
from mlflow_ckpt.store import Store, now_ms


class Curves:
    """The curves of one series of one run.

    Args:
        store: Where the rows that the run has are read.
        run: The run as it was when the fit began.
        series: Gives the prefix of the keys.
        step_offset: Added to each epoch; -1 beside MLflow's own Keras callback, which
            counts epochs from 0.
    """

    def __init__(self, store: Store, run: Run, series: Series, *, step_offset: int = 0) -> None:
        self._store = store
        self._run = run
        self._prefix = series.prefix
        self._step_offset = step_offset
        self._known: dict[str, Mapping[int, MetricRow]] = {}
        self._last: dict[str, MetricRow] = {}
        self.divergences: list[str] = []

    def read_ahead(self, names: Iterable[str]) -> None:
        """Read what the run has of these metrics, so that no epoch has to."""
        for name in {STEP_METRIC, *names}:
            self._rows(self._prefix + name)

    def epoch_rows(self, values: Mapping[str, float], epoch: int) -> dict[str, MetricRow]:
        """One row per metric; a value that differs from the logged one has none."""
        stamp = now_ms()
        found = {
            key: self._row(key, value, epoch + self._step_offset, stamp)
            for key, value in values.items()
        }
        return {key: row for key, row in found.items() if row is not None}

    def step_row(self, step: int) -> MetricRow | None:
        """The row by which the server orders checkpoints."""
        return self._row(STEP_METRIC, float(step), step, now_ms())

    def first_rows(self, values: Mapping[str, float], step: int) -> list[MetricRow]:
        """Rows of metrics that were measured, without those that have this step already."""
        stamp, keys = now_ms(), {self._prefix + name: value for name, value in values.items()}
        return [
            MetricRow(key=key, value=value, timestamp=stamp, step=step)
            for key, value in keys.items()
            if step not in self._rows(key)
        ]

    def report(self) -> None:
        """Say in a tag of the run which replayed points differed."""
        if self.divergences:
            text = "; ".join(self.divergences[:20])
            more = f"; and {len(self.divergences) - 20} more" if len(self.divergences) > 20 else ""
            self._store.set_tag(self._run, "ckpt.resume_divergence", text + more)

    def _row(self, name: str, value: float, step: int, stamp: int) -> MetricRow | None:
        key = self._prefix + name
        logged = self._rows(key).get(step) or self._last.get(key)
        if logged is None or logged.step != step:
            # A fit never goes back, so the last row of its own is all it has to remember.
            self._last[key] = MetricRow(key=key, value=value, timestamp=stamp, step=step)
            return self._last[key]
        if logged.value == value or (math.isnan(logged.value) and math.isnan(value)):
            return logged
        if key != self._prefix + STEP_METRIC:
            self.divergences.append(f"{key}@{step}: logged {logged.value!r}, replayed {value!r}")
        return None

    def _rows(self, key: str) -> Mapping[int, MetricRow]:
        if key not in self._known:
            old = key in self._run.metric_names
            self._known[key] = self._store.rows(self._run, key) if old else {}
        return self._known[key]
