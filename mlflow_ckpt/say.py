"""What a person sees on the terminal: our lines, and not other libraries' chatter."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def say(text: str) -> None:
    """Print `text` below Keras's progress bar, which leaves its line open."""
    print(f"\nmlflow_ckpt: {text}", flush=True)


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
