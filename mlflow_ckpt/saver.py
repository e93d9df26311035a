"""Make the save requests of a running `fit`: gather model, state and metric rows.

    Session decides that it is time -> Saver gathers -> Writer writes and commits behind

One checkpoint is in work at a time: the next one waits for it in the hook, or is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import keras

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.drain import drain
from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.pending import PendingSave, SaveRequest
from mlflow_ckpt.policy import Every, Keep
from mlflow_ckpt.record import Checkpoint, Kind, MetricRow, Position, Series
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.snapshot import Capturer
from mlflow_ckpt.state_mark import StateMark
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import prepare_card
from mlflow_ckpt.writer import Writer

WhenBusy = Literal["wait", "skip"]


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """When to save, what of it, and what to keep.

    Attributes:
        every: The triggers.
        keep: What stays in the store.
        on_improvement: Whether an epoch that improves the monitor is saved beyond `every`.
        weights_only: Whether to store weights instead of whole models.
        when_busy: What to do while the checkpoint before is still being written.
        verbose: Whether to print a line per checkpoint.
    """

    every: Every
    keep: Keep | None
    on_improvement: bool
    weights_only: bool
    when_busy: WhenBusy = "wait"
    verbose: bool = False


@dataclass(kw_only=True)
class Counts:
    """Where a running series stands.

    Attributes:
        epoch: Completed epochs.
        step: Completed batches.
        epoch_began_at: `step` at the beginning of the current epoch.
        best: Best finite monitor value so far.
    """

    epoch: int
    step: int
    epoch_began_at: int = 0
    best: float | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """The checkpoint that holds the state in which `fit` left the model.

    Attributes:
        entry: Its name in the spool, if it came from one.
        model_id: Its LoggedModel, if it is committed already.
    """

    entry: str = ""
    model_id: str = ""


class Saver:
    """Saves one fit's checkpoints.

    Args:
        model, plan: Those of the fit.
        fit_state: What it remembers outside of the model.
        policy: What to store.
        curves: Where metric rows come from.
        draws: Whether this callback draws the epoch curves (no other one does).
        epochs: The `epochs` that `fit` was given.
        writer: Writes and commits.
        meter: Measures what it costs.

    Attributes:
        saved_at: When the last one was captured, by the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        model: keras.Model,
        fit_state: FitState,
        plan: Plan,
        policy: SavePolicy,
        curves: Curves,
        draws: bool,
        epochs: int,
        writer: Writer,
        meter: Meter,
    ) -> None:
        self._model = model
        self._fit_state = fit_state
        self._plan = plan
        self._policy = policy
        self._curves = curves
        self._draws = draws
        self._epochs = epochs
        self._writer = writer
        self._meter = meter
        self._capturer = Capturer(model, weights_only=policy.weights_only)
        self._newest: Checkpoint | PendingSave | None = None
        self._mark: StateMark | None = None
        self.saved_at = time.monotonic()

    def prepare(self) -> None:
        """Make what all checkpoints have in common, so that the first one need not wait for it."""
        plan, reporter = self._plan, self._writer.reporter
        if plan.restore is not None and not plan.finished and reporter is not None:
            reporter.resumed(fit=plan.fit, epoch=plan.epoch, step=plan.step)
        if not self._policy.weights_only and keras_internals.has_variables(self._model):
            self._writer.call(partial(prepare_card, fingerprint.io_spec(self._model)))

    def log_epoch(self, counts: Counts, metrics: Mapping[str, float]) -> None:
        """Draw an epoch that gets no checkpoint."""
        self._writer.log(self._drawn(self._curves.epoch_rows(metrics, counts.epoch)))

    def save(
        self,
        kind: Kind,
        series: Series,
        counts: Counts,
        metrics: Mapping[str, float],
        *,
        must: bool = False,
    ) -> bool:
        """Hand a resume point to the writer together with its metrics.

        Args:
            must: Whether to wait for the one before even where the policy says skip.

        Returns:
            Whether there is a new one; if not, it was skipped.

        Raises:
            SaveFailed, StoreError: What has failed since the save before. The epoch's metrics
                are logged all the same.
        """
        rows = self._curves.epoch_rows(metrics, counts.epoch)
        if not self._may_go(rows, must):
            return False
        finite = [row for row in rows.values() if math.isfinite(row.value)]
        self._newest = self._submit(
            kind, series, counts, metrics, finite, curve=self._drawn(rows), state=True, must=must
        )
        self.saved_at = time.monotonic()
        return True

    def remember(self, checkpoint: Checkpoint | None = None) -> None:
        """Note that the model now holds what the newest checkpoint (or this one) holds."""
        self._newest = checkpoint or self._newest
        self.release()
        self._mark = self._capturer.mark()

    def unchanged(self, step: int) -> End | None:
        """The newest checkpoint, if the model still holds exactly that. Waits for the disk."""
        if self._mark is None or not self._mark.matches(self._model) or self._newest is None:
            return None
        newest = self._newest
        if newest.position.step != step:
            return None
        if isinstance(newest, PendingSave):
            entry = newest.wait_written()
            return End(entry=entry) if entry else None
        return End(entry=newest.entry, model_id=newest.model_id)

    def save_end(self, series: Series, counts: Counts) -> End | None:
        """Save an end state that differs from the last epoch's: EMA, restored best weights.

        Returns:
            Its name in the spool; `None` if it could not be written, which `drain` raises.
        """
        entry = self._submit("final", series, counts, {}, [], must=True).wait_written()
        return End(entry=entry) if entry else None

    def drain(self, timeout: float, stop: Callable[[], bool]) -> bool:
        """Wait until everything is committed; whether that is so. See `drain.drain`."""
        waited, done = drain(self._writer, timeout, stop)
        self._meter.drain_s += waited
        return done

    def measured(self, step: int) -> list[MetricRow]:
        """What the checkpoints of this fit cost it, as rows for the run's curves."""
        return self._curves.measured_rows(self._meter.stats().metrics(), step)

    def release(self) -> None:
        """Let go of what `remember` holds. Safe to call twice."""
        if self._mark is not None:
            self._mark.release()
            self._mark = None

    def _may_go(self, rows: Mapping[str, MetricRow], must: bool) -> bool:
        """Whether a checkpoint can be taken now, after waiting if that is the policy."""
        try:
            if self._writer.busy and self._policy.when_busy == "skip" and not must:
                self._writer.log(self._drawn(rows))
                self._meter.skipped += 1
                return False
            self._writer.wait_until_free()
            self._writer.raise_failures()
        except CheckpointError:
            # Training ends here: what was captured is on the disk before it does.
            self._writer.log(self._drawn(rows))
            self._writer.join_written()
            raise
        return True

    def _drawn(self, rows: Mapping[str, MetricRow]) -> list[MetricRow]:
        return [*rows.values()] if self._draws else []

    def _submit(
        self,
        kind: Kind,
        series: Series,
        counts: Counts,
        metrics: Mapping[str, float],
        rows: list[MetricRow],
        *,
        curve: list[MetricRow] | None = None,
        state: bool = False,
        must: bool = False,
    ) -> PendingSave:
        step_row = self._curves.step_row(counts.step)
        captured = time.perf_counter()
        taken = self._capturer.capture()
        self._meter.strategy, self._meter.reason = self._capturer.strategy, self._capturer.reason
        return self._writer.submit(
            SaveRequest(
                series=series,
                position=Position(
                    series=series.name,
                    kind=kind,
                    epoch=counts.epoch,
                    step=counts.step,
                    fit=self._plan.fit,
                ),
                snapshot=taken,
                state=self._state(kind, counts) if state else None,
                rows=[*rows, step_row],
                curve=curve or [],
                metrics=metrics,
                must=must,
                captured=captured,
            )
        )

    def _state(self, kind: Kind, counts: Counts) -> dict[str, Any]:
        return {
            "kind": kind,
            "epoch": counts.epoch,
            "step": counts.step,
            "epoch_began_at": counts.epoch_began_at,
            "best": counts.best,
            "fit": self._plan.fit,
            "offset": self._plan.offset,
            "initial_epoch": self._plan.initial_epoch,
            "epochs": self._epochs,
            **self._fit_state.capture(
                counts.step - counts.epoch_began_at if kind == "batch" else 0
            ),
        }
