"""What one series has to say to the server, in order, on the local disk.

    <run ID>/<series>/
        journal.json        format, tracking URI, run, series: what a later process needs
        10000007/           an entry: entry.json, and a checkpoint's files below files/
        refused/10000003/   an entry that the server refused, until somebody asks again
        copy/               the newest delivered checkpoint that a fit can resume from
        making/             entries in the making
        lock                held by the process that delivers

An entry appears by one rename, after every byte of it is on the disk, and goes by another.
Any number of processes may append: a number that is taken makes the rename fail, and the
next one is tried. One process at a time delivers. All of it is MLflow's and Keras's business
elsewhere: this module knows files.

Readers refuse a newer major format and leave it alone.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlflow_ckpt import about, durable, rooms
from mlflow_ckpt.entry import DROPPED, ENTRY, FILES, Entry
from mlflow_ckpt.errors import SpoolError
from mlflow_ckpt.owner import Owner

__all__ = ["Entry", "Journal"]

_MANIFEST = "manifest.json"
# Room before the first one, for what is put back.
_FIRST = 10_000_000
_ABOUT = "journal.json"


class Journal:
    """The journal of one series of one run.

    Args:
        path: Its folder, which `create` makes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next = _FIRST

    @classmethod
    def create(cls, spool: Path, run_id: str, series: str, facts: Mapping[str, Any]) -> Journal:
        """Open the journal of a series, and note `facts` in it.

        Raises:
            SpoolError: If the folder cannot be written to.
        """
        journal = cls(spool / run_id / series)
        try:
            folders = (journal.path.parent, journal.path, journal._making, journal._refused)
            for folder in folders:
                folder.mkdir(mode=0o700, exist_ok=True)
            journal.describe({**journal.about, **facts, "writer": Owner.me().to_dict()})
            rooms.sweep(journal._making)
        except OSError as error:
            raise SpoolError(
                f"The spool {spool} cannot be written to: {error.strerror or error}. Name a folder "
                "on a local disk: Spool(dir=...) or MLFLOW_CKPT_SPOOL."
            ) from error
        return journal

    # --- what it is -----------------------------------------------------------

    @property
    def about(self) -> dict[str, Any]:
        """What `describe` wrote; empty where there is no journal.

        Raises:
            FormatTooNew: If a later version wrote it.
        """
        return about.read(self.path / _ABOUT)

    @property
    def writer_is_gone(self) -> bool:
        """Whether the process that wrote the last entry is certainly dead."""
        try:
            return Owner.from_dict(self.about["writer"]).is_dead()
        except (KeyError, ValueError):
            return False

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Note what a later process needs to know of run and series."""
        room = self.room()
        durable.write(room / _ABOUT, json.dumps({"format": about.FORMAT, **facts}).encode())
        (room / _ABOUT).replace(self.path / _ABOUT)
        durable.sync(self.path)
        self.give_up(room)

    def add_tags(self, tags: Mapping[str, str]) -> None:
        """Note tags that the run has from now on."""
        facts = self.about
        if "run" in facts:
            facts["run"]["tags"].update(tags)
            self.describe(facts)

    @property
    def spool(self) -> Path:
        return self.path.parent.parent

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return durable.size(self.path)

    # --- entries --------------------------------------------------------------

    def room(self) -> Path:
        """A private folder in which an entry's files are made."""
        place = rooms.make(self._making)
        (place / FILES).mkdir(mode=0o700)
        return place

    @staticmethod
    def files_of(room: Path) -> Path:
        return room / FILES

    @staticmethod
    def give_up(room: Path) -> None:
        shutil.rmtree(room, ignore_errors=True)

    def append(
        self,
        kind: str,
        data: Mapping[str, Any],
        room: Path | None = None,
        *,
        uid: str | None = None,
    ) -> Entry:
        """Add an entry, durably.

        Args:
            room: Where its files are, if it has some. They are on the disk already.
            uid: Its name; `None` makes one.

        Raises:
            OSError: If the disk is full or fails; then there is no entry.
        """
        place = room or self.room()
        uid = uid or uuid.uuid4().hex
        try:
            durable.write(
                place / ENTRY, json.dumps({"uid": uid, "kind": kind, "data": data}).encode()
            )
            if room is None:
                (place / FILES).rmdir()
            durable.sync(place)
            target = self._move(place)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        durable.sync(self.path)
        return Entry(path=target, uid=uid, kind=kind, data=data)

    def _move(self, place: Path) -> Path:
        """Give an entry the next number. Whoever comes second takes the one after it."""
        newest = self._numbers()[-1:]
        number = max(self._next, int(newest[0]) + 1 if newest else 1)
        while True:
            target = self.path / f"{number:08d}"
            try:
                place.rename(target)
            except OSError:
                if not target.exists():
                    raise
                number += 1
                continue
            self._next = number + 1
            return target

    def _numbers(self) -> list[str]:
        try:
            return sorted(path.name for path in self.path.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

    def waiting(self) -> list[Entry]:
        """Every entry that is not delivered, in order."""
        found = (Entry.read(self.path / number) for number in self._numbers())
        return [entry for entry in found if entry is not None]

    def each(self) -> Iterator[Entry]:
        """The entries that are there now, in order, each read when it is its turn."""
        for number in self._numbers():
            if found := Entry.read(self.path / number):
                yield found

    def checkpoints(self) -> list[Entry]:
        """The entries with files, in order. Of many others none is read."""
        there = (self.path / number for number in self._numbers())
        found = (Entry.read(path) for path in there if (path / FILES).exists())
        return [entry for entry in found if entry is not None]

    def first(self) -> Entry | None:
        """The entry that is delivered next."""
        for number in self._numbers():
            entry = Entry.read(self.path / number)
            if entry is not None:
                return entry
        return None

    def after(self, entry: Entry) -> Iterator[Entry]:
        """The entries behind `entry`, in order, each read when it is asked for."""
        for number in self._numbers():
            if number > entry.path.name and (found := Entry.read(self.path / number)):
                yield found

    def remove(self, entry: Entry) -> None:
        """Take a delivered entry away."""
        durable.discard(entry.path, self._making)

    def pin(self, entry: Entry) -> Path:
        """Hold a checkpoint's files while they are read, whoever delivers it meanwhile.

        Returns:
            A folder with them, of the caller's own: end it with `give_up`.

        Raises:
            FileNotFoundError: If the entry is gone.
        """
        room = self.room()
        try:
            durable.link_tree(entry.files, room / FILES)
            if not (room / FILES / _MANIFEST).exists():
                raise FileNotFoundError(entry.path)
        except BaseException:
            self.give_up(room)
            raise
        return room

    def drop(self, entry: Entry) -> None:
        """Give the room of a waiting checkpoint's files back; its metrics still wait."""
        durable.write(entry.path / DROPPED, b"")
        shutil.rmtree(entry.files, ignore_errors=True)

    def refuse(self, entry: Entry, reason: str) -> None:
        """Put aside what the server refused."""
        entry.note({"refused": reason})
        entry.path.rename(self._refused / f"{entry.path.name}-{entry.uid}")

    def refused(self) -> list[Entry]:
        """What the server refused, in order."""
        found = (Entry.read(path) for path in sorted(self._refused.glob("*")))
        return [entry for entry in found if entry is not None]

    def ask_again(self) -> None:
        """Put what was refused back, before everything that waits."""
        for entry in reversed(self.refused()):
            entry.note({})
            numbers = self._numbers()
            number = int(numbers[0]) - 1 if numbers else self._next
            entry.path.rename(self.path / f"{number:08d}")

    # --- the local copy -------------------------------------------------------

    def keep_copy(self, entry: Entry, delivered: Mapping[str, Any]) -> None:
        """Make a delivered checkpoint the local copy, in place of the one before."""
        entry.note({"delivered": dict(delivered)})
        self.drop_copy()
        entry.path.rename(self._copy)

    def copy(self) -> Entry | None:
        """The newest delivered checkpoint that a fit can resume from, if it is still here."""
        return Entry.read(self._copy)

    @property
    def copied_at(self) -> float:
        """When the copy was last asked for, in seconds since the epoch; 0 without one."""
        try:
            return self._copy.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def touch_copy(self) -> None:
        """Note that somebody asked for the copy."""
        if self._copy.exists():
            os.utime(self._copy)

    def drop_copy(self) -> int:
        """Remove the local copy; returns the bytes that gives back."""
        size = durable.size(self._copy)
        if self._copy.exists():
            durable.discard(self._copy, self._making)
        return size

    def lock(self) -> FileLock:
        """The lock of who delivers; the kernel lets go of it when its process dies."""
        return FileLock(self.path / "lock", thread_local=False, mode=0o600)

    @property
    def _copy(self) -> Path:
        return self.path / "copy"

    @property
    def _refused(self) -> Path:
        return self.path / "refused"

    @property
    def _making(self) -> Path:
        return self.path / "making"
