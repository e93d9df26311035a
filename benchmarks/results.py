"""What a measurement yields: samples, the bars they are held against, and figures.

Pure arithmetic: no clock, no files, no Keras. Times are milliseconds or seconds and sizes
MiB (2**20 bytes), as each sample's unit says.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["ours", "peer", "limit", "control"]
LARGE_MIB = 1024  # where the bars for "1 GiB and more" begin
_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Repeated measurements of one quantity.

    Raises:
        ValueError: If there are none.
    """

    role: Role
    unit: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"Expected at least one value. Received: values={self.values!r}")

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        spread = {"median": self.median, "min": self.low, "max": self.high}
        return {"role": self.role, "unit": self.unit, **spread, "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A limit for a ratio (or for a plain number, where `divisor` is 1).

    Attributes:
        text: What is compared with what.
        value, divisor: The ratio is `value / divisor`.
        limit: The bar.
        at_least: Whether the ratio must reach the bar instead of staying below it.
    """

    text: str
    value: float
    divisor: float = 1.0
    limit: float
    at_least: bool = False

    @property
    def ratio(self) -> float:
        return self.value / self.divisor if self.divisor else float("inf")

    @property
    def clear(self) -> bool:
        """Whether there is something to compare with: a cost below zero is noise."""
        return self.divisor > 0

    @property
    def met(self) -> bool:
        reached = self.ratio >= self.limit if self.at_least else self.ratio <= self.limit
        return reached and self.clear

    @property
    def verdict(self) -> Literal["met", "missed", "unclear"]:
        if not self.clear:
            return "unclear"
        return "met" if self.met else "missed"

    def to_dict(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "value": self.value,
            "divisor": self.divisor,
            "ratio": self.ratio,
            "bar": self.limit,
            "direction": "at least" if self.at_least else "at most",
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table of figures.

    Attributes:
        key: Name for files and for `--figures`.
        title: What was measured.
        mib: Size of the state, or `None` where it does not matter.
        samples: By variant; one of them has the role `ours`.
        errors: Why a variant has no sample.
        bars: What the samples are held against.
        notes: What a reader must know to judge the numbers.
    """

    key: str
    title: str
    mib: float | None = None
    samples: Mapping[str, Sample]
    errors: Mapping[str, str] = field(default_factory=dict)
    bars: Sequence[Bar] = ()
    notes: Sequence[str] = ()

    def of(self, role: Role) -> dict[str, Sample]:
        """The samples with this role."""
        return {name: sample for name, sample in self.samples.items() if sample.role == role}

    def to_dict(self) -> dict[str, Any]:
        return {
            "figure": self.key,
            "title": self.title,
            "mib": self.mib,
            "samples": {name: sample.to_dict() for name, sample in self.samples.items()},
            "errors": dict(self.errors),
            "bars": [bar.to_dict() for bar in self.bars],
            "notes": list(self.notes),
        }


def best_peer(samples: Mapping[str, Sample]) -> tuple[str, Sample] | None:
    """The peer with the lowest median, or `None` where no peer could be measured."""
    peers = [(name, sample) for name, sample in samples.items() if sample.role == "peer"]
    return min(peers, key=lambda item: item[1].median) if peers else None


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the median, with a fixed seed.

    With five values it is hardly narrower than their range, and says so honestly.
    """
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(_DRAWS))
    tail = (1 - confidence) / 2
    return medians[int(tail * _DRAWS)], medians[min(int((1 - tail) * _DRAWS), _DRAWS - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Median of the slopes between all pairs of points (Theil-Sen): steps in y count little.

    Source: Sen, P. K. (1968), Estimates of the regression coefficient based on Kendall's tau.
    """
    slopes = [
        (y2 - y1) / (x2 - x1)
        for index, (x1, y1) in enumerate(points)
        for x2, y2 in points[index + 1 :]
        if x2 != x1
    ]
    return statistics.median(slopes)


def rotated(variants: Sequence[str], turn: int) -> list[str]:
    """The variants in the order of round `turn`: everybody goes first once."""
    start = turn % len(variants)
    return [*variants[start:], *variants[:start]]


def ms(seconds: Sequence[float]) -> tuple[float, ...]:
    """Seconds as milliseconds."""
    return tuple(1e3 * value for value in seconds)
