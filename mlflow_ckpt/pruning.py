"""Apply a keep policy to a run by hand, and pin what no policy may delete.

A `fit` does the same after each of its commits (`retention.py`). By hand it works beside a
training too: the newest and the best checkpoint of a series always stay, and what is about
to go is looked at again.

Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlflow_ckpt import progress
from mlflow_ckpt.errors import NotFound, StoreError
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
    tried = _ids(going)
    gone = _ids(going if dry_run else _delete(store, going))
    for checkpoint in retention.all(series):
        reasons = tuple(why.get(checkpoint.model_id, ()))
        is_gone = checkpoint.model_id in gone
        if checkpoint.model_id in tried:
            reasons = () if is_gone else ("held since, or the server keeps it",)
        yield Pruned(checkpoint=checkpoint, gone=is_gone, why=reasons)


def _quarantined(store: Store, run: Run, series: Series, dry_run: bool) -> Iterator[Pruned]:
    suspects = store.upkeep.corrupt(run, series)
    free = [c for c in suspects if not c.held and not store.upkeep.is_registered(c.model_id)]
    tried = _ids(free)
    gone = _ids(free if dry_run else _delete(store, free, "corrupt"))
    for checkpoint in suspects:
        is_free = checkpoint.model_id in tried
        why = checkpoint.held or (("corrupt",) if is_free else ("registered",))
        yield Pruned(checkpoint=checkpoint, gone=checkpoint.model_id in gone, why=why)


def _ids(checkpoints: Iterable[Checkpoint]) -> set[str]:
    return {checkpoint.model_id for checkpoint in checkpoints}


def _delete(
    store: Store, checkpoints: Iterable[Checkpoint], was: Literal["true", "corrupt"] = "true"
) -> list[Checkpoint]:
    """Delete one after the other; an error says what has gone by then."""
    gone = list[Checkpoint]()
    going = list(checkpoints)
    progress.expect(len(going))
    for checkpoint in going:
        try:
            gone += store.delete([checkpoint], was)
            progress.moved(1)
        except StoreError as error:
            names = ", ".join(each.name for each in gone) or "nothing"
            raise type(error)(
                f"{error} Deleted by then: {names}. Run it again to go on from there."
            ) from error
    return gone


def pin(run_id: str, which: str | Selector) -> Checkpoint:
    """Keep a checkpoint, whatever a keep policy says, until `unpin`.

    Raises:
        SelectorError, NotFound: As `resolve`.
        StoreError: If the server refuses.
    """
    store, run, series, selector = _asked(run_id, which)
    checkpoint = find(store, run, selector, series)
    store.upkeep.pin(checkpoint)
    return checkpoint


def unpin(run_id: str, which: str | Selector) -> Checkpoint:
    """Leave a checkpoint to the keep policies again; what is not pinned stays as it is.

    One that is marked as corrupt, which no selector finds, is found by its step or epoch.

    Raises:
        SelectorError, NotFound, StoreError: As `pin`.
    """
    store, run, series, selector = _asked(run_id, which)
    try:
        checkpoint = find(store, run, selector, series)
    except NotFound:
        if selector.kind not in ("step", "epoch"):
            raise
        suspects = store.upkeep.corrupt(run, series)
        found = [c for c in suspects if getattr(c, selector.kind) == selector.number]
        if not found:
            raise
        checkpoint = found[-1]
    store.upkeep.unpin(checkpoint)
    return checkpoint


def _asked(run_id: str, which: str | Selector) -> tuple[Store, Run, Series, Selector]:
    store, selector = Store(), Selector.parse(which)
    run = store.run(run_id)
    return store, run, choose_series(run, selector), selector
