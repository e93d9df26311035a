"""Follow one running `fit`: count, decide, save, and end.

The callback's hooks call in here, always after every other callback of the list, so
that what is captured is what the next batch would have seen.

    begin -> (batch_end ... epoch_end)* -> end
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras

from mlflow_ckpt import (
    callback_state,
    fingerprint,
    keras_internals,
    policy,
    resume,
    snapshot,
    training_state,
)
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.errors import ConfigError, SaveFailed
from mlflow_ckpt.monitor import Monitor
from mlflow_ckpt.policy import Every, Keep, Moment
from mlflow_ckpt.record import Checkpoint, Kind, Position, Run, Series
from mlflow_ckpt.resume import Plan, Resume
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store import Store
from mlflow_ckpt.writer import SaveRequest, Writer


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """When to save, what of it, and what to keep.

    Attributes:
        every: The triggers.
        keep: What stays in the store.
        on_improvement: Whether an epoch that improves the monitor is saved beyond `every`.
        weights_only: Whether to store weights instead of whole models.
    """

    every: Every
    keep: Keep | None
    on_improvement: bool
    weights_only: bool


@dataclass(frozen=True, kw_only=True)
class Options:
    """The callback's validated arguments."""

    saves: SavePolicy
    monitor: str | None
    mode: Mode | None
    name: str
    run_id: str | None
    resume: Resume | None
    log_metrics: bool
    verbose: int


