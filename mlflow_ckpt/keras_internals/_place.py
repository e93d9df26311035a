"""What is said where a stored place in an input cannot be found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mlflow_ckpt.errors import CheckpointError, ResumeError


@contextlib.contextmanager
def finding_place() -> Iterator[None]:
    """Say what was being done where an input cannot go to the place that was stored.

    Raises:
        ResumeError: In place of whatever the input raised.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, CheckpointError):
            raise
        raise ResumeError(
            f"The place in the input cannot be found again: {type(error).__name__}: {error}. "
            "Take another checkpoint, or begin its epoch again with a checkpoint of an epoch's end."
        ) from error
