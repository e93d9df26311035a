"""A save request on its way to the server."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from mlflow_ckpt.errors import SaveFailed, SpoolError
from mlflow_ckpt.pending import PendingSave, SaveRequest
from mlflow_ckpt.record import Checkpoint


@dataclass
class Job:
    """A request on its way: what is asked for, and what has become of it so far."""

    request: SaveRequest
    outcome: Future[Checkpoint] = field(default_factory=Future)
    written: Future[str] = field(default_factory=Future)
    write_s: float = 0.0
    size: int = 0

    def __post_init__(self) -> None:
        self.pending = PendingSave(self.request.position, self.outcome, self.written)

    def fail(self, error: BaseException) -> None:
        for future in (self.written, self.outcome):
            if not future.done():
                future.set_exception(error)

    def superseded(self) -> SaveFailed:
        return SaveFailed(
            f"The checkpoint {self.request.position.name} was dropped before the server took it: "
            "later ones wait, and keep= would delete it. Its metrics are delivered.",
            reason=TimeoutError("the server is away"),
        )

    def unwritable(self, error: BaseException, spool: Path, run_id: str) -> BaseException:
        """What to raise for it when it could not be written to the spool because of `error`."""
        if not isinstance(error, Exception) or isinstance(error, SaveFailed):
            return error
        name = self.request.position.name
        if isinstance(error, OSError) and not isinstance(error, SpoolError):
            text = (
                f"The checkpoint {name} ({self.request.snapshot.state_bytes:,} bytes) could not be "
                f"written to {error.filename or spool}: {error.strerror or error}. Free some space "
                "there, or name another folder: Spool(dir=...) or MLFLOW_CKPT_SPOOL."
            )
        else:
            text = f"The checkpoint {name} of run {run_id} was not written: {error}"
        failure = SaveFailed(f"{text} Earlier checkpoints are untouched.", reason=error)
        failure.__cause__ = error
        return failure
