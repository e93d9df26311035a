"""Decide which checkpoints the page of a run lists.

A run's page lists the models that are linked to it. MLflow keeps a link when its model is
deleted, and returns all of them with every answer about the run: with 10,000 links `get_run`
took 0.5 s over HTTP, and a page of runs pays that for each of them. So the first `ALWAYS`
checkpoints of a run are linked as they are committed, later ones at most one in `APART_S`,
and the end of a `fit` links of the rest what is still there, the newest `ALWAYS` of it. All
of them are in the experiment's list of models from their commit on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from mlflow_ckpt.record import Checkpoint

ALWAYS = 100
APART_S = 60.0


class Links:
    """The links of one run, as one writer makes them.

    Args:
        count: How many the run has already.
        clock: Seconds, monotonic.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._linked_at = clock()
        self._left: dict[str, Checkpoint] = {}

    @property
    def due(self) -> bool:
        """Whether the next checkpoint is to be linked."""
        return self._count < ALWAYS or self._clock() - self._linked_at >= APART_S

    def committed(self, checkpoint: Checkpoint, *, linked: bool) -> None:
        """Note what became of it."""
        if linked:
            self._count += 1
            self._linked_at = self._clock()
            return
        self._left[checkpoint.model_id] = checkpoint
        if len(self._left) > ALWAYS:
            del self._left[next(iter(self._left))]

    def deleted(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Forget what is there no more."""
        for checkpoint in checkpoints:
            self._left.pop(checkpoint.model_id, None)

    def take_rest(self) -> list[Checkpoint]:
        """What is to be linked at the end of a `fit`, oldest first; once."""
        rest = [*self._left.values()]
        self._left.clear()
        self._count += len(rest)
        return rest
