"""Wait for a writer, and show how far it is when that takes a while."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mlflow_ckpt import parcel
from mlflow_ckpt.say import say
from mlflow_ckpt.writer import Writer

PATIENCE = 2.0
_TICK = 0.1


def drain(
    writer: Writer, timeout: float, stop: Callable[[], bool] = lambda: False
) -> tuple[float, bool]:
    """Return once the writer has nothing left to do, or after `timeout` seconds.

    What is being written to the disk is waited for in any case. After two seconds a progress
    bar appears, and goes away at the end; where nothing can be drawn over, such as a log file
    or `TERM=dumb`, one line says what is waited for. `KeyboardInterrupt` passes: the writer
    still writes to the disk what it has.

    Args:
        timeout: Seconds.
        stop: Asked again and again whether to wait no longer.

    Returns:
        Seconds that it took, and whether everything is delivered.
    """
    began = time.perf_counter()
    done = _join(writer, began + min(PATIENCE, timeout), stop)
    if not done and timeout > PATIENCE and not stop():
        console = Console()
        if console.is_interactive or console.is_jupyter:
            done = _show(writer, console, began + timeout, stop)
        else:
            say(f"waits for the server, at most {timeout:.0f} s ({writer.activity.text})")
            done = _join(writer, began + timeout, stop)
    if not done:
        writer.join_written()
    return time.perf_counter() - began, done


def describe_left(writer: Writer) -> str:
    """What waits for the server, and how it gets there, for a person."""
    waiting = writer.journal.waiting()
    count = sum(entry.kind == parcel.CHECKPOINT and not entry.dropped for entry in waiting)
    why = f" ({writer.fault})" if writer.fault else ""
    return (
        f"the server is away{why}. {count} checkpoints and {len(waiting) - count} other entries "
        f"wait in {writer.journal.path}. The next fit with this run ID delivers them, or: "
        f"mlflow-ckpt sync {writer.run_id}"
    )


def _join(writer: Writer, end: float, stop: Callable[[], bool]) -> bool:
    while not writer.join(max(0.0, min(_TICK, end - time.perf_counter()))):
        if stop() or time.perf_counter() >= end:
            return False
    return True


def _show(writer: Writer, console: Console, end: float, stop: Callable[[], bool]) -> bool:
    columns = (
        TextColumn("mlflow_ckpt: {task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("finishing", total=None)
        while True:
            now = writer.activity
            text = f"{now.text} (the server is away)" if writer.fault else now.text
            bar.update(task, description=text, completed=now.done, total=now.total, refresh=True)
            if _join(writer, time.perf_counter() + _TICK, stop):
                return True
            if stop() or time.perf_counter() >= end:
                return False
