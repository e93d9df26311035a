"""Which paths a manifest may list: those that name one file each, on every system, below a folder.

Whoever lays the files of a checkpoint down joins these paths to a folder. Two spellings of one
path, or two that a file system holds to be one, would let the second file take the place of
the first after that was verified.

Lengths are bytes in UTF-8.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from mlflow_ckpt.errors import ManifestError

ELSE = "Take another checkpoint (`mlflow-ckpt list <run_id>` shows them)."
LONGEST = 1024
LONGEST_NAME = 255


def check_path(path: object) -> str:
    """Return `path` if it is the one spelling of a file's path below a folder.

    Raises:
        ManifestError: If it is not.
    """
    if not isinstance(path, str) or not _is_plain(path):
        received = f"{path[:80]!r}" if isinstance(path, str) else type(path).__name__
        raise ManifestError(
            f"Expected a relative path inside the checkpoint. Received: {received}. {ELSE}"
        )
    return path


def check_each_once(paths: Iterable[str], taken: str) -> None:
    """Refuse paths of which two are one file, one is a folder of another, or one is `taken`.

    Raises:
        ManifestError: If there are such.
    """
    seen = {_folded(taken)}
    folders = set[str]()
    for path in paths:
        folded = _folded(path)
        if folded in seen:
            raise ManifestError(
                f"Expected each file once, and not {taken} itself. Received: {path[:80]!r} again, "
                f"in the letters of some file system. {ELSE}"
            )
        seen.add(folded)
        folders.update(_parents(folded))
    both = folders & seen
    if both:
        raise ManifestError(
            f"Expected files. Received: {min(both)[:80]!r}, a folder of another one. {ELSE}"
        )


def _is_plain(path: str) -> bool:
    # JSON may escape half a surrogate pair, which no file name can hold.
    if any(unicodedata.category(c) in ("Cc", "Cs") for c in path) or "\\" in path:
        return False
    pure = PurePosixPath(path)
    # `./a`, `a//b` and `a/` are other spellings of what PurePosixPath makes of them.
    if str(pure) != path or pure.is_absolute() or not pure.parts or ".." in pure.parts:
        return False
    if ":" in pure.parts[0] or len(path.encode()) > LONGEST:
        return False
    return all(len(name.encode()) <= LONGEST_NAME for name in pure.parts)


def _folded(path: str) -> str:
    """What macOS and Windows see: no case, and composed and decomposed letters alike."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _parents(path: str) -> Iterator[str]:
    while (at := path.rfind("/")) >= 0:
        path = path[:at]
        yield path
