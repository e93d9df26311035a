"""Read JSON of a stranger's without being filled up by it.

A file of `[[],[],...]` becomes thirty times its size in memory, and one of `[[[...]]]`
overflows the stack of whoever walks over it. Both are seen before anything is made: the
marks of the text (brackets, commas, colons, quotes) say what its values would take.

Measured with CPython 3.11, what is made of one byte of text (objects alone, in bytes):

    `[[[[0]]]]` 36, `{"a":0}` 24, `[]` 22, `0.5` 8, `1000` 6    what nobody writes
    manifest of 150,000 variables and Adam 3.3                  42 MiB -> 141 MiB
    config of 20,000 layers: Dense 3.3 to 4.0, attention 4.3    15 to 19 MiB -> 49 to 79 MiB

So a text may ask for as much as a real one of its size does, and no more. Together with the
text, which is there twice while it is parsed, that stays within the 256 MiB and twice the
size of its files that reading a checkpoint may take.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_DEPTH = 200
# What the values of a text may take: so much, and for each byte of the text; never more.
# The estimate was 1.2 to 1.7 times what the texts above took, and never less than any did.
_ANYWAY, _PER_BYTE, MOST = 64 << 20, 3.5, 192 << 20
# Values and what is in a text, where it gets one byte a character, or four.
_WITH_TEXT = 240 << 20

# Bytes, of CPython 3.11 on 64 bits: a list and its first four places, a mapping and
# its first five; a place more; what a mapping grows by for a pair; the head of a text; a
# number. A key is made once for all mappings, and counts twice: a large mapping is resized.
_LIST, _MAPPING, _PLACE, _PAIR, _TEXT, _NUMBER, _KEY = 96, 208, 10, 20, 64, 32, 128
_EMPTY = 64
_KEYS = re.compile(rb'(?<!\\)"([^"\\]*)":')
_KEPT = 1 << 16  # keys that are told apart


def loads(data: bytes | memoryview, *, most: int = MOST) -> Any:
    """Parse UTF-8 JSON; NaN and the infinities are numbers, as Python writes them.

    Args:
        most: Bytes that its values may take, where a text of its size may take as many.

    Raises:
        ValueError: If it is no JSON, is deeper than `MAX_DEPTH`, or would take up more memory
            than `check_size` allows.
    """
    text = bytes(data)
    check_size(text, most=most)
    try:
        found = json.loads(text.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels") from None
    _check_depth(found)
    return found


def check_size(text: bytes, *, most: int = MOST) -> None:
    """Raise `ValueError` if what `text` says would take more memory than it is worth.

    That is more than 64 MiB and 3.5 times its size, or more than `most`.
    """
    limit = min(_ANYWAY + int(_PER_BYTE * len(text)), most)
    least, keys = _needed(text)
    needed = least + _KEY * keys
    if least <= limit < needed:  # Most keys come again and again: how many are there?
        needed = least + _KEY * _distinct(text, keys)
    if needed > limit or needed + _wide(text) > _WITH_TEXT:
        raise ValueError(
            f"Expected JSON whose values take at most {limit} bytes. Received: {len(text)} bytes "
            f"of text whose values take about {needed}"
        )


def _needed(text: bytes) -> tuple[int, int]:
    """What the values of `text` take without its keys, and how many keys there are at most.

    Every mark counts, also one within a text, so it is seldom too little.
    """
    lists, mappings, places, pairs = (text.count(mark) for mark in (b"[", b"{", b",", b":"))
    no_list, no_mapping = text.count(b"[]"), text.count(b"{}")
    texts, keys = -(-text.count(b'"') // 2), text.count(b'":')
    fixed = sum(text.count(word) for word in (b"null,", b"true,", b"false,"))
    # Each list and mapping but the first is a value itself, and each key one of the texts.
    numbers = max(0, places + 1 + pairs - texts - fixed)
    values = (
        _LIST * (lists - no_list)
        + _MAPPING * (mappings - no_mapping)
        + _EMPTY * (no_list + no_mapping)
        + _PLACE * places
        + _PAIR * pairs
        + _TEXT * max(0, texts - keys)
        + _NUMBER * numbers
    )
    return values, max(keys, pairs)


def _distinct(text: bytes, keys: int) -> int:
    """How many of the keys are different ones: those with an escape, and after 65,536 all."""
    found: set[bytes] = set()
    seen = 0
    for match in _KEYS.finditer(text):
        seen += 1
        found.add(match[1])
        if len(found) > _KEPT:
            break
    return len(found) + keys - seen


def _wide(text: bytes) -> int:
    """Bytes of what is in texts, beyond the text itself and its characters.

    A character beyond Latin-1 makes each one of its text as wide as itself.
    """
    if not text.isascii():
        return 7 * len(text)
    return (4 if b"\\u" in text else 1) * len(text)


def _check_depth(value: Any) -> None:
    row, depth = [value] if isinstance(value, (dict, list)) else [], 0
    while row:
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON of more than {MAX_DEPTH} levels")
        depth += 1
        row = [
            each
            for holder in row
            for each in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(each, (dict, list))
        ]
