"""Wait for a writer, and show how far it is when that takes a while."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from mlflow_ckpt.say import say
from mlflow_ckpt.writer import Writer

PATIENCE = 2.0
_TICK = 0.1


def drain(writer: Writer) -> float:
    """Return once the writer has nothing left to do; seconds that it took.

    After two seconds a progress bar appears, and goes away at the end; where nothing can be
    drawn over, such as a log file or `TERM=dumb`, one line says what is waited for.
    `KeyboardInterrupt` passes: the writer still finishes, before the interpreter exits.
    """
    began = time.perf_counter()
    if not writer.join(PATIENCE):
        console = Console()
        if console.is_interactive or console.is_jupyter:
            _show(writer, console)
        else:
            say(f"waits for the last checkpoint ({writer.activity.text})")
            writer.join()
    return time.perf_counter() - began


def _show(writer: Writer, console: Console) -> None:
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
            bar.update(
                task, description=now.text, completed=now.done, total=now.total, refresh=True
            )
            if writer.join(_TICK):
                return
