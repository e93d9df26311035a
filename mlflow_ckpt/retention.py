"""Apply a keep policy to one series, with few questions to the server.

What the series holds is read once, at the first checkpoint, and counted from there. The
server is asked again only of a checkpoint that is about to go: somebody may have pinned
or registered it since.
"""

from __future__ import annotations

from mlflow_ckpt import policy
from mlflow_ckpt.policy import Candidate, Keep
from mlflow_ckpt.record import Checkpoint, Run, Series
from mlflow_ckpt.store import Store


class Retention:
    """The keep policy of a series, at work. It belongs to the thread that delivers."""

    def __init__(self, store: Store, run: Run) -> None:
        self._store = store
        self._run = run
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
        checked: set[str] = set()
        if self._known is None:
            self._store.finish_deleting(self._run, series)
            history = self._store.checkpoints(self._run, series)
            self._known = {c.model_id: c for c in history if c.kind != "final"}
            checked.update(self._known)
        self._known[newest.model_id] = newest
        while stale := [c for c in self._going(series, keep) if c.model_id not in checked]:
            for old in stale:
                checked.add(old.model_id)
                now = self._store.reread(old, series)
                if now is None:
                    del self._known[old.model_id]
                else:
                    self._known[old.model_id] = now
        gone = self._going(series, keep)
        for old in gone:
            self._store.delete([old])
            del self._known[old.model_id]
        return gone

    def _going(self, series: Series, keep: Keep) -> list[Checkpoint]:
        """What the policy lets go, by what is known."""
        known = self._known or {}
        candidates = [_candidate(checkpoint, series) for checkpoint in known.values()]
        keys = policy.kept(candidates, keep, series.mode)
        return [checkpoint for key, checkpoint in known.items() if key not in keys]


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
