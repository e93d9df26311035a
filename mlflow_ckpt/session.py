"""Follow one running `fit`: count, decide, and end.

The callback's hooks call in here, always after every other callback of the list, so
that what is captured is what the next batch would have seen.

    begin -> (epoch_begin -> batch_end* -> epoch_end)* -> end
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from mlflow_ckpt import keras_internals, neighbours, parts, policy, resume
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.options import Options
from mlflow_ckpt.policy import Moment
from mlflow_ckpt.record import Series
from mlflow_ckpt.restore import restore_end
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.resumption import Resumption
from mlflow_ckpt.saver import Counts, Saver
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import Store


class Session:
    """One `fit` of one series of one run.

    Args:
        options: The callback's arguments.
        model: The model that is being trained.
        callbacks: The list that drives us.
        meter: Measures what the checkpoints cost.

    Attributes:
        plan: Where this fit of the series began.
        fit_state: What the fit remembers; all of its sessions share it.
        resumption: How it was continued, if it was.
    """

    def __init__(
        self,
        options: Options,
        model: keras.Model,
        callbacks: keras.callbacks.CallbackList,
        meter: Meter,
    ) -> None:
        self._options = options
        self._meter = meter
        self._model = model
        self._callbacks = callbacks
        self._began = False
        self._trained = False
        self._batches = 0
        self._first_batch = True
        every = options.saves.every
        self._inside_epochs = every.steps is not None or every.seconds is not None

    # --- begin ----------------------------------------------------------------

    def begin(self, params: Mapping[str, Any]) -> None:
        """Find the run, plan, restore. Called after every `on_train_begin`."""
        self._arguments = {**params, **keras_internals.fit_arguments()}
        self._epochs = int(self._arguments.get("epochs") or 0)
        self._store = Store()
        self._run = self._store.run(self._options.run_id)
        name = self._options.name
        known = self._run.series.get(name)
        self._series = known or parts.new_series(self._run, name)
        fit, earlier = resume.this_fit(self._store, self._run, name, self._model)
        self.plan = resume.plan(
            self._store,
            self._run,
            self._series,
            self._options.resume,
            fit,
            earlier,
            self._arguments,
            known=known is not None,
        )
        others = neighbours.sessions(self._callbacks, Session)
        shared = [other.fit_state for other in others if other is not self and other.fresh]
        self.fit_state: FitState = (
            shared[0] if shared else parts.new_fit_state(self._model, self._callbacks)
        )
        self.resumption = Resumption(
            self._store, self._run, self._model, self.fit_state, self._options.resume
        )
        try:
            self._start()
        except BaseException:
            self.release()
            raise

    def _start(self) -> None:
        every = neighbours.sessions(self._callbacks, Session)
        others = [other for other in every if other is not self]
        self.plan = neighbours.agree(self.plan, others, self.where)
        if self.plan.restore is not None:
            self.plan = self.resumption.restore(self.plan, self._epochs, self.where)
            neighbours.overtake(self.plan, others)
        if self.fit_state.feed is not None:
            self.fit_state.feed.watch(inside_epochs=self._inside_epochs)
        begun = self.plan
        self._counts = Counts(epoch=begun.epoch, step=begun.step, best=begun.best)
        self._asked_step = begun.step
        self._store.prepare_experiment(self._run)
        self._monitor = parts.new_monitor(
            self._options, self._series, begun, self._model, self._arguments
        )
        if self._is_new(self._monitor.series):
            self._store.set_series(self._run, self._monitor.series)
        self._take_series(self._monitor.series)
        self._saver = self._new_saver()
        if begun.finished and begun.restore is not None:
            self._saver.remember(begun.restore)
        self._began = True
        self._progress = resume.track(self._store, self._run, self._series, self._model, begun)

    @property
    def where(self) -> str:
        """Run and series, in words."""
        return f"run {self._run.run_id}, series {self._series.name!r}"

    @property
    def fresh(self) -> bool:
        """Whether it has begun, and trained nothing yet."""
        return self._began and not self._trained

    def follows(self, plan: Plan) -> bool:
        """Whether this session has begun in the same fit, from a checkpoint, as `plan` does."""
        return self.fresh and self.plan.resumed and plan.resumed

    def move(self, plan: Plan) -> None:
        """Count on from where `plan` stands."""
        self.plan = plan
        self.resumption.withdraw()
        self._counts.epoch, self._counts.step = plan.epoch, plan.step
        self._asked_step = plan.step

    def _new_saver(self) -> Saver:
        saves, mlflow_draws = self._options.saves, parts.mlflow_draws(self._callbacks.callbacks)
        self._writer = parts.new_writer(self._store, self._run, saves, self._meter)
        self._curves = parts.new_curves(
            self._store, self._run, self._series, self.plan, offset=-1 if mlflow_draws else 0
        )
        return Saver(
            model=self._model,
            fit_state=self.fit_state,
            plan=self.plan,
            policy=saves,
            curves=self._curves,
            draws=self._options.log_metrics and not mlflow_draws,
            epochs=self._epochs,
            writer=self._writer,
            meter=self._meter,
        )

    def _is_new(self, updated: Series) -> bool:
        return updated != self._series or self._series.name not in self._run.series

    def _take_series(self, updated: Series) -> None:
        tags = {**self._run.tags, updated.tag: updated.to_json()}
        self._run, self._series = replace(self._run, tags=tags), updated

    def _record_series(self, updated: Series) -> None:
        """Write the series' facts to the run if they changed, before any later checkpoint."""
        if self._is_new(updated):
            self._take_series(updated)
            self._writer.call(partial(self._store.set_series, self._run, updated))

    def _write_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._writer.call(partial(self._store.set_tags, self._run, tags))

    # --- train ----------------------------------------------------------------

    @property
    def step(self) -> int:
        """Batches completed in the series."""
        return self._counts.step

    def epoch_begin(self) -> None:
        """Go on where the checkpoint stands, if this is the first epoch."""
        keras_internals.clear_initial_epoch(self._model)
        self._batches = 0
        if not self._trained:
            every = neighbours.sessions(self._callbacks, Session)
            before = every[: every.index(self)]
            told = any(session.resumption.happened for session in before)
            self._write_tags(self.resumption.go_on(self.plan, told=told))
            self._saver.prepare()
            self._batches = self.plan.inside
        self._trained = True
        self._counts.epoch_began_at = self._counts.step - self._batches

    def batch_end(self, batch: int, logs: Mapping[str, Any] | None) -> None:
        """Count the batches up to Keras's index `batch`; save if that is due.

        With `steps_per_execution` one call ends several batches, and the last one of an
        epoch fewer than it says.
        """
        began = self._meter.step_ended()
        steps = self._arguments.get("steps")
        done = min(batch + 1, steps) if steps else batch + 1
        self._counts.step += done - self._batches
        self._batches = done
        self.fit_state.logs = logs or {}
        if self._first_batch:
            self._first_batch = False
            self._write_tags(self.resumption.first_batch())
        self._progress.step = self._counts.step
        if not self._inside_epochs:
            return
        if self._batches == self._arguments.get("steps"):
            return  # The epoch's end follows and brings metrics: what is due now is due then.
        is_due = policy.due(self._options.saves.every, self._moment(epoch_ended=False))
        if is_due and self._saver.save("batch", self._series, self._counts, {}):
            self._meter.saved(began)
        self._asked_step = self._counts.step

    def epoch_end(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Log the epoch, and save it if it is due, better, or the last."""
        began = time.perf_counter()
        metrics = parts.scalars(logs or {})
        counts = self._counts
        counts.epoch = self.plan.offset + epoch + 1
        improved = self._monitor.watch(epoch, counts.epoch, metrics)
        counts.best = self._monitor.best
        self._record_series(self._monitor.series)
        last = epoch + 1 >= self._epochs or self._model.stop_training
        if self._wants(improved, last and math.isfinite(metrics.get("loss", 0.0))):
            saved = self._saver.save("epoch", self._series, counts, metrics, must=last)
            if last:
                self._saver.remember()
            if saved:
                self._meter.saved(began)
        else:
            self._saver.log_epoch(counts, metrics)
        self._asked_step = counts.step
        self._progress.epoch, self._progress.best = counts.epoch, counts.best

    def _wants(self, improved: bool, sound_end: bool) -> bool:
        """Whether the epoch that ended is saved: the last one is, unless it diverged."""
        saves = self._options.saves
        is_due = policy.due(saves.every, self._moment(epoch_ended=True))
        return is_due or (improved and saves.on_improvement) or sound_end

    def _moment(self, *, epoch_ended: bool) -> Moment:
        return Moment(
            step=self._counts.step,
            previous_step=self._asked_step,
            epoch=self._counts.epoch,
            epoch_ended=epoch_ended,
            seconds=time.monotonic() - self._saver.saved_at,
        )

    # --- end ------------------------------------------------------------------

    def end(self) -> None:
        """Record the state in which `fit` leaves the model. Called after every `on_train_end`."""
        self.release()
        self._meter.finish()
        self._saver.drain()
        if self._trained:
            self._record_end()
        elif self.plan.finished and not self.plan.behind:
            self._return_to_end()
            if self.fit_state.feed is not None:
                self.fit_state.feed.begin()
        self.fit_state.release()
        self._log_costs()
        self._curves.report()
        self._write_tags(self.resumption.diverged(self._curves.divergences))
        self._progress.epoch, self._progress.step = self._counts.epoch, self._counts.step
        self._progress.best = self._counts.best
        self._progress.status = "completed"
        self._saver.link_rest()

    def _record_end(self) -> None:
        end = self._saver.unchanged(self._counts.step)
        self._saver.release()
        if end is None:
            end = self._saver.save_end(self._series, self._counts)
        self._store.mark_final(self._run, self._series, end)

    def _log_costs(self) -> None:
        """Say in the run what its checkpoints cost this fit."""
        values = self._meter.stats().metrics()
        rows = self._curves.first_rows(values, self._counts.step)
        if rows:
            self._store.log_rows(self._run, rows)

    def _return_to_end(self) -> None:
        """Restore the end state of a fit that is complete, or make it up if a kill prevented it."""
        end = self._store.final(self._run, self._series)
        if end is not None and end.step == self.plan.step:
            restore_end(self._store, self._model, end)
        else:
            self._record_end()

    def release(self) -> None:
        """Leave nothing behind in the model; safe to call twice."""
        keras_internals.clear_initial_epoch(self._model)
        self.resumption.release()
