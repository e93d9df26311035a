"""Remember what became of every checkpoint of a series, also of those that are deleted by now.

A run keeps its newest checkpoints and its metrics, and neither says what a checkpoint cost, in
which `fit` it was made, or where a `fit` went on. That lies in one small file for each series,
the run's artifact `checkpoints/<series>.history.json`. It is for the report alone: nothing is
resolved, restored or deleted by it.

Times are milliseconds since the Unix epoch, durations as their names say, sizes bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from mlflow_ckpt import plain_json
from mlflow_ckpt.errors import ManifestError
from mlflow_ckpt.record import Checkpoint

FORMAT = "1.0"
LONGEST = 10_000  # checkpoints that are remembered: the newest
LARGEST = 8 << 20  # bytes of a file
_TEXTS = ("name", "model_id", "kind")

Entry = TypeVar("Entry", "Made", "Resumed")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A checkpoint that was committed.

    Attributes:
        at: When.
        stall_ms: What training lost by it; `None` where nobody measured it.
        write_s, lag_s: How long it took to be written, and from capture to commit.
    """

    name: str
    model_id: str
    kind: str
    fit: int
    epoch: int
    step: int
    at: int
    bytes: int
    stall_ms: float | None = None
    write_s: float | None = None
    lag_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Resumed:
    """A `fit` that went on from a checkpoint of an earlier process."""

    fit: int
    epoch: int
    step: int
    at: int


@dataclass(kw_only=True)
class History:
    """Of one series, in the order of time."""

    series: str
    made: list[Made] = field(default_factory=list)
    resumed: list[Resumed] = field(default_factory=list)

    def add(self, checkpoint: Checkpoint, **costs: float | None) -> None:
        """Note a commit. One that is known already, as after a lost answer, is not noted twice."""
        if any(one.model_id == checkpoint.model_id for one in reversed(self.made)):
            return
        self.made.append(
            Made(
                name=checkpoint.name,
                model_id=checkpoint.model_id,
                kind=checkpoint.kind,
                fit=checkpoint.position.fit,
                epoch=checkpoint.epoch,
                step=checkpoint.step,
                at=checkpoint.created_at,
                bytes=checkpoint.bytes,
                **costs,
            )
        )

    def measured(self, stalls: Mapping[int, float]) -> None:
        """Add what training lost by checkpoints that this process took, by their step."""
        for index, made in enumerate(self.made):
            if made.stall_ms is None and made.step in stalls and made.kind != "final":
                self.made[index] = replace(made, stall_ms=stalls[made.step])

    def to_bytes(self) -> bytes:
        """JSON, without what is not known."""

        def plain(entries: Iterable[Made | Resumed]) -> list[dict[str, Any]]:
            return [{k: v for k, v in asdict(one).items() if v is not None} for one in entries]

        return json.dumps(
            {
                "format": FORMAT,
                "series": self.series,
                "made": plain(self.made[-LONGEST:]),
                "resumed": plain(self.resumed[-LONGEST:]),
            },
            allow_nan=False,
        ).encode()

    @classmethod
    def parse(cls, data: bytes, series: str) -> History:
        """Read what `to_bytes` wrote, or a later 1.x.

        Raises:
            ManifestError: If it is nothing of the kind.
        """
        try:
            raw = plain_json.loads(data)
            if str(raw["format"]).partition(".")[0] != "1":
                raise ValueError(f"format {raw['format']!r}")
            return cls(
                series=series,
                made=[_read(Made, one) for one in raw["made"][-LONGEST:]],
                resumed=[_read(Resumed, one) for one in raw["resumed"][-LONGEST:]],
            )
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            raise ManifestError(f"The history of series {series!r}: {error!r}") from error


def _read(kind: type[Entry], raw: Mapping[str, Any]) -> Entry:
    """One entry; numbers are finite, and what is not known here is left out."""
    names = {each.name for each in fields(kind)}
    values = {key: value for key, value in raw.items() if key in names}
    for key, value in values.items():
        right = (
            isinstance(value, str)
            if key in _TEXTS
            else isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) < 1e15
            and math.isfinite(value)
        )
        if not right:
            raise ValueError(f"{key}={value!r}")
    return kind(**values)
