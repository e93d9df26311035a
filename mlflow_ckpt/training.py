"""Follow the training of one `fit`: count batches and epochs, and decide what is saved.

    (epoch_begin -> (batch_begin -> batch_end)* -> validation* -> epoch_end)*

Called always after every other callback of the list, so that what is captured is what the
next batch would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from mlflow_ckpt import keras_internals, parcel, parts, policy
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.monitor import Monitor
from mlflow_ckpt.options import Options
from mlflow_ckpt.policy import Moment
from mlflow_ckpt.record import Run, Series
from mlflow_ckpt.resume import Plan, Progress
from mlflow_ckpt.resumption import Resumption
from mlflow_ckpt.saver import Counts, Saver
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.writer import Writer


class Training:
    """The training of one series, from its first epoch to its last.

    Args:
        options, model, fit_state, meter: Those of the fit.
        run, series: What the run says of itself and of the series.
        plan: Where it begins.
        resumption: How it goes on from there.
        monitor, saver, writer: What ranks, gathers and writes its checkpoints.
        progress: What this process remembers of the series.
        arguments: Those of `fit`.

    Attributes:
        plan: Where this fit of the series began.
        series: What the run says of the series by now.
        counts: Where it stands.
        begun: Whether an epoch has begun.
    """

    def __init__(
        self,
        *,
        options: Options,
        model: keras.Model,
        fit_state: FitState,
        meter: Meter,
        run: Run,
        series: Series,
        plan: Plan,
        resumption: Resumption,
        monitor: Monitor,
        saver: Saver,
        writer: Writer,
        progress: Progress,
        arguments: Mapping[str, Any],
    ) -> None:
        self._options = options
        self._model = model
        self._fit_state = fit_state
        self._meter = meter
        self._run = run
        self.series = series
        self.plan = plan
        self._resumption = resumption
        self._monitor = monitor
        self._saver = saver
        self._writer = writer
        self._progress = progress
        self._steps = arguments.get("steps")
        self._epochs = int(arguments.get("epochs") or 0)
        self.counts = Counts(epoch=plan.epoch, step=plan.step, best=plan.best)
        self._asked_step = self._saved_step = plan.step
        self._batches = 0
        self._first_batch = True
        self._whole = False
        self.begun = False
        every = options.saves.every
        self._inside_epochs = every.steps is not None or every.seconds is not None
        self._record_series(monitor.series)

    def move(self, plan: Plan) -> None:
        """Count on from where `plan` stands."""
        self.plan = plan
        self.counts.epoch, self.counts.step = plan.epoch, plan.step
        self._asked_step = self._saved_step = plan.step

    # --- hooks ----------------------------------------------------------------

    def epoch_begin(self, *, told: bool) -> None:
        """Go on where the checkpoint stands, if this is the first epoch.

        Args:
            told: Whether another series of this fit has said in the run where it goes on.
        """
        keras_internals.clear_initial_epoch(self._model)
        self._batches = 0
        if not self.begun:
            self._write_tags(self._resumption.go_on(self.plan, told=told))
            self._saver.prepare()
            self._batches = self.plan.inside
        self.begun = self._whole = True
        self.counts.epoch_began_at = self.counts.step - self._batches

    def batch_begin(self) -> None:
        """Note that from here on an update may have begun."""
        self._whole = False

    def batch_end(self, batch: int, logs: Mapping[str, Any] | None) -> bool:
        """Count the batches up to Keras's index `batch`; save if that is due.

        With `steps_per_execution` one call ends several batches, and the last one of an
        epoch fewer than it says.

        Returns:
            Whether this is a place to stop. After the last batch of an epoch it is not: what
            follows brings metrics.
        """
        began = self._meter.step_ended()
        done = min(batch + 1, self._steps) if self._steps else batch + 1
        self.counts.step += done - self._batches
        self._batches = done
        self._fit_state.logs = logs or {}
        if self._first_batch:
            self._first_batch = False
            self._write_tags(self._resumption.first_batch())
        self._progress.step = self.counts.step
        self._whole = True
        if done == self._steps:
            return False  # What is due now is due at the epoch's end.
        if self._inside_epochs:
            is_due = policy.due(self._options.saves.every, self._moment(epoch_ended=False))
            if is_due and self._save_inside(must=False):
                self._meter.saved(began, self.counts.step)
            self._asked_step = self.counts.step
        return True

    def validation_begin(self) -> None:
        """The epoch is trained; its metrics are about to be used for something else."""
        if self._options.interrupt.signals or self._options.interrupt.exceptions:
            self._fit_state.hold_metrics()

    def validation_end(self) -> None:
        """What follows is the epoch's end: whoever acts in it has acted, or not."""
        self._whole = False
        self._fit_state.release_metrics()

    def epoch_end(self, epoch: int, logs: Mapping[str, Any] | None, *, stops: bool) -> None:
        """Log the epoch, and save it if it is due, better, or the last.

        Args:
            stops: Whether a signal makes it the last.
        """
        began = time.perf_counter()
        self._whole = False
        metrics = parts.scalars(logs or {})
        counts = self.counts
        counts.epoch = self.plan.offset + epoch + 1
        improved = self._monitor.watch(epoch, counts.epoch, metrics)
        counts.best = self._monitor.best
        self._record_series(self._monitor.series)
        last = epoch + 1 >= self._epochs or self._model.stop_training
        if stops or self._wants(improved, last and math.isfinite(metrics.get("loss", 0.0))):
            saved = self._saver.save("epoch", self.series, counts, metrics, must=last or stops)
            if last:
                self._saver.remember()
            if saved:
                self._saved_step = counts.step
                self._meter.saved(began, counts.step)
        else:
            self._saver.log_epoch(counts, metrics)
        self._asked_step = counts.step
        self._progress.epoch, self._progress.best = counts.epoch, counts.best

    def complete(self) -> None:
        """Remember that the fit has come to its end."""
        self._progress.epoch, self._progress.step = self.counts.epoch, self.counts.step
        self._progress.best = self.counts.best
        self._progress.status = "completed"

    # --- saving ---------------------------------------------------------------

    def save_now(self) -> None:
        """Save where the fit stands, if that is a place between two batches and not saved yet.

        Raises:
            SaveFailed, StoreError: What has failed since the save before.
        """
        if self.begun and self._whole and self._batches and self._saved_step != self.counts.step:
            self._save_inside(must=True)

    def _save_inside(self, *, must: bool) -> bool:
        saved = self._saver.save("batch", self.series, self.counts, {}, must=must)
        if saved:
            self._saved_step = self.counts.step
        return saved

    def _wants(self, improved: bool, sound_end: bool) -> bool:
        """Whether the epoch that ended is saved: the last one is, unless it diverged."""
        saves = self._options.saves
        is_due = policy.due(saves.every, self._moment(epoch_ended=True))
        return is_due or (improved and saves.on_improvement) or sound_end

    def _moment(self, *, epoch_ended: bool) -> Moment:
        return Moment(
            step=self.counts.step,
            previous_step=self._asked_step,
            epoch=self.counts.epoch,
            epoch_ended=epoch_ended,
            seconds=time.monotonic() - self._saver.saved_at,
        )

    # --- what the run says ----------------------------------------------------

    def _record_series(self, updated: Series) -> None:
        """Write the series' facts to the run if they changed, before any later checkpoint."""
        if updated == self.series and self.series.name in self._run.series:
            return
        tags = {**self._run.tags, updated.tag: updated.to_json()}
        self._run, self.series = replace(self._run, tags=tags), updated
        self._writer.put(parcel.SERIES, parcel.pack_series(updated))

    def _write_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._writer.put(parcel.TAGS, {"tags": dict(tags)})
