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


def first_line(error: BaseException) -> str:
    """The first line of a message of another library's, as a sentence."""
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    return text if text.endswith(".") else f"{text}."


@contextmanager
def say_on_stderr() -> Iterator[None]:
    """Meanwhile stdout belongs to what a command prints for others to read."""
    global _beside_output
    before, _beside_output = _beside_output, True
    try:
        yield
    finally:
        _beside_output = before


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
