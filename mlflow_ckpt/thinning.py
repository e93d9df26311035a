"""Which waiting checkpoints need not be delivered: the keep policy would delete them.

The policy is applied to what waits as if it were all there is. What it keeps of all
checkpoints is among that, and what it lets go would be deleted as soon as the later ones
are delivered.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_ckpt import parcel, policy
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.policy import Candidate, Keep
from mlflow_ckpt.selector import Mode


def superseded(waiting: Sequence[Entry], keep: Keep | None) -> list[Entry]:
    """Checkpoints that wait in vain. The one that is delivered next is never among them.

    Args:
        waiting: The checkpoints of one journal, in order.
    """
    if keep is None:
        return []
    entries = {entry.uid: entry for entry in waiting if not entry.dropped}
    kept = policy.kept(
        [_candidate(entry) for entry in entries.values()],
        keep,
        _mode(list(entries.values())),
    )
    return [
        entry
        for uid, entry in list(entries.items())[1:]
        if uid not in kept and entry.data["position"]["kind"] != "final"
    ]


def _mode(entries: Sequence[Entry]) -> Mode | None:
    return parcel.unpack_series(entries[-1].data["series"]).mode if entries else None


def _candidate(entry: Entry) -> Candidate:
    data = entry.data
    series = parcel.unpack_series(data["series"])
    return Candidate(
        key=entry.uid,
        step=data["position"]["step"],
        epoch=data["position"]["epoch"],
        epoch_ended=data["position"]["kind"] == "epoch",
        created=data["created_at"],
        value=data["values"].get(series.monitor) if series.monitor else None,
        protected=data["position"]["kind"] in ("manual", "final"),
    )
