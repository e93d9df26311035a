"""One holding of a lease: what its tag says, and the thread that keeps and ends it.

That thread alone beats and gives back, one after the other: a beat that landed after the
clear would leave a lease that nobody holds and nobody ends.

    begin() -> beat, beat, ... -> stop() or somebody else's nonce
                               -> release(): clear, or `done` where another may wake up

Times are seconds by the monotonic clock.
"""

from __future__ import annotations

import contextvars
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from mlflow_ckpt.errors import LeaseLost, StoreError
from mlflow_ckpt.owner import Owner

_PATIENCE_S = 1.0
_MAX_CHARACTERS = 2_000  # A record has fewer than 500.


class LeaseTag(Protocol):
    """Where the record lies. Each method may raise `StoreError`."""

    def read(self) -> str | None: ...

    def write(self, value: str) -> None: ...

    def clear(self) -> None: ...


@dataclass(frozen=True)
class Record:
    """What the tag holds.

    Attributes:
        owner: The process that wrote it.
        nonce: Names the holding: one process may have several, one after the other.
        beat: Counts up while the holder is alive.
        over: Whether it was taken from a process that may still run.
        done: Whether it was given back.
    """

    owner: Owner
    nonce: str
    beat: int = 0
    over: bool = False
    done: bool = False

    def same(self, text: str) -> bool:
        """Whether a tag belongs to this holding."""
        other = Record.parse(text)
        return other is not None and other.nonce == self.nonce

    def text(self) -> str:
        flags = {"over": self.over, "done": self.done}
        return json.dumps(
            self.owner.to_dict()
            | {"nonce": self.nonce, "beat": self.beat}
            | {name: True for name, is_set in flags.items() if is_set}
        )

    @classmethod
    def parse(cls, text: str) -> Record | None:
        """Read a tag; `None` if it is no record, whoever wrote it."""
        if len(text) > _MAX_CHARACTERS:
            return None
        try:
            found = json.loads(text)
            owner = Owner.from_dict(found)
        except (ValueError, RecursionError):
            return None
        nonce, beat = found.get("nonce"), found.get("beat")
        if not (isinstance(nonce, str) and nonce and isinstance(beat, int)):
            return None
        return cls(owner, nonce, beat, found.get("over") is True, found.get("done") is True)


class Tenure:
    """One holding, from its claim to its release.

    Attributes:
        record: What its tag was last said to hold.
        lost: What every further `stands` raises, once somebody else's nonce was seen.
        released: Whether it was given back, or is about to be.
    """

    def __init__(
        self, tag: LeaseTag, where: str, record: Record, needed: Callable[[], bool]
    ) -> None:
        self.record = record
        self._needed = needed
        self.lost: LeaseLost | None = None
        self.released = False
        self._tag = tag
        self._where = where
        self._answered = False
        self._cleared = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # Between the thread that clears the tag and a check that finds it missing.
        self._writing = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether it is held and beats."""
        return _runs(self._thread) and not self._stop.is_set() and self.lost is None

    def begin(self, beat_s: float) -> None:
        """Start to beat. Where no thread can be started any more, the tag ages."""
        self._thread = _start(lambda: self._live(beat_s))

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_PATIENCE_S)

    def stands(self) -> bool:
        """Whether this holding goes on: not if it was released.

        Raises:
            LeaseLost: If the tag has somebody else's nonce.
            StoreError: If the tag cannot be read or written.
        """
        if self.released:
            return False
        if self._is_there():
            return True
        with self._writing:
            if not self.released:
                self._tag.write(self.record.text())
            return not self.released

    def release(self) -> bool:
        """Have the thread give the tag back; whether that was done soon enough to see it."""
        self.released = True
        self.stop()
        if not (self.lost or self._answered or _runs(self._thread)):
            # It had been stopped before, or its request failed.
            self._thread = _start(self._give_back)
            if self._thread is None:
                self._give_back()
            else:
                self._thread.join(_PATIENCE_S)
        return self._cleared

    def _live(self, beat_s: float) -> None:
        while not self._stop.wait(beat_s):
            if not self._needed():
                self.released = True
                break
            # The server may be away: training goes on, and so do the beats.
            with suppress(StoreError, LeaseLost):
                self._beat(beat_s)
            if self.lost is not None:
                return
        if self.released:
            self._give_back()

    def _beat(self, beat_s: float) -> None:
        asked = time.monotonic()
        self._is_there()
        if time.monotonic() - asked > beat_s:
            return  # An answer that old may have been outwaited by somebody.
        self.record = replace(self.record, beat=self.record.beat + 1)
        self._tag.write(self.record.text())

    def _is_there(self) -> bool:
        """Whether the tag is there, and ours."""
        if self.lost is not None:
            raise self.lost
        found = self._tag.read()
        if found is None:
            return False
        if not self.record.same(found):
            self.lost = LeaseLost(
                f"{self._where}: Expected to be its only writer. Received: {who(found)}, which "
                "has taken it over. This process writes no more to it. What it had committed "
                "stays; to go on here, stop that process and start this one again."
            )
            raise self.lost
        return True

    def _give_back(self) -> None:
        with self._writing, suppress(StoreError, LeaseLost):
            if self._is_there():
                if self.record.over:
                    self._tag.write(replace(self.record, done=True).text())
                else:
                    self._tag.clear()
                self._cleared = True
            self._answered = True


def _start(job: Callable[[], None]) -> threading.Thread | None:
    """Run `job` on a thread that no exit waits for; `None` if the interpreter has none left."""
    # MLflow keeps its workspace in a context variable, which no thread inherits.
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=context.run, args=(job,), name="mlflow-ckpt-lease", daemon=True
    )
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


def _runs(thread: threading.Thread | None) -> bool:
    return thread is not None and thread.is_alive()


def who(found: str | None) -> str:
    """Name the writer of a tag, for a sentence."""
    record = Record.parse(found) if found is not None else None
    if record is not None:
        return str(record.owner)
    return f"an unreadable lease ({(found or '')[:40]!r})"
