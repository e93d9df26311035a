"""Turn a snapshot into a committed checkpoint, then apply the keep policy.

    SaveRequest -> files in a private folder -> manifest -> store.commit -> keep policy

One save at a time, in the order they were submitted. Today the work is done before
`submit` returns, because a live snapshot must be read before training goes on; callers
hold a `PendingSave` all the same and may not assume that it is done.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ckpt import policy, training_state
from mlflow_ckpt.errors import SaveFailed
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import Checkpoint, MetricRow, Position, Run, Series
from mlflow_ckpt.snapshot import Snapshot
from mlflow_ckpt.store import Commit, Store, write_card


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """One checkpoint to be made.

    Attributes:
        run, series, position: Where it belongs.
        snapshot: State of the model; the writer reads it once.
        spec: `fingerprint.io_spec` of the model, for the MLflow signature.
        state: Training state to store beside the model; `None` for one saved by hand.
        rows: Finite metric rows to log with it, `ckpt_step` among them.
        metrics: All metrics of the epoch by Keras's names, finite or not.
    """

    run: Run
    series: Series
    position: Position
    snapshot: Snapshot
    spec: Mapping[str, Any] | None
    state: Mapping[str, Any] | None
    rows: Sequence[MetricRow]
    metrics: Mapping[str, float]


class PendingSave:
    """A save that was submitted.

    Attributes:
        request: What was asked for.
    """

    def __init__(self, request: SaveRequest, result: Checkpoint | SaveFailed) -> None:
        self.request = request
        self._result = result

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return True

    def wait(self) -> Checkpoint:
        """Return the committed checkpoint.

        Raises:
            SaveFailed: If it was not committed.
        """
        if isinstance(self._result, SaveFailed):
            raise self._result
        return self._result


class Writer:
    """Writes the checkpoints of one series."""

    def __init__(self, store: Store, *, keep: Keep | None) -> None:
        self._store = store
        self._keep = keep

    def submit(self, request: SaveRequest) -> PendingSave:
        """Write and commit `request`, then prune what the keep policy lets go."""
        try:
            checkpoint = self._write(request)
        except SaveFailed as error:
            return PendingSave(request, error)
        self._prune(request, checkpoint)
        return PendingSave(request, checkpoint)

    def _write(self, request: SaveRequest) -> Checkpoint:
        try:
            with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
                directory = Path(folder)
                manifest = _write_files(request, directory)
                return self._store.commit(_commit_request(request, directory, manifest))
        except OSError as error:
            raise SaveFailed(
                f"The checkpoint {request.position.name} could not be written to "
                f"{error.filename or tempfile.gettempdir()}: {error.strerror or error}. "
                "Free some space, or point TMPDIR elsewhere. Earlier checkpoints are untouched.",
                reason=error,
            ) from error

    def _prune(self, request: SaveRequest, newest: Checkpoint) -> None:
        """Delete only after the new one is committed. End states are no concern of `Keep`."""
        if self._keep is None or newest.kind == "final":
            return
        history = self._store.checkpoints(request.run, request.series)
        candidates = [_candidate(c, request.series) for c in history if c.kind != "final"]
        keys = policy.kept(candidates, self._keep, request.series.mode)
        self._store.delete(c for c in history if c.kind != "final" and c.model_id not in keys)


def _write_files(request: SaveRequest, directory: Path) -> Manifest:
    request.snapshot.write(directory)
    if not request.snapshot.weights_only:
        write_card(directory, request.spec)
    if request.state is not None:
        training_state.write(directory / training_state.PATH, request.state)
    position = request.position
    return Manifest.build(
        directory,
        checkpoint={
            "series": position.series,
            "kind": position.kind,
            "epoch": position.epoch,
            "step": position.step,
            "fit": position.fit,
            "metrics": {key: _json_number(v) for key, v in request.metrics.items()},
            "monitor": request.series.monitor,
            "mode": request.series.mode,
        },
        model=request.snapshot.fingerprint,
        versions=Store.versions(),
    )


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they stand there as text, such as "nan"."""
    return value if value - value == 0 else str(value)


def _commit_request(request: SaveRequest, directory: Path, manifest: Manifest) -> Commit:
    return Commit(
        run=request.run,
        position=request.position,
        directory=directory,
        manifest=manifest,
        metrics=request.rows,
        values={key: v for key, v in request.metrics.items() if v - v == 0},
        weights_only=request.snapshot.weights_only,
        final=request.position.kind == "final",
    )


def _candidate(checkpoint: Checkpoint, series: Series) -> policy.Candidate:
    value = checkpoint.metrics.get(series.monitor) if series.monitor else None
    return policy.Candidate(
        key=checkpoint.model_id,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        epoch_ended=checkpoint.kind == "epoch",
        created=checkpoint.created_at,
        value=value,
        protected=checkpoint.pinned or checkpoint.kind == "manual",
    )
