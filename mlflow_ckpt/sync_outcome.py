"""What became of a journal that was delivered, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_ckpt import parcel
from mlflow_ckpt.cli_options import one_line
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import CheckpointError
from mlflow_ckpt.syncing import Synced, Waiting

Record = dict[str, Any]


def where_of(waiting: Waiting) -> str:
    return f"run {waiting.run_id}, series {waiting.series!r}"


def amount(checkpoints: int, entries: int) -> str:
    """`entries` in words, of which some are checkpoints."""
    others = entries - checkpoints
    words = [counted(checkpoints, "checkpoint", "checkpoints")] if checkpoints or not others else []
    kind = "other " if checkpoints else ""
    words += [counted(others, f"{kind}entry", f"{kind}entries")] if others else []
    return " and ".join(words)


def counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


@dataclass
class Tally:
    """Counts the checkpoints that are delivered.

    A dropped one leaves its metrics only, and is none.

    Attributes:
        sizes: Bytes of each checkpoint that waits, by the name of its entry.
        names: What was delivered, by run and series.
    """

    sizes: dict[str, int]
    names: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    count: int = 0

    @classmethod
    def of(cls, found: Sequence[Waiting]) -> Tally:
        return cls({
            entry.uid: int(entry.data["bytes"])
            for waiting in found
            for entry in [*waiting.journal.refused(), *waiting.journal.waiting()]
            if entry.kind == parcel.CHECKPOINT and not entry.dropped
        })  # fmt: skip

    def told(self, waiting: Waiting, entry: Entry) -> None:
        if entry.uid in self.sizes:
            self.count += 1
            name = parcel.unpack_position(entry.data["position"]).name
            self.names.setdefault((waiting.run_id, waiting.series), []).append(name)

    @property
    def text(self) -> str:
        return f"delivered {self.count} of {counted(len(self.sizes), 'checkpoint', 'checkpoints')}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one journal.

    Attributes:
        before, after: What waited, and what waits now.
        delivered: Names of the checkpoints that were delivered.
        others: Whether something else was.
        refused: What the server refused, in words.
        error: Why it did not get to the end.
    """

    before: Waiting
    after: Waiting
    delivered: tuple[str, ...]
    others: bool
    refused: tuple[str, ...]
    error: str | None

    @classmethod
    def of(cls, synced: Synced, tally: Tally) -> Outcome:
        waiting = synced.waiting
        names = tally.names.get((waiting.run_id, waiting.series), [])
        after = Waiting.read(waiting.journal)
        refused = [*map(_flat, after.refused), *(_reason(e, waiting) for e in synced.refused)]
        return cls(
            before=waiting,
            after=after,
            delivered=tuple(names),
            others=synced.delivered > len(names),
            refused=tuple(dict.fromkeys(refused)),
            error=_reason(synced.error, waiting) if synced.error else None,
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left, of it or to be done."""
        return not (self.after.entries or self.error)

    def line(self) -> str:
        """All of it, for a person."""
        return f"{where_of(self.before)}: {'; '.join(self._parts())}"

    def _parts(self) -> Iterator[str]:
        if self.delivered:
            yield f"delivered {counted(len(self.delivered), 'checkpoint', 'checkpoints')}"
        elif self.others:
            yield "delivered metrics and tags"
        else:
            yield "somebody else has delivered it" if self.complete else "delivered nothing"
        for reason in self.refused:
            yield f"refused: {reason}"
        if self.after.entries:
            left = amount(len(self.after.checkpoints), self.after.entries)
            yield f"left in {self.after.journal.path}: {left}"
        if self.error:
            yield self.error
        elif self.after.entries and not self.refused:
            yield "more has come meanwhile: run it again"

    def record(self) -> Record:
        return {
            "run_id": self.before.run_id,
            "series": self.before.series,
            "tracking_uri": self.before.tracking_uri,
            "path": str(self.before.journal.path),
            "delivered": list(self.delivered),
            "refused": list(self.refused),
            "left": {
                "checkpoints": list(self.after.checkpoints),
                "other_entries": self.after.entries - len(self.after.checkpoints),
            },
            "error": self.error,
        }


def _reason(error: CheckpointError, waiting: Waiting) -> str:
    return one_line(error).removeprefix(f"{where_of(waiting)}: ")


def _flat(text: str) -> str:
    return " ".join(text.split())
