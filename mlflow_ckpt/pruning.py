"""Apply a keep policy to a run by hand, and pin what no policy may delete.

A `fit` does the same after each of its commits (`retention.py`). By hand it works beside a
training too: the newest and the best checkpoint of a series always stay, and what is about
to go is looked at again.

Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.resolver import choose_series, find, some_series
from mlflow_ckpt.retention import Retention
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What became of one checkpoint.

    Attributes:
        checkpoint: Which one.
        gone: Whether it is deleted; in a dry run, whether it would be.
        why: Why it stays: `last`, `best`, `every`, `pinned`, `registered`, `forked`,
            `saved by hand`; why it goes: `corrupt`, or nothing.
    """

    checkpoint: Checkpoint
    gone: bool
    why: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        checkpoint = self.checkpoint
        return {
            "run_id": checkpoint.run_id,
            "series": checkpoint.series,
            "name": checkpoint.name,
            "model_id": checkpoint.model_id,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
            "bytes": checkpoint.bytes,
            "gone": self.gone,
            "why": list(self.why),
        }


def prune(
    run_id: str,
    keep: Keep | None,
    *,
    series: str | None = None,
    corrupt: bool = False,
    dry_run: bool = False,
) -> list[Pruned]:
    """Delete the checkpoints of a run that `keep` lets go: files and records.

    What is pinned, registered, the beginning of a fork, the newest, or the best by the
    monitor of its series always stays, and so do end states and what was saved by hand.

    Args:
        keep: The policy; `None` keeps all.
        series: Only this one.
        corrupt: Whether checkpoints that are marked as corrupt go too.
        dry_run: Whether to look only.

    Returns:
        Every checkpoint that was looked at, oldest step first within each series.

    Raises:
        RunNotFound, RunDeleted, SeriesNotFound: If there is no such run or series.
        ServerAway, StoreError: If the server does not answer, or refuses.
    """
    store = Store()
    run = store.run(run_id)
    found: list[Pruned] = []
    for facts in some_series(run, series):
        each = [*_by_policy(store, run, facts, keep, dry_run)]
        if corrupt:
            each += _quarantined(store, run, facts, dry_run)
        found += sorted(each, key=lambda p: (p.checkpoint.step, p.checkpoint.created_at))
    return found


def _by_policy(
    store: Store, run: Run, series: Series, keep: Keep | None, dry_run: bool
) -> Iterator[Pruned]:
    retention = Retention(store, run, look_only=dry_run)
    if keep is None:
        yield from (Pruned(checkpoint=c, gone=False, why=("all",)) for c in retention.all(series))
        return
    policy = replace(keep, best=keep.best or 1)
    going = retention.going(series, policy)
    why = retention.why(series, policy)
    gone = going if dry_run else store.delete(going)
    for checkpoint in retention.all(series):
        reasons = tuple(why.get(checkpoint.model_id, ()))
        if checkpoint in going:
            reasons = () if checkpoint in gone else ("the server keeps it",)
        yield Pruned(checkpoint=checkpoint, gone=checkpoint in gone, why=reasons)


def _quarantined(store: Store, run: Run, series: Series, dry_run: bool) -> Iterator[Pruned]:
    suspects = store.upkeep.corrupt(run, series)
    free = [c for c in suspects if not c.held and not store.upkeep.is_registered(c.model_id)]
    gone = free if dry_run else store.delete(free)
    for checkpoint in suspects:
        why = checkpoint.held or (("corrupt",) if checkpoint in free else ("registered",))
        yield Pruned(checkpoint=checkpoint, gone=checkpoint in gone, why=why)


def pin(run_id: str, which: str | Selector) -> Checkpoint:
    """Keep a checkpoint, whatever a keep policy says, until `unpin`.

    Raises:
        SelectorError, NotFound: As `resolve`.
        StoreError: If the server refuses.
    """
    store, checkpoint = _resolved(run_id, which)
    store.upkeep.pin(checkpoint)
    return checkpoint


def unpin(run_id: str, which: str | Selector) -> Checkpoint:
    """Leave a checkpoint to the keep policies again; what is not pinned stays as it is.

    Raises:
        SelectorError, NotFound, StoreError: As `pin`.
    """
    store, checkpoint = _resolved(run_id, which)
    store.upkeep.unpin(checkpoint)
    return checkpoint


def _resolved(run_id: str, which: str | Selector) -> tuple[Store, Checkpoint]:
    store, selector = Store(), Selector.parse(which)
    run = store.run(run_id)
    return store, find(store, run, selector, choose_series(run, selector))
