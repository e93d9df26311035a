"""Open a file below a folder, and nothing else that its path may have been made to lead to."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

_NO_LINK, _NO_WAIT = getattr(os, "O_NOFOLLOW", 0), getattr(os, "O_NONBLOCK", 0)
_FOLDER = os.O_RDONLY | _NO_LINK | getattr(os, "O_DIRECTORY", 0)
# What a path that is a file's no more, or never was one's, is answered with.
NO_FILE = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO,
    errno.EINVAL, errno.ENODEV, getattr(errno, "EMLINK", errno.ELOOP),
})  # fmt: skip


def open_below(root: Path, path: str) -> BinaryIO:
    """Open a regular file below `root`, by a path that no link may be part of.

    `root` itself may lie behind links: it is the caller's.

    Raises:
        OSError: If there is none, or something else is there.
    """
    *folders, name = PurePosixPath(path).parts
    at = os.open(root, _FOLDER & ~_NO_LINK)
    try:
        for folder in folders:
            below = os.open(folder, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        found = os.open(name, os.O_RDONLY | _NO_LINK | _NO_WAIT, dir_fd=at)
    finally:
        os.close(at)
    if not stat.S_ISREG(os.fstat(found).st_mode):
        os.close(found)
        raise OSError(errno.EISDIR, "Not a regular file", path)
    return os.fdopen(found, "rb")