class Session:
    """One `fit` of one series of one run.

    Args:
        options: The callback's arguments.
        model: The model that is being trained.
        callbacks: The list that drives us.
    """

    def __init__(
        self, options: Options, model: keras.Model, callbacks: keras.callbacks.CallbackList
    ) -> None:
        self._options = options
        self._model = model
        self._callbacks = callbacks
        self._arguments: Mapping[str, Any] = {}
        self._trained = False
        self._saved: Checkpoint | None = None
        self._saved_digest = ""
        self._saved_at = time.monotonic()
        self._batches = 0
        self._epoch_began_at = 0
        self._mlflow_counts = any(type(c).__name__ == "MlflowCallback" for c in callbacks.callbacks)

    # --- begin ----------------------------------------------------------------

    def begin(self, params: Mapping[str, Any]) -> None:
        """Find the run, plan, restore. Called after every `on_train_begin`."""
        options = self._options
        self._arguments = {**params, **keras_internals.fit_arguments()}
        self._store = Store()
        self._run = self._store.run(options.run_id)
        fit, earlier = resume.this_fit(self._store, self._run, options.name, self._model)
        known = self._run.series.get(options.name)
        self._series = known or _new_series(self._run, options.name)
        begun, folder = resume.plan(
            self._store,
            self._run,
            self._series,
            options.resume,
            fit,
            earlier,
            self._arguments,
            known=known is not None,
        )
        try:
            self._start(begun, folder)
        finally:
            if folder is not None:
                shutil.rmtree(folder)

    def _start(self, begun: Plan, folder: Path | None) -> None:
        if begun.restore is not None and folder is not None:
            self._restore(begun, folder)
        self._plan = begun
        self.step = self._asked_step = begun.step
        self._epoch = begun.epoch
        self._store.prepare_experiment(self._run)
        self._monitor = Monitor(
            self._options.monitor,
            self._options.mode,
            series=self._series,
            best=begun.best,
            model=self._model,
            arguments=self._arguments,
        )
        self._record_series(self._monitor.series)
        self._curves = Curves(
            self._store, self._run, self._series, step_offset=-1 if self._mlflow_counts else 0
        )
        self._writer = Writer(self._store, keep=self._options.saves.keep)
        self._progress = resume.track(self._store, self._run, self._series, self._model, begun)
        if self._mlflow_counts:
            say(
                "MLflow's own Keras callback is attached and counts epochs from 0: it draws the "
                "curves, and they are not protected against repeated steps after a resume."
            )

    def _restore(self, begun: Plan, folder: Path) -> None:
        checkpoint, options = begun.restore, self._options
        assert checkpoint is not None
        left = resume.restore(self._store, self._model, self._callbacks.callbacks, begun, folder)
        where = f"run {self._run.run_id}, series {options.name!r}"
        if begun.finished:
            epochs = int(self._arguments.get("epochs", 0))
            keras_internals.set_initial_epoch(
                self._model, max(epochs, checkpoint.epoch - begun.offset)
            )
            say(f"{where}: already complete at epoch {checkpoint.epoch}; nothing to train.")
        else:
            keras_internals.set_initial_epoch(self._model, checkpoint.epoch - begun.offset)
            say(f"{where}: continues after epoch {checkpoint.epoch}, step {checkpoint.step}.")
            if checkpoint.kind == "batch":
                done = checkpoint.step - int(begun.state["epoch_began_at"])
                say(
                    f"{where}: the checkpoint was taken inside an epoch; its first {done} batches "
                    "are trained again."
                )
        if left:
            say(f"{where}: not restored, because this fit has no place for it: {', '.join(left)}.")

    def _record_series(self, updated: Series) -> None:
        """Write the series' facts to the run if they changed."""
        if updated != self._series or self._series.name not in self._run.series:
            self._store.set_series(self._run, updated)
            tags = {**self._run.tags, updated.tag: updated.to_json()}
            self._run = replace(self._run, tags=tags)
        self._series = updated

    # --- train ----------------------------------------------------------------

    def epoch_begin(self) -> None:
        """Undo the override of `initial_epoch` as soon as it has served."""
        keras_internals.clear_initial_epoch(self._model)
        self._trained = True
        self._epoch_began_at = self.step
        self._batches = 0

    def batch_end(self, batch: int) -> None:
        """Count the batches up to Keras's index `batch`; save if that is due.

        With `steps_per_execution` one call ends several batches.
        """
        self.step += batch + 1 - self._batches
        self._batches = batch + 1
        self._progress.step = self.step
        if self._batches == self._arguments.get("steps"):
            return  # The epoch's end follows and brings metrics: what is due now is due then.
        if policy.due(self._options.saves.every, self._moment(epoch_ended=False)):
            self._save("batch", {})
        self._asked_step = self.step

    def epoch_end(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Log the epoch, and save it if it is due, better, or the last."""
        metrics = {key: float(value) for key, value in (logs or {}).items()}
        self._epoch = self._plan.offset + epoch + 1
        improved = self._monitor.watch(epoch, self._epoch, metrics)
        self._record_series(self._monitor.series)
        is_due = policy.due(self._options.saves.every, self._moment(epoch_ended=True))
        last = epoch + 1 >= int(self._arguments.get("epochs", 0)) or self._model.stop_training
        sound = math.isfinite(metrics.get("loss", 0.0))
        if is_due or (improved and self._options.saves.on_improvement) or (last and sound):
            self._save("epoch", metrics)
            if last:
                self._saved_digest = snapshot.content_digest(self._model)
        elif self._options.log_metrics and not self._mlflow_counts:
            self._curves.log(self._curves.epoch_rows(metrics, self._epoch))
        self._asked_step = self.step
        self._progress.epoch, self._progress.best = self._epoch, self._monitor.best

    def _moment(self, *, epoch_ended: bool) -> Moment:
        return Moment(
            step=self.step,
            previous_step=self._asked_step,
            epoch=self._epoch,
            epoch_ended=epoch_ended,
            seconds=time.monotonic() - self._saved_at,
        )

    # --- save -----------------------------------------------------------------

    def _save(self, kind: Kind, metrics: Mapping[str, float]) -> None:
        rows = self._curves.epoch_rows(metrics, self._epoch)
        finite = {key: row for key, row in rows.items() if math.isfinite(row.value)}
        step_row = self._curves.step_row(self.step)
        request = SaveRequest(
            run=self._run,
            series=self._series,
            position=self._position(kind),
            snapshot=snapshot.capture(self._model, weights_only=self._options.saves.weights_only),
            spec=fingerprint.io_spec(self._model),
            state=self._state(kind),
            rows=[*finite.values(), *([step_row] if step_row else [])],
            metrics=metrics,
        )
        draws = self._options.log_metrics and not self._mlflow_counts
        try:
            self._saved = self._writer.submit(request).wait()
        except SaveFailed:
            if draws:
                self._curves.log(rows)
            raise
        if draws:
            # The finite rows came with the checkpoint; a LoggedModel turns NaN into 0.0.
            self._curves.log({key: row for key, row in rows.items() if key not in finite})
        self._saved_at = time.monotonic()
        if self._options.verbose:
            say(f"saved {self._saved.name} ({self._saved.bytes:,} bytes) as {self._saved.uri}")

    def _position(self, kind: Kind) -> Position:
        return Position(
            series=self._series.name,
            kind=kind,
            epoch=self._epoch,
            step=self.step,
            fit=self._plan.fit,
        )

    def _state(self, kind: Kind) -> dict[str, Any]:
        callbacks, unknown = callback_state.capture(self._callbacks.callbacks)
        if unknown and not self._saved:
            say(
                f"The state of {', '.join(unknown)} is not stored. Give it checkpoint_state() and "
                "restore_checkpoint_state(state) if a resume needs it."
            )
        return {
            "series": self._series.name,
            "kind": kind,
            "epoch": self._epoch,
            "step": self.step,
            "epoch_began_at": self._epoch_began_at,
            "fit": self._plan.fit,
            "offset": self._plan.offset,
            "initial_epoch": self._plan.initial_epoch,
            "epochs": int(self._arguments.get("epochs", 0)),
            "stop_training": bool(self._model.stop_training),
            "best": self._monitor.best,
            "build_config": _plain_config(self._model),
            "variables": training_state.capture_variables(self._model),
            "generators": training_state.capture_generators(),
            "callbacks": callbacks,
        }

    # --- end ------------------------------------------------------------------

    def end(self) -> None:
        """Record the state in which `fit` leaves the model. Called after every `on_train_end`."""
        self.release()
        self._end_state()
        self._curves.report()
        self._progress.epoch, self._progress.step = self._epoch, self.step
        self._progress.best = self._monitor.best
        self._progress.status = "completed"

    def _end_state(self) -> None:
        if not self._trained:
            end = self._store.final(self._run, self._series) if self._plan.finished else None
            if end is not None and end.step == self._plan.step:
                resume.restore_end(self._store, self._model, end)
                return
            if self._plan.restore is None or self._plan.behind:
                return
        same = self._saved is not None and self._saved.step == self.step
        if same and self._saved and self._saved_digest == snapshot.content_digest(self._model):
            self._store.mark_final(self._saved)
        else:
            self._save_end()

    def _save_end(self) -> None:
        """The end state differs from the last epoch's: EMA, or restored best weights."""
        step_row = self._curves.step_row(self.step)
        self._writer.submit(
            SaveRequest(
                run=self._run,
                series=self._series,
                position=self._position("final"),
                snapshot=snapshot.capture(
                    self._model, weights_only=self._options.saves.weights_only
                ),
                spec=fingerprint.io_spec(self._model),
                state=None,
                rows=[step_row] if step_row else [],
                metrics={},
            )
        ).wait()

    def release(self) -> None:
        """Leave nothing behind in the model; safe to call twice."""
        keras_internals.clear_initial_epoch(self._model)


def _new_series(run: Run, name: str) -> Series:
    """The first fit series of a run owns the plain metric names; each further one is prefixed."""
    taken = any(series.prefix == "" for series in run.series.values())
    return Series(name=name, prefix=f"{name}/" if taken else "")


def _plain_config(model: keras.Model) -> Any:
    """The build config where it is plain data; a functional model does not need one."""
    config = model.get_build_config() if model.built else None
    try:
        training_state.check_plain(config)
    except ConfigError:
        return None
    return config


def say(text: str) -> None:
    """Tell the person who watches `fit`, on a line of its own."""
    print(f"\nmlflow_ckpt: {text}", flush=True)
