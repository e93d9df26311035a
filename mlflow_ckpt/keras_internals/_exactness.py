"""Whether something is known to come back the same, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["true", "unknown", "false"]


@dataclass(frozen=True)
class Exactness:
    """The answer, and for any but `true` the reason in words."""

    level: Level = "true"
    reason: str = ""
