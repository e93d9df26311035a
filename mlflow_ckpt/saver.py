"""Make the save requests of a running `fit`: gather model, state and metric rows.

Session decides that it is time -> Saver gathers -> Writer writes and commits
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras

from mlflow_ckpt import callback_state, fingerprint, snapshot, training_state
from mlflow_ckpt.curves import Curves
from mlflow_ckpt.errors import ConfigError, SaveFailed
from mlflow_ckpt.policy import Every, Keep
from mlflow_ckpt.record import Checkpoint, Kind, Position, Run, Series
from mlflow_ckpt.resume import Plan
from mlflow_ckpt.say import say
from mlflow_ckpt.writer import SaveRequest, Writer


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """When to save, what of it, and what to keep.

    Attributes:
        every: The triggers.
        keep: What stays in the store.
        on_improvement: Whether an epoch that improves the monitor is saved beyond `every`.
        weights_only: Whether to store weights instead of whole models.
        verbose: Whether to print a line per checkpoint.
    """

    every: Every
    keep: Keep | None
    on_improvement: bool
    weights_only: bool
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


class Saver:
    """Saves one fit's checkpoints.

    Args:
        run, model, callbacks, plan: Those of the fit.
        policy: What to store.
        curves: Where metric rows come from.
        draws: Whether this callback draws the epoch curves (no other one does).
        epochs: The `epochs` that `fit` was given.
        writer: Writes and commits.

    Attributes:
        newest: The newest committed resume point of this fit.
        saved_at: When it was saved, by the monotonic clock, in seconds.
    """

    def __init__(
        self,
        *,
        run: Run,
        model: keras.Model,
        callbacks: keras.callbacks.CallbackList,
        plan: Plan,
        policy: SavePolicy,
        curves: Curves,
        draws: bool,
        epochs: int,
        writer: Writer,
    ) -> None:
        self._run = run
        self._model = model
        self._callbacks = callbacks
        self._plan = plan
        self._policy = policy
        self._curves = curves
        self._draws = draws
        self._epochs = epochs
        self._writer = writer
        self._content = ""
        self.newest: Checkpoint | None = None
        self.saved_at = time.monotonic()

    def log_epoch(self, counts: Counts, metrics: Mapping[str, float]) -> None:
        """Draw an epoch that gets no checkpoint."""
        if self._draws:
            self._curves.log(self._curves.epoch_rows(metrics, counts.epoch))

    def save(
        self, kind: Kind, series: Series, counts: Counts, metrics: Mapping[str, float]
    ) -> None:
        """Save a resume point together with its metrics.

        Raises:
            SaveFailed: If it was not committed. The epoch's metrics are logged all the same.
        """
        rows = self._curves.epoch_rows(metrics, counts.epoch)
        finite = {key: row for key, row in rows.items() if math.isfinite(row.value)}
        state = self._state(kind, counts)
        request = self._request(kind, series, counts, state, metrics, [*finite.values()])
        try:
            self.newest = self._writer.submit(request).wait()
        except SaveFailed:
            if self._draws:
                self._curves.log(rows)
            raise
        if self._draws:
            # The finite rows came with the checkpoint; a LoggedModel turns NaN into 0.0.
            self._curves.log({key: row for key, row in rows.items() if key not in finite})
        self.saved_at = time.monotonic()
        if self._policy.verbose:
            say(f"saved {self.newest.name} ({self.newest.bytes:,} bytes) as {self.newest.uri}")

    def remember(self, checkpoint: Checkpoint | None = None) -> None:
        """Note that the model now holds what the newest checkpoint (or this one) holds."""
        self.newest = checkpoint or self.newest
        self._content = snapshot.content_digest(self._model)

    def unchanged(self, step: int) -> Checkpoint | None:
        """The newest checkpoint, if the model still holds exactly that."""
        if self.newest is None or self.newest.step != step or not self._content:
            return None
        return self.newest if self._content == snapshot.content_digest(self._model) else None

    def save_end(self, series: Series, counts: Counts) -> Checkpoint:
        """Save an end state that differs from the last epoch's: EMA, restored best weights.

        Raises:
            SaveFailed: If it was not committed.
        """
        return self._writer.submit(self._request("final", series, counts, None, {}, [])).wait()

    def _request(
        self,
        kind: Kind,
        series: Series,
        counts: Counts,
        state: Mapping[str, Any] | None,
        metrics: Mapping[str, float],
        rows: list[Any],
    ) -> SaveRequest:
        step_row = self._curves.step_row(counts.step)
        return SaveRequest(
            run=self._run,
            series=series,
            position=Position(
                series=series.name,
                kind=kind,
                epoch=counts.epoch,
                step=counts.step,
                fit=self._plan.fit,
            ),
            snapshot=snapshot.capture(self._model, weights_only=self._policy.weights_only),
            spec=fingerprint.io_spec(self._model),
            state=state,
            rows=[*rows, *([step_row] if step_row else [])],
            metrics=metrics,
        )

    def _state(self, kind: Kind, counts: Counts) -> dict[str, Any]:
        callbacks, unknown = callback_state.capture(self._callbacks.callbacks)
        if unknown and self.newest is None:
            say(
                f"The state of {', '.join(unknown)} is not stored. Give it checkpoint_state() and "
                "restore_checkpoint_state(state) if a resume needs it."
            )
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
            "stop_training": bool(self._model.stop_training),
            "build_config": _plain_build_config(self._model),
            "variables": training_state.capture_variables(self._model),
            "generators": training_state.capture_generators(),
            "callbacks": callbacks,
        }


def _plain_build_config(model: keras.Model) -> Any:
    """The build config where it is plain data; a functional model does not need one."""
    config = model.get_build_config() if model.built else None
    try:
        training_state.check_plain(config)
    except ConfigError:
        return None
    return config
