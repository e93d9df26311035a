"""Compare an interrupted training with one that ran through, and say where they part.

    Trace of the whole run + Trace of one process -> difference() -> text or None
    metric history of both runs -> history_difference() -> text or None

Pure: no processes, no MLflow. Counts and steps are as in `trace.py`.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_ckpt.record import STEP_METRIC
from mlflow_ckpt.trace import State, Trace

History = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of the interrupted run.

    Attributes:
        killed_at: Batches completed when it was killed; `None` if it ended by itself.
        resumed_from: Batches completed before its first one; 0 for a fresh start.
        trained: Batches it trained.
        expected: Batches it had to train: from the newest committed checkpoint on.
    """

    killed_at: int | None
    resumed_from: int
    trained: int
    expected: int


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What was compared.

    Attributes:
        batches: Batches of the run that was not interrupted.
        processes: Those of the interrupted run, in order.
        states: States compared: after each batch of each process, and at the end of fits.
        variables: Variables in one state.
        metric_points: Points of metric curves compared.
        seconds: What all processes took together.
    """

    batches: int = 0
    processes: tuple[Process, ...] = ()
    states: int = 0
    variables: int = 0
    metric_points: int = 0
    seconds: float = 0.0


class NotExact(AssertionError):
    """A killed and resumed training did not end as the uninterrupted one, or none could be made.

    Attributes:
        proof: What had been found until then.
    """

    def __init__(self, message: str, *, proof: Proof | None = None) -> None:
        super().__init__(message)
        self.proof = proof or Proof()


# --- states -------------------------------------------------------------------


def difference(whole: Trace, part: Trace) -> str | None:
    """The first state of `part` that is not the one of `whole`, as a text."""
    several = len(whole.paths) > 1
    for mine, theirs, count, where in _pairs(whole, part):
        place = f"{where} {mine.step}" + (f" of the series {mine.series!r}" if several else "")
        if theirs is None:
            return f"{place} exists only in the interrupted run: the other one never trained it."
        if (found := _first(mine, theirs, count)) is None:
            continue
        if found < 0:
            return (
                f"first difference {place}: {len(mine.digests)} variables instead of "
                f"{len(theirs.digests)}."
            )
        paths = whole.paths.get(mine.series, [])
        name = f" {paths[found]!r}" if found < len(paths) else ""
        others = sum(a != b for a, b in zip(mine.digests, theirs.digests, strict=False)) - 1
        more = f", and {others} more" if others and count is None else ""
        return f"first difference {place}: variable {found}{name}{more}."
    return None


def compared(whole: Trace, part: Trace) -> int:
    """How many states `difference` compares."""
    return sum(theirs is not None for _, theirs, _, _ in _pairs(whole, part))


def _pairs(whole: Trace, part: Trace) -> Iterator[tuple[State, State | None, int | None, str]]:
    """Each state of `part`, its twin, how many variables count (`None`: all), and what it is."""
    batches = {state.key: state for state in whole.batches}
    for state in part.batches:
        yield state, batches.get(state.key), None, "after step"
    ends = {state.key: state for state in whole.ends}
    for state in part.ends:
        # A fit that was complete trains nothing: metrics and seeds are not its business, and
        # one that is followed by another fit of its series stands beyond its own end.
        if state.ran:
            yield state, ends.get(state.key), None, "at the end of training, after step"
        elif state.key in ends:
            twin = ends[state.key]
            yield state, twin, twin.weights, "at the end of training, after step"


def _first(mine: State, theirs: State, count: int | None) -> int | None:
    """Position of the first variable that differs; -1 if there are not as many."""
    left, right = mine.digests[:count], theirs.digests[:count]
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else -1


# --- metric history -----------------------------------------------------------


def history_difference(whole: History, other: History) -> str | None:
    """The first point of a curve that `other` lacks, has twice, or has with another value."""
    for key in sorted({*whole, *other}):
        left, right = _ordered(whole.get(key, [])), _ordered(other.get(key, []))
        if (twice := _twice(left, right)) is not None:
            return f"the metric {key!r} has step {twice} more than once."
        if _is_bookkeeping(key):
            continue
        if not left or not right:
            which = "interrupted" if right else "uninterrupted"
            return f"only the {which} run has the metric {key!r}."
        for a, b in zip(left, right, strict=False):
            if a[0] != b[0]:
                lacks, step = ("interrupted", a[0]) if a[0] < b[0] else ("uninterrupted", b[0])
                return f"the metric {key!r} of the {lacks} run lacks step {step}."
            if _bits(a[1]) != _bits(b[1]):
                return (
                    f"the metric {key!r} differs at step {a[0]}: {a[1]!r} uninterrupted, "
                    f"{b[1]!r} interrupted."
                )
        if len(left) != len(right):
            lacks = "interrupted" if len(left) > len(right) else "uninterrupted"
            step = max(left, right, key=len)[min(len(left), len(right))][0]
            return f"the metric {key!r} of the {lacks} run lacks step {step}."
    return None


def points(history: History) -> int:
    """How many points of `history` are compared."""
    return sum(len(rows) for key, rows in history.items() if not _is_bookkeeping(key))


def _is_bookkeeping(key: str) -> bool:
    """Whether a curve tells when checkpoints were made: with a clock in it, that may vary."""
    return key.rpartition("/")[2] == STEP_METRIC


def _twice(left: Sequence[tuple[int, Any]], right: Sequence[tuple[int, Any]]) -> int | None:
    """A step that `right` has more often than `left`, and more often than once."""
    usual = Counter(step for step, _ in left)
    counts = Counter(step for step, _ in right)
    return next((s for s, n in sorted(counts.items()) if n > max(1, usual[s])), None)


def _ordered(rows: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return sorted(rows, key=lambda row: (row[0], _bits(row[1])))


def _bits(value: float) -> bytes:
    """NaN equals NaN here."""
    return b"nan" if value != value else struct.pack("<d", value)
