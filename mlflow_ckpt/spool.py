"""Where checkpoints wait on the local disk, and how much room they may take.

    <spool>/<run ID>/<series>/    one journal: see `journal.py`

What waits for the server is never removed to make room. First the local copies of delivered
checkpoints go, oldest first; where that is not enough, a new checkpoint fails and says so.
Of what waits, `Keep` decides: a checkpoint that the policy would delete once it is delivered
is dropped before, and its metrics are delivered all the same. So the checkpoints of one
series that wait are those that `keep` keeps, and one more.

Sizes are bytes, times seconds.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import Timeout

from mlflow_ckpt.errors import ConfigError, SpoolError
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.say import say

VARIABLE = "MLFLOW_CKPT_SPOOL"
COPIES = 5


@dataclass(frozen=True, kw_only=True)
class Spool:
    """Where checkpoints wait for the server, and for how long `fit` waits for them.

    Every checkpoint lies in the spool, durably, before its upload begins. It leaves it once
    it is committed, but for the newest one of the five series that were trained last: that
    copy lets this machine resume without a download, and without a server.

    Attributes:
        dir: Folder, on a disk of this machine; `None` takes `MLFLOW_CKPT_SPOOL`, else
            `mlflow_ckpt/spool` in the user's cache directory. Readable by its owner only.
        max_bytes: Bound of the whole folder. Local copies of delivered checkpoints make room;
            what waits for the server never does: a checkpoint that finds no room fails.
            `None`: the bound is the disk.
        drain_timeout: Seconds that the end of `fit` waits for the server. What is left then
            stays in the spool: the next `fit` with this run ID delivers it, or
            `mlflow-ckpt sync`.

    Raises:
        ConfigError: If a number is not positive, or the folder's name is no path.
    """

    dir: str | os.PathLike[str] | None = None
    max_bytes: int | None = None
    drain_timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.dir is not None and not (isinstance(self.dir, str | os.PathLike) and str(self.dir)):
            raise ConfigError(f"Expected a folder's path or None. Received: dir={self.dir!r}")
        bound = self.max_bytes
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise ConfigError(f"Expected bytes, as an int. Received: max_bytes={bound!r}")
        if bound is not None and bound <= 0:
            raise ConfigError(f"Expected more than 0 bytes. Received: max_bytes={bound!r}")
        wait = self.drain_timeout
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise ConfigError(
                f"Expected a finite number of seconds, 0 or more. Received: drain_timeout={wait!r}"
            )

    @classmethod
    def parse(cls, spool: Spool | str | os.PathLike[str] | None) -> Spool:
        """Read the callback's `spool=`: a `Spool`, a folder, or `None` for the default.

        Raises:
            ConfigError: If it is of another type.
        """
        if isinstance(spool, Spool):
            return spool
        if spool is None or isinstance(spool, str | os.PathLike):
            return cls(dir=spool)
        raise ConfigError(f"Expected Spool(...), a folder or None. Received: spool={spool!r}")

    def folder(self) -> Path:
        """The spool's folder, whether it exists or not."""
        named = self.dir or os.environ.get(VARIABLE)
        if named:
            return Path(named).expanduser().absolute()
        return platformdirs.user_cache_path("mlflow_ckpt") / "spool"

    def folders(self) -> list[Path]:
        """Every folder that `open` may have taken, the usual one first."""
        named = self.dir or os.environ.get(VARIABLE)
        return [self.folder()] if named else [self.folder(), _fallback()]

    def open(self) -> Path:
        """Make the folder and see that it can be written to.

        Where the default one cannot, such as in a container without a home, a folder for
        temporary files takes its place, with a line that says so.

        Raises:
            SpoolError: If the folder that was named cannot be used.
        """
        folder = self.folder()
        try:
            return _make(folder)
        except OSError as error:
            if self.dir or os.environ.get(VARIABLE):
                raise SpoolError(
                    f"The spool {folder} cannot be written to: {error.strerror or error}. Name a "
                    f"folder on a local disk: Spool(dir=...) or {VARIABLE}."
                ) from error
            place = _fallback()
            say(
                f"The spool {folder} cannot be written to ({error.strerror or error}): checkpoints "
                f"wait in {place} instead, which may not survive a restart of this machine. "
                f"{VARIABLE} names another folder."
            )
            try:
                return _own(_make(place))
            except OSError as second:
                raise SpoolError(
                    f"Neither {folder} nor {place} can hold a spool: {second.strerror or second}. "
                    f"Name a folder on a local disk: Spool(dir=...) or {VARIABLE}."
                ) from second

    def make_room(self, folder: Path, wanted: int) -> None:
        """Let old copies go until `wanted` bytes fit below `max_bytes`.

        Raises:
            SpoolError: If they do not fit.
        """
        if self.max_bytes is None:
            return
        used = sum(journal.bytes for journal in journals(folder))
        for copy in sorted(_copies(folder), key=_age):
            if used + wanted <= self.max_bytes:
                break
            used -= copy.drop_copy()
        if used + wanted > self.max_bytes:
            raise SpoolError(
                f"The spool {folder} holds {used:,} bytes that wait for the server and may hold "
                f"{self.max_bytes:,}; this checkpoint needs {wanted:,}. Raise Spool(max_bytes=), "
                "or deliver them with `mlflow-ckpt sync --all`."
            )


def journals(folder: Path) -> Iterator[Journal]:
    """Every journal of a spool."""
    if folder.is_dir():
        for path in sorted(folder.glob("*/*/journal.json")):
            yield Journal(path.parent)


def destroy(journal: Journal) -> None:
    """Remove a journal with all that waits in it.

    Raises:
        SpoolError: If somebody delivers it, or it cannot be removed.
    """
    try:
        with journal.lock().acquire(timeout=0):
            shutil.rmtree(journal.path)
        with suppress(OSError):  # Another series of the run has its folder there.
            journal.path.parent.rmdir()
    except Timeout as error:
        raise SpoolError(f"Somebody delivers what waits in {journal.path}.") from error
    except OSError as error:
        raise SpoolError(f"{journal.path} cannot be removed: {error}") from error


def keep_newest_copies(folder: Path) -> None:
    """Drop local copies but those of the series that were trained or resumed last."""
    for journal in sorted(_copies(folder), key=_age)[:-COPIES]:
        journal.drop_copy()


def _copies(folder: Path) -> list[Journal]:
    return [journal for journal in journals(folder) if journal.copy() is not None]


def _age(journal: Journal) -> float:
    return journal.copied_at


def _make(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0")
    return folder


def _fallback() -> Path:
    return Path(tempfile.gettempdir()) / f"mlflow-ckpt-{_user()}"


def _own(folder: Path) -> Path:
    """Refuse a folder that another user made: its name can be guessed."""
    found = folder.lstat()
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077):
        raise PermissionError(errno.EPERM, "It belongs to another user", str(folder))
    return folder


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
