"""Leave folders as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def as_it_was(folder: Path | None) -> Iterator[None]:
    """Take away the folders, empty again, that are made meanwhile on the way to `folder`."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()] if folder else []
    try:
        yield
    finally:
        for path in missing:
            with suppress(OSError):  # not made, or not empty
                path.rmdir()
