"""The Keras callback: hooks only. `session.py` does the work.

Keras calls callbacks in list order, and several of them act in the very hooks that a
checkpoint needs to see finished: at the `on_epoch_end` of a callback listed first,
ReduceLROnPlateau has not acted and History lacks the epoch; EarlyStopping resets itself
in `on_train_begin`. So the callback appends a tail to the list that drives it, behind
everybody, and works from there. It may stand first, in the middle or last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import keras

from mlflow_ckpt import keras_internals
from mlflow_ckpt.errors import ConfigError, ConflictingCallback
from mlflow_ckpt.interrupt import Interrupt
from mlflow_ckpt.options import Options
from mlflow_ckpt.policy import Every, Keep
from mlflow_ckpt.resume_option import Resume
from mlflow_ckpt.saver import SavePolicy, WhenBusy
from mlflow_ckpt.selector import Mode, validate_series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.stats import Stats
from mlflow_ckpt.tail import Tail
from mlflow_ckpt.trace import PROBE


class MlflowCheckpoint(keras.callbacks.Callback):
    """Log checkpoints and their metrics to an MLflow run, and continue it by its run ID.

    Args:
        save_freq: `"epoch"`, a number of batches, or `Every(epochs= | steps= | seconds=)`.
            The last epoch of a fit is always saved, so that a longer fit can continue it.
        monitor: Name in the epoch's logs that ranks checkpoints; `None` ranks none.
        mode: `"min"`, `"max"`, or `"auto"`: what Keras knows of the metric.
        save_best_only: Keep the best, and one rolling resume point, and nothing else.
        save_weights_only: Store `.weights.h5` instead of a whole model. Such a checkpoint
            cannot be registered or served.
        keep: What stays on the server, per series; `None` keeps all.
        name: Name of the series: letters, digits, `_` and `-`.
        run_id: The run; `None` takes the active one, else `MLFLOW_RUN_ID`.
        resume: `"auto"` continues from the newest checkpoint that an earlier process wrote;
            a selector or `Resume(...)` names one; `False` refuses a run that has some.
        log_metrics: Whether to log the metrics of every epoch, not only of saved ones.
        spool: Where checkpoints wait for the server: `Spool(dir=, max_bytes=, drain_timeout=)`.
        interrupt: What SIGTERM, Ctrl-C and an exception in `fit` do:
            `Interrupt(signals=, exceptions=, grace_seconds=)`; `False` leaves them to Python.
        when_busy: What to do when a checkpoint is due and the one before is still being
            written to the local disk: `"wait"` for it in the hook, or `"skip"` the new one,
            also one that improves the monitor. Its metrics are logged, and the last epoch is
            never skipped. Nobody waits for the server.
        report: Whether to keep the run's page `checkpoints/report.html`, its table
            `checkpoints/checkpoints.json` and, where it has none, its description up to date.
        verbose: 1 prints a line per checkpoint, once it is committed.

    Raises:
        ConfigError: If an argument cannot be used.

    During `fit` it raises `NoActiveRun`, `RunNotFound`, `RunDeleted`, `UnsupportedStore`,
    `ServerAway`, `SpoolError`, `SeriesInUse`, `LeaseHeld`, `ResumeError`, `ModelMismatch` and
    `DigestMismatch` before the first batch, `MonitorMissing` at the first epoch's end. From
    then on no server holds `fit` up: checkpoints are written behind the training, to the spool
    first. `SaveFailed` is raised by the next save after the one that failed, or at the end of
    `fit`; a full disk at the end only. `LeaseLost` is raised where another process has taken
    the series over.

    Example:

    ```python
    with mlflow.start_run():
        model.fit(x, y, epochs=50, validation_data=(vx, vy), callbacks=[MlflowCheckpoint()])
    ```
    """

    def __init__(
        self,
        *,
        save_freq: Literal["epoch"] | int | Every = "epoch",
        monitor: str | None = "val_loss",
        mode: Literal["auto", "min", "max"] = "auto",
        save_best_only: bool = False,
        save_weights_only: bool = False,
        keep: Keep | None = Keep(),  # noqa: B008 (frozen)
        name: str = "ckpt",
        run_id: str | None = None,
        resume: str | bool | Resume = "auto",
        log_metrics: bool = True,
        spool: Spool | str | os.PathLike[str] | None = None,
        interrupt: Interrupt | Literal[False] | None = None,
        when_busy: Literal["wait", "skip"] = "wait",
        report: bool = True,
        verbose: int = 0,
    ) -> None:
        super().__init__()
        saves = _save_policy(save_freq, monitor, save_best_only, save_weights_only, keep)
        self._options = Options(
            saves=replace(saves, when_busy=_check_when_busy(when_busy), verbose=bool(verbose)),
            monitor=_check_monitor(monitor),
            mode=_check_mode(mode),
            name=validate_series(name),
            run_id=run_id,
            resume=Resume.parse(resume),
            log_metrics=log_metrics,
            spool=Spool.parse(spool),
            interrupt=Interrupt.parse(interrupt),
            report=bool(report),
        )
        self._tail: Tail | None = None

    def stats(self) -> Stats:
        """What the checkpoints of the running `fit` cost so far; after it, of the last one."""
        return Stats() if self._tail is None else self._tail.meter.stats()

    def set_model(self, model: keras.Model) -> None:
        """Join the list that drives us. Keras calls this once per `fit`."""
        super().set_model(model)
        callbacks = keras_internals.calling_callback_list()
        if callbacks is None:
            raise ConfigError(
                "MlflowCheckpoint works inside a keras.callbacks.CallbackList: give it to "
                "model.fit(callbacks=[...]), or wrap it in a CallbackList in a loop of your own."
            )
        _refuse_conflicts(callbacks)
        if self._tail is None or self._tail.callbacks is not callbacks:
            self._tail = _new_tail(self._options, callbacks)
            keras_internals.append_callback(callbacks, self._tail)
        keras_internals.watch_unwinding(callbacks, self._tail.raised)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Nothing: its presence makes Keras call batch hooks in line, in order."""

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Nothing: its presence makes Keras call these hooks, of the tail too."""


def _new_tail(options: Options, callbacks: keras.callbacks.CallbackList) -> Tail:
    """The tail of a fit; one that records what it sees in a process that `testing` watches."""
    if PROBE in os.environ:
        from mlflow_ckpt.probe import ProbingTail

        return ProbingTail(options, callbacks)
    return Tail(options, callbacks)


def _check_when_busy(when_busy: str) -> WhenBusy:
    if when_busy not in ("wait", "skip"):
        raise ConfigError(f"Expected 'wait' or 'skip'. Received: when_busy={when_busy!r}")
    return when_busy  # type: ignore[return-value]


def _check_monitor(monitor: str | None) -> str | None:
    if monitor is None or (isinstance(monitor, str) and monitor.strip()):
        return monitor
    raise ConfigError(f"Expected the name of a metric, or None. Received: monitor={monitor!r}")


def _check_mode(mode: str) -> Mode | None:
    if mode not in ("auto", "min", "max"):
        raise ConfigError(f"Expected 'auto', 'min' or 'max'. Received: mode={mode!r}")
    return None if mode == "auto" else mode  # type: ignore[return-value]


def _save_policy(
    save_freq: str | int | Every,
    monitor: str | None,
    best_only: bool,
    weights_only: bool,
    keep: Keep | None,
) -> SavePolicy:
    every = Every.parse(save_freq)
    if keep is not None and not isinstance(keep, Keep):
        raise ConfigError(f"Expected Keep(last=, best=, every=) or None. Received: keep={keep!r}")
    if best_only and (keep is None or monitor is None):
        raise ConfigError(
            "save_best_only=True needs a monitor and a keep policy: it keeps the best and one "
            f"resume point. Received: monitor={monitor!r}, keep={keep!r}"
        )
    if best_only and keep is not None:
        keep = Keep(last=1, best=keep.best or 1, every=keep.every)
    # Without an epoch trigger the best epoch might never be saved.
    missed = monitor is not None and monitor.startswith("val_") and every.epochs is None
    return SavePolicy(
        every=every,
        keep=keep,
        on_improvement=best_only or missed,
        weights_only=weights_only,
    )


def _refuse_conflicts(callbacks: keras.callbacks.CallbackList) -> None:
    """Refuse savers that write legacy `.h5` from the live model, and a second series of one name.

    Keras's legacy writer pops the optimizer out of the model's compile config, and every
    later `.keras` of that model reloads as RMSprop with part of its variables.
    """
    names: set[str] = set()
    seen: list[MlflowCheckpoint] = []
    for callback in callbacks.callbacks:
        kind = type(callback).__name__
        path = str(getattr(callback, "filepath", ""))
        if isinstance(callback, MlflowCheckpoint):
            name = callback._options.name
            if any(callback is other for other in seen):
                raise ConfigError(
                    "The same MlflowCheckpoint stands twice among the callbacks of this fit. "
                    "Leave one of them out."
                )
            if name in names:
                raise ConfigError(
                    f"Two MlflowCheckpoint callbacks write the series {name!r}. Leave one of them "
                    f"out, or give it another name=, such as MlflowCheckpoint(name='{name}2')."
                )
            names.add(name)
            seen.append(callback)
        elif kind == "MlflowModelCheckpointCallback" and not getattr(
            callback, "save_weights_only", False
        ):
            raise ConflictingCallback(
                "MLflow's own checkpoint callback saves the live model as legacy .h5, which "
                "damages its optimizer for every later save. Switch it off: "
                "mlflow.tensorflow.autolog(checkpoint=False)."
            )
        elif isinstance(callback, keras.callbacks.ModelCheckpoint) and (
            path.endswith((".h5", ".hdf5")) and not path.endswith(".weights.h5")
        ):
            raise ConflictingCallback(
                "ModelCheckpoint saves the live model as legacy .h5, which damages its optimizer "
                "for every later save. Give it a path ending in .keras. "
                f"Received: filepath={path!r}"
            )
