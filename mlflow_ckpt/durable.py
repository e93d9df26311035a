"""Files that are on the disk when a call returns, and appear whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write(path: Path, data: bytes) -> None:
    """Write a file in a folder that nobody else reads yet."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON to `path`: all of it or nothing."""
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        write(partial, json.dumps(dict(content)).encode())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def link_tree(source: Path, target: Path) -> None:
    """Give every file below `source` a further name below `target`, or a copy.

    Raises:
        FileNotFoundError: If the folder, or a file of it, goes meanwhile.
    """
    for path in source.rglob("*"):
        there = target / path.relative_to(source)
        if path.is_dir():
            there.mkdir(parents=True, exist_ok=True)
            continue
        there.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, there)
    # A folder that `discard` empties while it is listed looks like one with fewer files.
    source.stat()


def link_or_copy(source: Path, target: Path) -> bool:
    """Give a file a further name, or copy it; whether it is a link.

    Raises:
        FileNotFoundError: If it is not there.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another file system, or one without links.
        shutil.copyfile(source, target)
        return False
    return True


def discard(path: Path, making: Path) -> None:
    """Remove a folder so that nobody ever sees a part of it.

    Args:
        making: A folder of the same file system that nobody reads.
    """
    gone = making / f"gone-{uuid.uuid4().hex}"
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; what goes meanwhile counts as 0."""
    try:
        if path.is_dir():
            return sum(size(inner) for inner in path.iterdir())
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
