"""Say how far something is, to whoever watches: bytes, or things that are counted.

    with watched_by(watcher):   a command draws
        expect(1_048_576)       who knows what is coming says so
        moved(65_536)           who moves bytes says so

Bytes are moved in a `fit` too, where nobody watches; then each call is one comparison. There
is one watcher a process, whatever thread the bytes are moved on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol


class Watcher(Protocol):
    """What is told. It is called from any thread."""

    def expect(self, amount: int) -> None: ...
    def moved(self, amount: int) -> None: ...
    def turn_to(self, text: str, *, measured: bool) -> None: ...
    def hidden(self) -> AbstractContextManager[None]: ...


_watcher: Watcher | None = None


def expect(amount: int) -> None:
    """So much more is coming."""
    if _watcher is not None:
        _watcher.expect(amount)


def moved(amount: int) -> None:
    """So much of it is here."""
    if _watcher is not None:
        _watcher.moved(amount)


def turn_to(text: str, *, measured: bool = False) -> None:
    """Say what is done from now on.

    Args:
        measured: Whether what was expected is still coming; else nobody knows how much
            there is.
    """
    if _watcher is not None:
        _watcher.turn_to(text, measured=measured)


def hidden() -> AbstractContextManager[None]:
    """Let a line be printed where a bar is drawn."""
    return nullcontext() if _watcher is None else _watcher.hidden()


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Meanwhile tell `watcher`."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before
