"""Tell what this user's own processes have written from what somebody else could have.

Some bytes in a checkpoint are for a framework's own eyes, and it trusts them: TensorFlow
crashes, or worse, on an iterator checkpoint that was tampered with. Such bytes carry a mark
made with a key that never leaves this user's home folder. Where the mark is missing or
wrong (another machine, another user, a forger), the caller does without them.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

import platformdirs
from blake3 import blake3

_VARIABLE = "MLFLOW_CKPT_SPOOL"
_LENGTH = 32


def mark(data: bytes) -> bytes:
    """The mark of `data`; empty where this user has no place for a key."""
    key = _key(make=True)
    return b"" if key is None else bytes(blake3(data, key=key).digest())


def is_own(data: bytes, found: bytes) -> bool:
    """Whether `found` is the mark of `data`."""
    key = _key(make=False)
    return key is not None and hmac.compare_digest(blake3(data, key=key).digest(), found)


def _path() -> Path:
    # Beside the spool, if there is one of its own: both belong to the same home.
    if spool := os.environ.get(_VARIABLE):
        return Path(f"{spool.rstrip('/')}.key")
    return platformdirs.user_state_path("mlflow_ckpt") / "own.key"


def _key(*, make: bool) -> bytes | None:
    path = _path()
    with suppress(OSError):
        if make and not path.exists():
            _make(path)
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            readable = stat.S_IMODE(about.st_mode) & 0o077
            if stat.S_ISREG(about.st_mode) and not readable and about.st_uid == os.getuid():
                key = file.read(_LENGTH + 1)
                return key if len(key) == _LENGTH else None
    return None


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_LENGTH))
        with suppress(FileExistsError):  # Another process was faster: its key is the one.
            os.link(partial, path)
    finally:
        Path(partial).unlink()
