"""Answer a `ckpt:/` URI: find its checkpoint, once, list its files and copy them, verified.

    Address -> find -> Checkpoint -> manifest, fetch, verify -> a folder of copies

The same checkpoint is taken as long as its files are right, so that whoever asks for one file
after the other gets those of one checkpoint. `latest` goes back past a damaged one, and every
other selector raises, as `fetched.py` says. Sizes are bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, TypeVar, cast

from mlflow_ckpt.across import best_across
from mlflow_ckpt.address import Address
from mlflow_ckpt.fetched import first_whole, twice
from mlflow_ckpt.manifest import FILENAME
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store

Value = TypeVar("Value")

# How often the best checkpoint may be deleted under a reader before that is an error.
_DELETED_MEANWHILE = 20


class Bar(Protocol):
    """Is told of each file that is here."""

    def update(self) -> None: ...


# Makes the bar for so many files.
Progress = Callable[[int], AbstractContextManager[Bar]]


class Located:
    """The checkpoint that a URI names, looked for when it is first asked about.

    Args:
        address: Its path is not looked at.
        tracking_uri: Where to look; `None`: where MLflow points when it is first asked.
    """

    def __init__(self, address: Address, tracking_uri: str | None) -> None:
        self._address = address
        self._tracking_uri = tracking_uri
        self._found: Checkpoint | None = None
        self._listed: tuple[str, dict[str, int]] = "", {}

    @cached_property
    def _store(self) -> Store:
        return Store(self._tracking_uri)

    def sizes(self) -> dict[str, int]:
        """The size of every file by its path, that of the manifest included.

        Raises:
            IntegrityError: If the manifest is not the committed one.
        """
        if self._found is None or self._listed[0] != self._found.model_id:
            self._listed = self._whole(self._read_sizes)
        return self._listed[1]

    @contextmanager
    def copies(self, path: str, beside: Path, progress: Progress) -> Iterator[Path]:
        """A private folder with verified copies of what lies at or below `path`.

        Whoever gets it may move them away; what is left goes. Nothing lies in it if the
        checkpoint has no such file.

        Args:
            path: POSIX; empty for the whole checkpoint.
            beside: Where the private folder is made.

        Raises:
            IntegrityError: If a file is not the committed one.
        """
        with tempfile.TemporaryDirectory(prefix=".ckpt-", dir=beside) as folder:
            yield self._whole(partial(self._bring, path, folder, progress))

    # --- which checkpoint -----------------------------------------------------

    def _whole(self, take: Callable[[Checkpoint], Value]) -> Value:
        """Let `take` read the checkpoint that was found before, if its files are right."""
        if self._found is not None:
            again, damage = twice(partial(take, self._found))
            if damage is None:
                return cast(Value, again)
        self._found, value = self._first_whole(take)
        return value

    def _first_whole(self, take: Callable[[Checkpoint], Value]) -> tuple[Checkpoint, Value]:
        run_id, selector = self._address.run_id, self._address.selector
        if run_id is None:
            return self._best_of(self._address.experiment or "", selector, take)
        return first_whole(self._store, self._store.run(run_id), selector, take)

    def _best_of(
        self, experiment: str, selector: Selector, take: Callable[[Checkpoint], Value]
    ) -> tuple[Checkpoint, Value]:
        left = _DELETED_MEANWHILE
        while True:
            best = best_across(self._store, experiment, selector)
            value, damage = twice(partial(take, best.checkpoint))
            if damage is None:
                return best.checkpoint, cast(Value, value)
            series = best.run.series[best.checkpoint.series]
            left -= 1
            if not left or self._store.reread(best.checkpoint, series) is not None:
                raise damage

    # --- its files ------------------------------------------------------------

    def _read_sizes(self, checkpoint: Checkpoint) -> tuple[str, dict[str, int]]:
        with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
            manifest = self._store.manifest(checkpoint, Path(folder))
            own = (Path(folder) / FILENAME).stat().st_size
        return checkpoint.model_id, {FILENAME: own} | {e.path: e.size for e in manifest.files}

    def _bring(self, path: str, parent: str, progress: Progress, checkpoint: Checkpoint) -> Path:
        """Copy files of one checkpoint; each call into a folder of its own."""
        folder = Path(tempfile.mkdtemp(dir=parent))
        manifest = self._store.manifest(checkpoint, folder)
        wanted = list(below(path, (entry.path for entry in manifest.files)))
        with progress(len(wanted)) as bar:
            for each in wanted:
                for file in self._store.fetch(checkpoint, manifest, [each], folder).values():
                    file.close()
                bar.update()
        if path not in ("", FILENAME):
            (folder / FILENAME).unlink()
        return folder


def below(path: str, paths: Iterable[str]) -> Iterator[str]:
    """Those of `paths` that are `path` or lie in it."""
    return (each for each in paths if not path or each == path or each.startswith(f"{path}/"))
