"""Make the parts of one fit's session."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import keras

from mlflow_ckpt import keras_internals
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.monitor import Monitor
from mlflow_ckpt.options import Options
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.reporter import Reporter, is_wanted
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.saver import Saver
from mlflow_ckpt.say import say
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import Store
from mlflow_ckpt.writer import Writer


def new_series(run: Run, name: str) -> Series:
    """The first fit series of a run owns the plain metric names; each further one is prefixed."""
    taken = any(series.prefix == "" for series in run.series.values())
    return Series(name=name, prefix=f"{name}/" if taken else "")


def new_fit_state(model: keras.Model, callbacks: keras.callbacks.CallbackList) -> FitState:
    """What the running fit remembers, and where it stands in its input."""
    return FitState(model, callbacks.callbacks, keras_internals.find_feed(model))


def new_monitor(
    options: Options, series: Series, begun: Plan, model: keras.Model, arguments: Mapping[str, Any]
) -> Monitor:
    """What ranks the checkpoints of a fit; it knows the best value so far of the same quantity."""
    same = series.monitor == options.monitor
    return Monitor(
        options.monitor,
        options.mode,
        series=series,
        best=begun.best if same else None,
        model=model,
        arguments=arguments,
    )


def new_lease(ground: Ground, options: Options, where: str, needed: Callable[[], bool]) -> Lease:
    """The claim of a fit to its series."""
    force = options.resume is not None and options.resume.force
    tag = ground.store.lease_tag(ground.run, options.name)
    return Lease(tag, where=where, force=force, needed=needed)


def new_writer(
    store: Store, run: Run, options: Options, meter: Meter, journal: Journal, lease: Lease
) -> Writer:
    """The writer of a fit; with `verbose` it prints a line per committed checkpoint."""
    saves = options.saves
    reporter = None
    if is_wanted(options.report):
        reporter = Reporter(store, run.run_id, options.name, meter=meter)
    return Writer(
        store,
        run,
        journal,
        spool=options.spool,
        keep=saves.keep,
        meter=meter,
        committed=_tell if saves.verbose else None,
        claim=lease,
        reporter=reporter,
    )


def new_saver(
    options: Options,
    model: keras.Model,
    fit_state: FitState,
    plan: Plan,
    monitor: Monitor,
    writer: Writer,
    meter: Meter,
    *,
    callbacks: Iterable[keras.callbacks.Callback],
    arguments: Mapping[str, Any],
) -> Saver:
    """What gathers the checkpoints of a fit."""
    others = mlflow_draws(callbacks)
    return Saver(
        model=model,
        fit_state=fit_state,
        plan=plan,
        policy=options.saves,
        curves=Curves(monitor.series, step_offset=-1 if others else 0),
        draws=options.log_metrics and not others,
        epochs=int(arguments.get("epochs") or 0),
        writer=writer,
        meter=meter,
    )


def mlflow_draws(callbacks: Iterable[keras.callbacks.Callback]) -> bool:
    """Whether MLflow's own callback draws the curves; if so, say what that means."""
    if not any(type(callback).__name__ == "MlflowCallback" for callback in callbacks):
        return False
    say(
        "MLflow's own Keras callback is attached and counts epochs from 0: it draws the "
        "curves, and they are not protected against repeated steps after a resume."
    )
    return True


def scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The logs that are one number; a metric may also return a vector, which has no curve."""
    return {
        key: float(value)
        for key, value in logs.items()
        if isinstance(value, Real) or getattr(value, "shape", None) == ()
    }


def _tell(checkpoint: Checkpoint) -> None:
    say(f"saved {checkpoint.name} ({checkpoint.bytes:,} bytes) as {checkpoint.uri}")
