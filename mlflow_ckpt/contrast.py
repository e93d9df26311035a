"""Hold two trees of plain values against each other, and say in short what differs.

Of two objects of different classes only the classes are told: each has arguments of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """One thing that two checkpoints do not have alike.

    Attributes:
        where: What it is, such as `dense_1.units`.
        a, b: What each has, as JSON values; `None` where one has nothing.
    """

    where: str
    a: Any
    b: Any

    def to_dict(self) -> dict[str, Any]:
        """JSON values; of a number that JSON lacks its name."""
        return {"where": self.where, "a": _in_json(self.a), "b": _in_json(self.b)}


def _in_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _in_json(each) for key, each in value.items()}
    return [_in_json(each) for each in value] if isinstance(value, list) else value


def contrasts(a: Any, b: Any, where: str) -> list[Contrast]:
    """What `places` finds."""
    return [Contrast(where=place, a=old, b=new) for place, old, new in places(a, b, where)]


def uneven(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Contrast]:
    """The names whose values differ, sorted; what one lacks is `None`."""
    return [
        Contrast(where=name, a=a.get(name), b=b.get(name))
        for name in sorted({*a, *b})
        if a.get(name) != b.get(name)
    ]


def places(before: Any, now: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """The places at which two trees of plain values differ, and what is there.

    A mapping with the key `class` stands for an object; what is missing is `None`.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        if before.get("class") != now.get("class"):
            # Each class has arguments of its own; to list them all would tell nobody anything.
            yield f"{where}.class", before.get("class"), now.get("class")
            return
        for key in sorted({*before, *now}):
            yield from places(before.get(key), now.get(key), f"{where}.{key}")
    elif _number(before) != _number(now):
        yield where, before, now


def _number(value: Any) -> Any:
    """JSON keeps 1 and 1.0 apart, and a tuple is a list to it."""
    return list(value) if isinstance(value, tuple) else value


def short(value: Any) -> str:
    """A value in at most 160 characters."""
    text = "nothing" if value is None else json.dumps(value, default=str)
    return text if len(text) <= 160 else f"{text[:157]}..."
