"""Decide which checkpoints the page of a run lists.

A run's page lists the models that are linked to it. MLflow keeps a link when its model is
deleted, and returns all of them with every answer about the run: with 10,000 links `get_run`
took 0.5 s over HTTP, and a page of runs pays that for each of them. So the first `ALWAYS`
checkpoints of a run are linked as they are committed, later ones at most one in `APART_S`,
and the end of a `fit` links of what is there then the newest `ALWAYS`. All of them are in the
experiment's list of models from their commit on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ALWAYS = 100
APART_S = 60.0


class Links:
    """The links of one run, as one writer makes them.

    Args:
        count: How many the run has already.
        clock: Seconds, monotonic.

    Attributes:
        count: How many it has by now.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = count
        self._clock = clock
        self._linked_at = clock()

    @property
    def due(self) -> bool:
        """Whether the next checkpoint is to be linked."""
        return self.count < ALWAYS or self._clock() - self._linked_at >= APART_S

    def linked(self) -> None:
        """Note that one was."""
        self.count += 1
        self._linked_at = self._clock()
