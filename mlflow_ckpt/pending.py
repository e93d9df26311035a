"""What is handed to a writer, and what is handed back.

Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from mlflow_ckpt.record import Checkpoint, MetricRow, Position, Series
from mlflow_ckpt.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """One checkpoint to be made.

    Attributes:
        series, position: Where in the run it belongs.
        snapshot: State of the model. The writer reads it once and releases it.
        state: Training state to store beside the model; `None` for one saved by hand.
        rows: Finite metric rows to log with it, `ckpt_step` among them.
        curve: What the run's curves get of this epoch, finite or not, with or without
            the checkpoint.
        metrics: All metrics of the epoch by Keras's names, finite or not.
        must: Whether no later checkpoint can make up for it.
        captured: When the snapshot was taken, by `perf_counter`.
    """

    series: Series
    position: Position
    snapshot: Snapshot
    state: Mapping[str, Any] | None
    rows: Sequence[MetricRow]
    curve: Sequence[MetricRow] = ()
    metrics: Mapping[str, float]
    must: bool = True
    captured: float = field(default_factory=perf_counter)


class PendingSave:
    """A checkpoint that is being written, and then delivered to the server.

    Attributes:
        position: Where in its series it will stand.
        raised: Whether `wait` has raised its failure, so that nobody else has to.
    """

    def __init__(
        self,
        position: Position,
        outcome: Future[Checkpoint],
        written: Future[str] | None = None,
    ) -> None:
        self.position = position
        self.raised = False
        self._outcome = outcome
        self._written = written

    def done(self) -> bool:
        """Whether `wait` would return, or raise, at once."""
        return self._outcome.done()

    def wait(self, timeout: float | None = None) -> Checkpoint:
        """Return the checkpoint once it is committed.

        While the server is away it waits: the checkpoint is safe in the spool meanwhile.

        Args:
            timeout: Seconds to wait; `None` waits as long as it takes.

        Raises:
            SaveFailed: If it was not committed.
            TimeoutError: If it is still being written or delivered. It goes on.
        """
        if not futures.wait([self._outcome], timeout).done:
            raise TimeoutError(
                f"The checkpoint {self.position.name} is still being written. Wait longer, or "
                f"leave it: it goes on. Received: timeout={timeout!r}"
            )
        self.raised = self._outcome.exception() is not None
        return self._outcome.result()

    def wait_written(self) -> str | None:
        """Its name in the spool once it lies there, durably; `None` if it could not be written."""
        if self._written is None:
            return None
        futures.wait([self._written])
        return None if self._written.exception() else self._written.result()


@dataclass(frozen=True)
class Activity:
    """What a writer is doing: a text for a person, bytes done, bytes in all if known."""

    text: str = "finishing"
    done: int = 0
    total: int | None = None
