"""Tell from a name what must not be stored: secrets, and training data."""

from __future__ import annotations

import re

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_HINT = re.compile("key|token|pwd|passw|passphrase|secret|credential|authorization", re.IGNORECASE)
_SECRET_WORDS = frozenset({"apikey", "key", "pwd", "token"})
_SECRET = re.compile(
    "secret|passw|passphrase|credential|apikey|authorization|token$", re.IGNORECASE
)
_DATA = frozenset({"data", "dataset", "datasets", "ds", "image", "images", "labels", "x", "y"})
_SPLIT = frozenset({"train", "training", "val", "valid", "validation", "test", "eval"})


def is_secret(name: str) -> bool:
    """Whether `name` says that its value is one: `api_key`, `accessToken`; not `keys`."""
    if not _HINT.search(name):  # Dicts can have many names.
        return False
    words = _WORD.findall(name)
    return any(w.lower() in _SECRET_WORDS or _SECRET.search(w) for w in words)


def is_data(name: str) -> bool:
    """Whether `name` says that its value is training data: `x_train`, `validation_data`."""
    words = {word.lower() for word in _WORD.findall(name) if not word.isdigit()} - _SPLIT
    return bool(words) and words <= _DATA
