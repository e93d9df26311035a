"""What a person sees on the terminal: our lines, and not other libraries' chatter."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_beside_output = False


def say(text: str) -> None:
    """Print `text` below Keras's progress bar, which leaves its line open."""
    if _beside_output:
        print(f"mlflow_ckpt: {text}", file=sys.stderr, flush=True)
    else:
        print(f"\nmlflow_ckpt: {text}", flush=True)


def say_on_stderr() -> None:
    """From now on: stdout belongs to what a command prints for others to read."""
    global _beside_output
    _beside_output = True


@contextmanager
def errors_only(logger: str) -> Iterator[None]:
    """Silence a logger's warnings about what is meant to be."""
    found = logging.getLogger(logger)
    level = found.level
    found.setLevel(logging.ERROR)
    try:
        yield
    finally:
        found.setLevel(level)
