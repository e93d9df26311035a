"""Read JSON of a stranger's without being filled up by it.

A file of `[[],[],...]` becomes thirty times its size in memory, and one of `[[[...]]]`
overflows the stack of whoever walks over it. Both are seen before anything is made.
"""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 200
# Bytes of memory that one value and its place in a list or mapping take at most.
_VALUE = 160
_ALLOWANCE = 96 << 20


def loads(data: bytes | memoryview) -> Any:
    """Parse UTF-8 JSON; NaN and the infinities are numbers, as Python writes them.

    Raises:
        ValueError: If it is no JSON, is deeper than `MAX_DEPTH`, or would take up more than
            96 MiB and twice its size.
    """
    text = bytes(data)
    values = sum(text.count(mark) for mark in (b",", b"[", b"{", b":"))
    if values * _VALUE > _ALLOWANCE + 2 * len(text):
        raise ValueError(f"{values} values, which would take more memory than they are worth")
    try:
        found = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels") from None
    _check_depth(found)
    return found


def _check_depth(value: Any) -> None:
    row, depth = [value] if isinstance(value, (dict, list)) else [], 0
    while row:
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON of more than {MAX_DEPTH} levels")
        depth += 1
        held = [each.values() if isinstance(each, dict) else each for each in row]
        row = [v for each in held for v in each if isinstance(v, (dict, list))]
