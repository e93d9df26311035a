"""Tell the person who watches `fit` something, on a line of its own."""

from __future__ import annotations


def say(text: str) -> None:
    """Print `text` below Keras's progress bar, which leaves its line open."""
    print(f"\nmlflow_ckpt: {text}", flush=True)
