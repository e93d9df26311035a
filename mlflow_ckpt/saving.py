"""Save one checkpoint by hand, without a `fit`: now, or behind a training loop of one's own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

import keras

from mlflow_ckpt import snapshot
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.errors import ConfigError, SaveFailed
from mlflow_ckpt.ground import open_journal
from mlflow_ckpt.pending import PendingSave, SaveRequest
from mlflow_ckpt.record import Checkpoint, Position, Run, Series
from mlflow_ckpt.reporter import Reporter, is_wanted
from mlflow_ckpt.selector import validate_series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store
from mlflow_ckpt.writer import Writer

# Series that have something to do or to say, by tracking URI, run and series.
_LANES: dict[tuple[str, str, str], _Lane] = {}
_LOCK = threading.Lock()
_LOOK_S = 0.2
_PATIENCE_S = 2.0  # beyond MLflow's own retries


def save(
    model: keras.Model,
    run_id: str | None = None,
    *,
    series: str = "manual",
    step: int | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    weights_only: bool = False,
) -> Checkpoint:
    """Commit a checkpoint of `model` now. The model need not be compiled.

    Retention never removes a checkpoint that was saved by hand, and a `fit` never resumes
    from one: load it with `load_model` or `load_weights`.

    Args:
        model: A built model.
        run_id: The run; `None` takes the active one, else `MLFLOW_RUN_ID`.
        series: Its metrics are logged as `<series>/<metric>`.
        step: Training batches behind it; `None` counts on from the newest of the series.
        epoch: Epochs behind it; `None` means 0.
        metrics: Finite numbers by which it can be ranked: `best(<metric>,<mode>)`.
        weights_only: Store `.weights.h5` instead of a whole model.

    Raises:
        ConfigError: If a number is negative, or a metric is not finite.
        ModelNotBuilt: If the model has no variables yet.
        NoActiveRun, RunNotFound, RunDeleted: If there is no run to save to.
        SaveFailed: If it was not committed. Where the server is away it waits in the spool, and
            is committed later.
        SpoolError: If the spool cannot be used.
    """
    target = _Target(run_id, series, settled=True)
    pending = target.submit(model, step, epoch, metrics or {}, weights_only)
    return target.wait(pending)


def save_async(
    model: keras.Model,
    run_id: str | None = None,
    *,
    series: str = "manual",
    step: int | None = None,
    epoch: int | None = None,
    metrics: Mapping[str, float] | None = None,
    weights_only: bool = False,
) -> PendingSave:
    """Like `save`, but return as soon as the state is captured; write and commit it behind.

    The next call waits for nothing: checkpoints of one series are written one after the
    other, and each keeps its state in memory until then. Call `wait()` on the one before
    to hold one at a time. The process exit waits for all of them.

    Raises:
        SaveFailed: If an earlier one of this run and series was not committed and nobody has
            called its `wait()`; this one is then not saved.
        ConfigError, ModelNotBuilt, NoActiveRun, RunNotFound, RunDeleted: As `save`.

    Example:

    ```python
    for step, (x, y) in enumerate(batches, start=1):
        loss = model.train_on_batch(x, y)
        if step % 1000 == 0:
            pending = save_async(model, step=step, metrics={"loss": loss})
    pending.wait()
    ```
    """
    target = _Target(run_id, series, settled=False)
    return target.submit(model, step, epoch, metrics or {}, weights_only)


class _Lane:
    """The writer of one series, and the highest step that it was given."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.step = 0


class _Target:
    """Where a save by hand goes.

    Args:
        settled: Whether what is being written to the run comes first.
    """

    def __init__(self, run_id: str | None, series: str, *, settled: bool) -> None:
        self._name = validate_series(series)
        self._store = Store()
        self._run = self._store.run(run_id, settled=settled)
        self._lane = _lane(self._store, self._run, series)
        self._lane.writer.deliver()

    def submit(
        self,
        model: keras.Model,
        step: int | None,
        epoch: int | None,
        metrics: Mapping[str, float],
        weights_only: bool,
    ) -> PendingSave:
        values = _check(step, epoch, metrics)
        self._lane.writer.raise_failures(last=True)
        captured = snapshot.capture(model, weights_only=weights_only)
        facts = _series(self._store, self._run, self._name)
        step = self._step(facts, step)
        curves = Curves(facts)
        rows = curves.epoch_rows(values, epoch if epoch is not None else step)
        request = SaveRequest(
            series=facts,
            position=Position(series=self._name, kind="manual", epoch=epoch or 0, step=step),
            snapshot=captured,
            state=None,
            rows=[*rows.values(), curves.step_row(step)],
            metrics=values,
        )
        return self._lane.writer.submit(request)

    def wait(self, pending: PendingSave) -> Checkpoint:
        """Wait for the commit, but not for a server that is away.

        Raises:
            SaveFailed: If it was not committed, or not yet.
        """
        writer, away_since = self._lane.writer, 0.0
        while True:
            try:
                return pending.wait(_LOOK_S)
            except TimeoutError:
                fault = writer.fault
                if not isinstance(fault, Exception) or pending.done():
                    away_since = 0.0
                    continue
                away_since = away_since or time.monotonic()
                if time.monotonic() - away_since > _PATIENCE_S:
                    reason = str(fault).rstrip(".")
                    raise SaveFailed(
                        f"The checkpoint {pending.position.name} is not committed yet: {reason}. "
                        f"It waits in {writer.journal.path}, and is delivered by the next save or "
                        f"by: mlflow-ckpt sync {self._run.run_id}",
                        reason=fault,
                    ) from fault

    def _step(self, facts: Series, step: int | None) -> int:
        """The step that was asked for, else the one after the newest, on its way or there."""
        if step is None:
            known = self._name in self._run.series
            newest = self._store.latest(self._run, facts) if known else None
            step = max(newest.step if newest else 0, self._lane.step) + 1
        self._lane.step = max(self._lane.step, step)
        return step


def _lane(store: Store, run: Run, series: str) -> _Lane:
    """The lane of this series; lanes that are through are forgotten."""
    with _LOCK:
        for key in [key for key, lane in _LANES.items() if lane.writer.through]:
            del _LANES[key]
        key = (store.uri, run.run_id, series)
        if key not in _LANES:
            spool = Spool()
            journal = open_journal(store, run, series, spool)
            reporter = None
            if is_wanted():
                # No end of a fit brings the report up to date: each save does, if it can.
                reporter = Reporter(store, run.run_id, series, first_s=0.0, again_s=1.0)
            _LANES[key] = _Lane(Writer(store, run, journal, spool=spool, reporter=reporter))
        return _LANES[key]


def _check(step: int | None, epoch: int | None, metrics: Mapping[str, float]) -> dict[str, float]:
    for name, number in (("step", step), ("epoch", epoch)):
        if number is not None and (isinstance(number, bool) or number < 0):
            raise ConfigError(f"Expected a whole number of at least 0. Received: {name}={number!r}")
    values = {key: float(value) for key, value in metrics.items()}
    for key, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"Expected a finite number. Received: metrics[{key!r}]={value!r}")
    return values


def _series(store: Store, run: Run, name: str) -> Series:
    """The run's series of this name; a new one always prefixes its metrics.

    The plain metric names belong to the first `fit` of the run, which may come later.
    """
    known = run.series.get(name)
    if known is not None:
        return known
    series = Series(name=name, prefix=f"{name}/")
    store.set_series(run, series)
    return series
