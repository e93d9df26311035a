"""Apply a keep policy to one series, with few questions to the server.

What the series holds is read once, at the first checkpoint, and counted from there. The
server is asked again only when something is about to go: of that checkpoint, because somebody
may have pinned or registered it, or begun a fork at it, since; and of what was marked as corrupt
since, because nothing else may go in its favour.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from mlflow_ckpt import policy
from mlflow_ckpt.errors import StoreError
from mlflow_ckpt.policy import Candidate, Keep
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.store import Store


class Retention:
    """The keep policy of a series, at work. It belongs to the thread that delivers.

    Args:
        look_only: Whether to finish no deletion that somebody else has begun.
    """

    def __init__(self, store: Store, run: Run, *, look_only: bool = False) -> None:
        self._store = store
        self._run = run
        self._look_only = look_only
        self._known: dict[str, Checkpoint] | None = None

    def apply(self, newest: Checkpoint, series: Series, keep: Keep | None) -> list[Checkpoint]:
        """Delete what `keep` lets go now that `newest` is committed.

        End states are no concern of `Keep`.

        Returns:
            What was deleted.

        Raises:
            StoreError: If the server refuses.
        """
        if keep is None or newest.kind == "final":
            return []
        self._read(series)
        assert self._known is not None, "it was read"
        self._known[newest.model_id] = newest
        going = self.going(series, keep)
        gone = self._store.delete(going)
        for old in going:
            del self._known[old.model_id]
        return gone

    def going(self, series: Series, keep: Keep) -> list[Checkpoint]:
        """What `keep` lets go, oldest step first, each as the server knows it at this moment.

        Raises:
            StoreError: If the server refuses.
        """
        self._read(series)
        if self._candidates(series, keep):
            self._forget_corrupt(series)
        asked = set[str]()
        while stale := [c for c in self._candidates(series, keep) if c.model_id not in asked]:
            for old in stale:
                asked.add(old.model_id)
                self._ask(old, series)
        return sorted(self._candidates(series, keep), key=lambda c: (c.step, c.created_at))

    def why(self, series: Series, keep: Keep) -> Mapping[str, Collection[str]]:
        """Why each checkpoint that stays does, by model ID: rules of `keep`, and what holds it."""
        known = self._known or {}
        reasons = policy.reasons(self._facts(series), keep, series.mode)
        return {key: _words(known[key], rules) for key, rules in reasons.items()}

    def all(self, series: Series) -> list[Checkpoint]:
        """What the series holds, by what is known, end states left out.

        Raises:
            StoreError: If the server refuses.
        """
        self._read(series)
        return self._everything()

    def _everything(self) -> list[Checkpoint]:
        return list((self._known or {}).values())

    def _read(self, series: Series) -> None:
        if self._known is None:
            if not self._look_only:
                self._store.finish_deleting(self._run, series)
            history = self._store.checkpoints(self._run, series)
            self._known = {c.model_id: c for c in history if c.kind != "final"}

    def _forget_corrupt(self, series: Series) -> None:
        assert self._known is not None, "it was read"
        for checkpoint in self._store.upkeep.corrupt(self._run, series):
            self._known.pop(checkpoint.model_id, None)

    def _ask(self, old: Checkpoint, series: Series) -> None:
        """Read a checkpoint again that is about to go."""
        assert self._known is not None, "it was read"
        now = self._store.reread(old, series)
        if now is None:
            del self._known[old.model_id]
            return
        if not now.held and self._is_registered(now):
            now = replace(now, held=("registered",))
        self._known[old.model_id] = now

    def _is_registered(self, checkpoint: Checkpoint) -> bool:
        try:
            return self._store.upkeep.is_registered(checkpoint.model_id)
        except ConnectionError:
            raise
        except StoreError as error:
            self._store.tell_that_it_may_be_registered(error)
            return True

    def _candidates(self, series: Series, keep: Keep) -> list[Checkpoint]:
        keys = policy.kept(self._facts(series), keep, series.mode)
        return [c for c in self._everything() if c.model_id not in keys]

    def _facts(self, series: Series) -> list[Candidate]:
        return [_candidate(checkpoint, series) for checkpoint in self._everything()]


def _words(checkpoint: Checkpoint, rules: Collection[str]) -> list[str]:
    held = [*checkpoint.held, *(["saved by hand"] if checkpoint.kind == "manual" else [])]
    return [word for rule in rules for word in (held if rule == "protected" else [rule])]


def _candidate(checkpoint: Checkpoint, series: Series) -> Candidate:
    return Candidate(
        key=checkpoint.model_id,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        epoch_ended=checkpoint.kind == "epoch",
        created=checkpoint.created_at,
        value=checkpoint.metrics.get(series.monitor) if series.monitor else None,
        protected=checkpoint.pinned or checkpoint.kind == "manual",
    )
