"""Save one checkpoint by hand, without a `fit`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras

from mlflow_ckpt import fingerprint, snapshot
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.record import Checkpoint, Position, Run, Series
from mlflow_ckpt.selector import validate_series
from mlflow_ckpt.store import Store
from mlflow_ckpt.writer import SaveRequest, Writer


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
        SaveFailed: If it was not committed.
    """
    values = _check(step, epoch, metrics or {})
    captured = snapshot.capture(model, weights_only=weights_only)
    store = Store()
    run = store.run(run_id)
    store.prepare_experiment(run)
    facts = _series(store, run, validate_series(series))
    if step is None:
        newest = store.latest(run, facts) if series in run.series else None
        step = newest.step + 1 if newest else 1
    curves = Curves(store, run, facts)
    rows = curves.epoch_rows(values, epoch if epoch is not None else step)
    step_row = curves.step_row(step)
    position = Position(series=series, kind="manual", epoch=epoch or 0, step=step)
    request = SaveRequest(
        run=run,
        series=facts,
        position=position,
        snapshot=captured,
        spec=fingerprint.io_spec(model),
        state=None,
        rows=[*rows.values(), *([step_row] if step_row else [])],
        metrics=values,
    )
    return Writer(store, keep=None).submit(request).wait()


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
