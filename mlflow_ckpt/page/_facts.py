"""What is known of a run's checkpoints at this moment.

A server is asked for the run, for the checkpoints of each series, and for the curves that are
drawn. What it has forgotten, such as a checkpoint that is deleted, is in a `History`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_ckpt.history import History, Made
from mlflow_ckpt.listing import leaders
from mlflow_ckpt.record import (
    FORKED_FROM_TAG,
    FORKED_STEP_TAG,
    RESUME_COUNT_TAG,
    STEP_METRIC,
    VERIFIED_TAG_PREFIX,
    Checkpoint,
    MetricRow,
    Run,
    Series,
)
from mlflow_ckpt.store import Store, now_ms

MOST_CURVES = 20
_OURS = ("ckpt/", "system/")


@dataclass(frozen=True, kw_only=True)
class Held:
    """A checkpoint that is there.

    Attributes:
        latest, best: Whether `latest` and `best` of its series resolve to it.
        state: `corrupt` if its bytes were found to be others, `verified` if all of them were
            read again since, `committed` if nobody has looked.
        verified_at: When they were read, in milliseconds since the Unix epoch.
        reason: Why it is corrupt.
        forks: Runs that began at it.
        made: What its history says of it.
    """

    checkpoint: Checkpoint
    latest: bool
    best: bool
    state: str
    verified_at: int | None
    reason: str
    forks: tuple[str, ...]
    made: Made | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One series.

    Attributes:
        held: Its checkpoints, oldest step first.
        steps: Its curve of `ckpt_step`: it has every checkpoint that was ever committed, also
            those that a process which was killed could note nowhere else.
    """

    series: Series
    held: tuple[Held, ...]
    history: History
    steps: tuple[MetricRow, ...] = ()

    @property
    def ever(self) -> list[Made]:
        """Every checkpoint that was ever committed, by time. Of some only step and time are known:
        their epoch is -1.
        """
        known = {one.model_id: one for one in self.history.made}
        for each in self.held:
            known.setdefault(each.checkpoint.model_id, as_made(each.checkpoint))
        steps = {one.step for one in known.values()}
        lost = [_lost(row) for row in self.steps if row.step not in steps]
        return sorted([*known.values(), *lost], key=lambda one: (one.at, one.step))

    @property
    def latest(self) -> Held | None:
        return next((each for each in self.held if each.latest), None)

    @property
    def best(self) -> Held | None:
        return next((each for each in self.held if each.best), None)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything that the page shows.

    Attributes:
        curves: The run's curves by their key, each in the order of its steps.
        left_out: Keys of curves that were too many.
        at: When this was so, in milliseconds since the Unix epoch.
    """

    run: Run
    parts: tuple[Part, ...]
    curves: Mapping[str, tuple[MetricRow, ...]]
    left_out: tuple[str, ...]
    at: int

    @property
    def held(self) -> list[Held]:
        return [each for part in self.parts for each in part.held]

    @property
    def resumes(self) -> int:
        """How often the run went on from a checkpoint."""
        told = self.run.tags.get(RESUME_COUNT_TAG, "0")
        return int(told) if told.isdecimal() else 0

    @property
    def example(self) -> str:
        """A selector that finds something: of the first series that has a checkpoint."""
        part = next((part for part in self.parts if part.latest), None)
        if part is None:
            return "latest"
        of = f"@{part.series.name}" if len(self.parts) > 1 else ""
        return ("best" if part.best else "latest") + of

    @property
    def parent(self) -> tuple[str, str] | None:
        """Run and step at which this one began, if it is a fork."""
        run_id = self.run.tags.get(FORKED_FROM_TAG)
        return (run_id, self.run.tags.get(FORKED_STEP_TAG, "?")) if run_id else None


def gather(store: Store, run: Run, histories: Mapping[str, History]) -> Facts:
    """Ask the server for everything that the page shows.

    Args:
        histories: What is remembered, by the name of the series.

    Raises:
        StoreError: If the server does not answer, or refuses.
    """
    series = [run.series[name] for name in sorted(run.series)]
    parts = tuple(
        _part(store, run, each, histories.get(each.name) or History(series=each.name))
        for each in series
    )
    keys = curve_keys(run, series)
    curves = {key: _curve(store, run, key) for key in keys[:MOST_CURVES]}
    left = tuple(keys[MOST_CURVES:])
    return Facts(run=run, parts=parts, curves=curves, left_out=left, at=now_ms())


def curve_keys(run: Run, series: list[Series]) -> list[str]:
    """The curves to draw: what is monitored, then its training twin, then the rest by name."""
    shown: dict[str, None] = {}
    for each in series:
        if each.monitor:
            shown[each.prefix + each.monitor] = None
            shown[each.prefix + each.monitor.removeprefix("val_")] = None
    shown |= dict.fromkeys(sorted(run.metric_names))
    steps = {each.prefix + STEP_METRIC for each in series} | {STEP_METRIC}
    return [
        key
        for key in shown
        if key in run.metric_names and key not in steps and not _is_ours(key, series)
    ]


def _is_ours(key: str, series: list[Series]) -> bool:
    """Whether a curve says what checkpoints cost, or how the machine is, and not how it learns."""
    bare = [key, *(key.removeprefix(each.prefix) for each in series if each.prefix)]
    return any(name.startswith(_OURS) for name in bare)


def as_made(checkpoint: Checkpoint) -> Made:
    """A checkpoint that no history knows."""
    alone = History(series=checkpoint.series)
    alone.add(checkpoint)
    return alone.made[0]


def _lost(row: MetricRow) -> Made:
    return Made(
        name=f"step {row.step}",
        model_id="",
        kind="unknown",
        fit=0,
        epoch=-1,
        step=row.step,
        at=row.timestamp,
        bytes=0,
    )


def _curve(store: Store, run: Run, key: str) -> tuple[MetricRow, ...]:
    return tuple(sorted(store.history(run, key), key=lambda row: (row.step, row.timestamp)))


def _part(store: Store, run: Run, series: Series, history: History) -> Part:
    seen = [
        (trace, found)
        for trace, found in store.upkeep.seen(run, series)
        if isinstance(found, Checkpoint)
    ]
    sound = [found for trace, found in seen if trace.state == "true"]
    latest, best = leaders(sound, series)
    told = run.tags.get(VERIFIED_TAG_PREFIX + series.name, "")
    verified = int(told) if told.isdecimal() else None
    made = {one.model_id: one for one in history.made}
    held = []
    for trace, found in sorted(seen, key=lambda pair: (pair[1].step, pair[1].created_at)):
        is_read = verified is not None and found.created_at < verified
        corrupt = trace.state == "corrupt"
        held.append(
            Held(
                checkpoint=found,
                latest=found.model_id == latest,
                best=found.model_id == best,
                state="corrupt" if corrupt else "verified" if is_read else "committed",
                verified_at=verified if is_read else None,
                reason=trace.reason if corrupt else "",
                forks=trace.forks,
                made=made.get(found.model_id),
            )
        )
    steps = series.prefix + STEP_METRIC
    drawn = _curve(store, run, steps) if steps in run.metric_names else ()
    return Part(series=series, held=tuple(held), history=history, steps=drawn)
