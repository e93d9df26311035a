"""One entry of a journal: a folder that says one thing. See `journal.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_ckpt import durable
from mlflow_ckpt.errors import SpoolError

FILES = "files"
ENTRY, PROGRESS, DROPPED = "entry.json", "progress.json", "dropped"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One thing to be said.

    Attributes:
        path: Its folder.
        uid: Names it everywhere, on the server too.
        kind: What it is: see `delivery.py`.
        data: Its content.
    """

    path: Path
    uid: str
    kind: str
    data: Mapping[str, Any]

    @property
    def files(self) -> Path:
        """Folder with a checkpoint's files."""
        return self.path / FILES

    @property
    def dropped(self) -> bool:
        """Whether its files were dropped, because they would be deleted once delivered."""
        return (self.path / DROPPED).exists()

    @property
    def progress(self) -> dict[str, Any]:
        """How far its delivery came, as `note` left it."""
        try:
            found = json.loads((self.path / PROGRESS).read_bytes())
        except FileNotFoundError:
            return {}
        return found if isinstance(found, dict) else {}

    def note(self, progress: Mapping[str, Any]) -> None:
        """Remember how far the delivery came, durably."""
        durable.replace(self.path / PROGRESS, progress)

    @classmethod
    def read(cls, path: Path) -> Entry | None:
        """The entry in a folder; `None` if there is none, or no more.

        Raises:
            SpoolError: If it cannot be read.
        """
        try:
            raw = json.loads((path / ENTRY).read_bytes())
            return cls(path=path, uid=raw["uid"], kind=raw["kind"], data=raw["data"])
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError) as error:
            raise SpoolError(
                f"Expected an entry. Received: {path / ENTRY}: {error!r}. Move that folder away."
            ) from error
