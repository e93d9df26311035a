"""Draw on stderr how far a command is, where that is a terminal; nothing anywhere else.

The bar goes away at the end: what a command has to say stands on stdout.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from mlflow_ckpt import progress

if TYPE_CHECKING:
    from rich.progress import Progress, Task

Unit = Literal["bytes", "checkpoints"]


@contextmanager
def shown(text: str, unit: Unit = "bytes") -> Iterator[None]:
    """Draw a bar meanwhile.

    Args:
        text: What is done, such as "downloading".
        unit: What `progress.expect` and `progress.moved` count.
    """
    if not sys.stderr.isatty():
        yield
        return
    from mlflow_ckpt.table import console

    on = console(stderr=True)
    if not on.is_interactive:  # TERM=dumb
        yield
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
    )
    with (
        Progress(*columns, console=on, transient=True, redirect_stdout=False) as drawn,
        progress.watched_by(_Bar(drawn, text, unit)),
    ):
        yield


class _Bar:
    """One bar; a `progress.Watcher`."""

    def __init__(self, drawn: Progress, text: str, unit: Unit) -> None:
        self._drawn = drawn
        self._unit = unit
        self._lock = threading.Lock()
        self._total = self._done = 0
        self._task = drawn.add_task(text, total=None, amount="")

    def expect(self, amount: int) -> None:
        with self._lock:
            self._total += amount
            self._draw()

    def moved(self, amount: int) -> None:
        with self._lock:
            # What is read twice, because it is damaged, was expected once.
            self._done = min(self._done + amount, self._total)
            self._draw()

    def turn_to(self, text: str, *, measured: bool) -> None:
        with self._lock:
            self._drawn.update(self._task, description=text)
            if not measured:
                self._total = self._done = 0
                self._drawn.reset(self._task, amount="")
                self._drawn.tasks[0].total = None  # To `reset`, None is no change.

    @contextmanager
    def hidden(self) -> Iterator[None]:
        self._drawn.stop()
        try:
            yield
        finally:
            self._drawn.start()

    def _draw(self) -> None:
        total = self._total or None
        self._drawn.update(self._task, completed=self._done, total=total)
        task = self._drawn.tasks[0]
        self._drawn.update(self._task, amount=self._amount(task))

    def _amount(self, task: Task) -> str:
        if self._unit != "bytes":
            return f"{self._done} of {self._total} {self._unit}"
        from mlflow_ckpt.table import human_bytes

        speed = f"  {human_bytes(task.speed)}/s" if task.speed else ""
        return f"{human_bytes(self._done)} of {human_bytes(self._total)}{speed}"
