"""End a `fit` that has returned: say which state it left, and wait for the server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import keras

from mlflow_ckpt import parcel
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.ground import Ground
from mlflow_ckpt.record import Checkpoint, Series
from mlflow_ckpt.restore import restore_end
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.resume_point import damage_of
from mlflow_ckpt.saver import Counts, Saver
from mlflow_ckpt.training import Training
from mlflow_ckpt.writer import Writer


class Ending:
    """The end of one fit of one series.

    Args:
        ground, model, saver, writer, series: Those of the fit.
    """

    def __init__(
        self, ground: Ground, model: keras.Model, saver: Saver, writer: Writer, series: Series
    ) -> None:
        self._ground = ground
        self._model = model
        self._saver = saver
        self._writer = writer
        self._series = series

    def settle(self, training: Training, fit_state: FitState) -> None:
        """Say which state the fit left, and let go of its input."""
        if training.begun:
            self.record(training.counts)
        elif training.plan.finished and not training.plan.behind:
            self.return_to(training.plan, training.counts)
            if fit_state.feed is not None:
                fit_state.feed.begin()
        fit_state.release()
        training.complete()

    def record(self, counts: Counts) -> None:
        """Say which checkpoint holds the model as it is now; save one if none does."""
        end = self._saver.unchanged(counts.step)
        self._saver.release()
        end = end or self._saver.save_end(self._series, counts)
        if end is not None:
            series = parcel.pack_series(self._series)
            self._writer.put(parcel.FINAL, {"series": series, **asdict(end)})

    def return_to(self, plan: Plan, counts: Counts) -> None:
        """Restore the end state of a fit that is complete, or make it up if a kill prevented it.

        One whose files are damaged is made up too.

        Raises:
            ServerAway: If the end state lies on a server that does not answer.
        """
        if plan.restore is not None and plan.restore.final:
            return
        self._ground.require_server("The end state of a complete series")
        end = self._ground.store.final(self._ground.run, self._series)
        if end is None or end.step != plan.step or not self._restored(end):
            self.record(counts)

    def _restored(self, end: Checkpoint) -> bool:
        damage = damage_of(self._ground, end)
        if damage is not None:
            self._ground.pass_over(end, self._series, damage)
            return False
        restore_end(self._ground, self._model, end)
        self._ground.close_files()
        return True

    def deliver(self, step: int, limit: float, stop: Callable[[], bool]) -> bool:
        """Wait for the server, and log what the checkpoints cost.

        Args:
            step: Where the series stands.
            limit: Seconds to wait, at most.
            stop: Asked whether to wait no longer.

        Returns:
            Whether everything is delivered.
        """
        began = time.monotonic()
        delivered = self._saver.drain(limit, stop)
        if rows := self._saver.measured(step):
            self._writer.put(parcel.ROWS, {"rows": parcel.pack_rows(rows), "measured": True})
        active = self._ground.store.is_active(self._ground.run.run_id)
        series = parcel.pack_series(self._series)
        report = self._writer.reporter is not None
        self._writer.put(parcel.END, {"active": active, "series": series, "report": report})
        left = max(0.0, limit - (time.monotonic() - began)) if delivered else 0.0
        return self._saver.drain(left, stop)
