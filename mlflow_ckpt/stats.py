"""Measure what checkpoints cost the training that they belong to.

    hooks and steps (training thread) -> Meter <- commits (writer's thread)
                                           |
                                           v
                                         Stats

Two costs are told apart: what a checkpoint takes from training (`hook_ms`, `stall_ms`),
and how long it takes behind it (`write_s`, `lag_s`).
"""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

LAST = 1_000
_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What the checkpoints of one `fit` cost.

    The sequences hold one number a checkpoint, oldest first, of the last 1,000. End states
    that are no epoch's checkpoint are written after training: they count in `saves`, `bytes`,
    `lag_s`, `write_s` and `checkpoint_bytes`, and stall nothing.

    Attributes:
        strategy: How the state is taken: `copy-on-write`, `host-copy` or `keras`; `None`
            before the first checkpoint.
        reason: Why it is not `copy-on-write`, else `None`.
        saves: Checkpoints that were committed.
        skipped: Checkpoints left out because the one before was still being written.
        failed: Checkpoints that were not committed.
        bytes: Bytes of all files of all committed checkpoints.
        first_hook_ms: Milliseconds in our hooks for the first checkpoint, which prepares
            what the others use; `None` before it.
        hook_ms: Milliseconds in our hooks, for each checkpoint after the first; waiting for
            the one before included.
        stall_ms: Milliseconds that training lost, the first checkpoint included: its hook,
            and what the next step took beyond the median step.
        lag_s: Seconds from capture to commit.
        write_s: Seconds of them in which the files were written and digested.
        checkpoint_bytes: Bytes of all files.
        drain_s: Seconds that `fit` waited at its end for what was still being written.
    """

    strategy: str | None = None
    reason: str | None = None
    saves: int = 0
    skipped: int = 0
    failed: int = 0
    bytes: int = 0
    first_hook_ms: float | None = None
    hook_ms: tuple[float, ...] = ()
    stall_ms: tuple[float, ...] = ()
    lag_s: tuple[float, ...] = ()
    write_s: tuple[float, ...] = ()
    checkpoint_bytes: tuple[int, ...] = ()
    drain_s: float = 0.0

    def metrics(self) -> dict[str, float]:
        """What is logged to the run at the end of a `fit` that saved something.

        Of one whose server was away, what is known without a commit.
        """
        medians = {"ckpt/stall_ms": self.median_stall_ms, "ckpt/lag_s": self.median_lag_s}
        found = {name: value for name, value in medians.items() if value is not None}
        if found:
            found["ckpt/skipped"] = float(self.skipped)
        if self.saves:
            found["ckpt/bytes"] = float(self.bytes)
        return found

    @property
    def median_hook_ms(self) -> float | None:
        """Median of `hook_ms`; `None` before the second checkpoint."""
        return _median(self.hook_ms)

    @property
    def median_stall_ms(self) -> float | None:
        """Median of `stall_ms`; `None` before the first checkpoint."""
        return _median(self.stall_ms)

    @property
    def median_lag_s(self) -> float | None:
        """Median of `lag_s`; `None` before the first commit."""
        return _median(self.lag_s)

    @property
    def median_write_s(self) -> float | None:
        """Median of `write_s`; `None` before the first commit."""
        return _median(self.write_s)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


class Meter:
    """Collects the numbers of one `fit`.

    `step_began`, `step_ended` and `saved` belong to the training thread, `committed` and
    `failed` to the writer's; the others to either.
    """

    def __init__(self) -> None:
        self.strategy: str | None = None
        self.reason: str | None = None
        self.skipped = 0
        self.drain_s = 0.0
        self._lock = threading.Lock()
        self._saves = self._failed = self._bytes = 0
        self._first_hook_ms: float | None = None
        self._hook_ms, self._stall_ms = _recent(), _recent()
        self._lag_s, self._write_s = _recent(), _recent()
        self._checkpoint_bytes: deque[int] = deque(maxlen=LAST)
        # Steps behind a checkpoint stay out: they are what is compared with the others.
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._step_began = 0.0
        self._owing: float | None = None
        self._owing_step: int | None = None
        self._stall_of: dict[int, float] = {}

    @property
    def stall_of(self) -> dict[int, float]:
        """Milliseconds that training lost by each of the last 1,000 checkpoints, by its step."""
        with self._lock:
            return dict(self._stall_of)

    def step_began(self) -> None:
        """Note that a batch begins. Called for every batch: it must cost next to nothing."""
        self._step_began = perf_counter()

    def step_ended(self) -> float:
        """Note that a batch has ended; returns the time, in seconds, for `saved`."""
        now = perf_counter()
        if self._owing is None:
            self._steps.append(now - self._step_began)
        else:
            self._settle(now - self._step_began)
        return now

    def saved(self, hook_began: float, step: int | None = None) -> None:
        """Note that a hook, begun at `hook_began`, has made the checkpoint of `step`, and ends."""
        hook_ms = (perf_counter() - hook_began) * 1e3
        self.finish()
        with self._lock:
            if self._first_hook_ms is None:
                self._first_hook_ms = hook_ms
            else:
                self._hook_ms.append(hook_ms)
        self._owing, self._owing_step = hook_ms, step

    def finish(self) -> None:
        """Close the account of a checkpoint that no step follows."""
        if self._owing is not None:
            self._settle(0.0)

    def committed(self, *, lag_s: float, write_s: float, size: int) -> None:
        """Count a committed checkpoint of `size` bytes."""
        with self._lock:
            self._saves += 1
            self._bytes += size
            self._lag_s.append(lag_s)
            self._write_s.append(write_s)
            self._checkpoint_bytes.append(size)

    def failed(self) -> None:
        """Count a checkpoint that was not committed."""
        with self._lock:
            self._failed += 1

    def stats(self) -> Stats:
        """The numbers so far."""
        with self._lock:
            return Stats(
                strategy=self.strategy,
                reason=self.reason,
                saves=self._saves,
                skipped=self.skipped,
                failed=self._failed,
                bytes=self._bytes,
                first_hook_ms=self._first_hook_ms,
                hook_ms=tuple(self._hook_ms),
                stall_ms=tuple(self._stall_ms),
                lag_s=tuple(self._lag_s),
                write_s=tuple(self._write_s),
                checkpoint_bytes=tuple(self._checkpoint_bytes),
                drain_s=self.drain_s,
            )

    def _settle(self, step_s: float) -> None:
        median = statistics.median(self._steps) if self._steps else step_s
        stall_ms = (self._owing or 0.0) + max(0.0, step_s - median) * 1e3
        with self._lock:
            self._stall_ms.append(stall_ms)
            if self._owing_step is not None:
                self._stall_of[self._owing_step] = stall_ms
                while len(self._stall_of) > LAST:
                    del self._stall_of[next(iter(self._stall_of))]
        self._owing = None


def _recent() -> deque[float]:
    return deque(maxlen=LAST)
