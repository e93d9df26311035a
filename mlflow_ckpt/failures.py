"""What went wrong behind the training, until somebody raises it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlflow_ckpt.errors import CheckpointError, StoreError
from mlflow_ckpt.pending import PendingSave
from mlflow_ckpt.say import say

_logger = logging.getLogger("mlflow_ckpt")


@dataclass(frozen=True)
class _Failure:
    error: BaseException
    pending: PendingSave | None
    passing: bool

    @property
    def raised(self) -> bool:
        """Whether `PendingSave.wait` has raised it."""
        return self.pending is not None and self.pending.raised


class Failures:
    """Failures in the order in which they happened."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[_Failure] = []

    @property
    def open(self) -> bool:
        """Whether there is one that nobody has raised."""
        with self._lock:
            return any(not failure.raised for failure in self._kept)

    def keep(
        self, error: BaseException, pending: PendingSave | None = None, *, passing: bool = False
    ) -> None:
        """Keep a failure.

        Args:
            pending: Whose failure it is, if somebody may be waiting for it.
            passing: Whether training goes on with it: a disk that is full.
        """
        with self._lock:
            self._kept.append(_Failure(error, pending, passing))
        _logger.error("%s", error)
        if passing or not threading.main_thread().is_alive():
            say(str(error))  # Training goes on, or nobody is left to raise it to.

    def raise_first(self, *, last: bool) -> None:
        """Raise the first failure that nobody has raised; its notes name the others.

        Args:
            last: Whether passing ones are raised too. If not, they stay.
        """
        with self._lock:
            due = [f for f in self._kept if (last or not f.passing) and not f.raised]
            self._kept = [f for f in self._kept if f.passing and not last and not f.raised]
        if due:
            first, *others = [failure.error for failure in due]
            for other in others:
                first.add_note(f"After it: {other}")
            raise first

    def attempt(self, action: Callable[[], object], run_id: str, folder: Path) -> None:
        """Do something for which nobody stands above: what goes wrong is kept.

        Args:
            run_id: The run that is written to.
            folder: Where its journal lies on this disk.
        """
        try:
            action()
        except CheckpointError as error:
            self.keep(error)
        except Exception as error:  # noqa: BLE001 (kept, and raised by `raise_first`)
            where = folder if isinstance(error, OSError) else f"run {run_id}"
            failure = StoreError(f"Could not write to {where}: {error!r}")
            failure.__cause__ = error
            self.keep(failure, passing=isinstance(error, OSError))
