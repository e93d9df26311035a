"""Open the files of a checkpoint, and go back past one whose files are damaged.

    selector -> resolve -> Checkpoint -> fetch, verify -> open files
                   ^                          |
                   +--- `latest`, the next ---+ damaged, twice over

A reading that fails is repeated once: a download may break off. What fails twice is marked on
the server (`ckpt.complete=corrupt`), so that nobody else meets it, and `latest` goes on with
the next older one; what was passed over stands in `Checkpoint.skipped` and in a line. Any
other selector names one checkpoint, so its damage is raised, and nothing is marked.

MLflow's own files beside the model, which it rewrites in `set_signature` and the like, hold no
state: where they differ from what was committed, that is raised and nothing is marked.

A trainer may delete an old checkpoint while it is read here. That is no damage: the selector
is asked again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, TypeVar, cast

from mlflow_ckpt import progress
from mlflow_ckpt.card_content import CARD
from mlflow_ckpt.errors import FormatTooNew, IntegrityError, StoreError
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.parcel import manifest_of
from mlflow_ckpt.record import Checkpoint, Run, Series, Skipped
from mlflow_ckpt.resolver import choose_series, find
from mlflow_ckpt.say import say
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.store import Store

Value = TypeVar("Value")

# How often a checkpoint may be deleted under a reader before that is an error.
_DELETED_MEANWHILE = 20
_DISK_FAULTS = frozenset({errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)})


class UnreadableCopy(IntegrityError):
    """A copy on this machine that its disk does not give back; another reading may."""


class Fetched:
    """Verified files of one checkpoint; a context manager.

    Args:
        wanted: Paths in the checkpoint; those that it does not have are left out.
        in_place: Whether to read a local artifact store's own files, without a copy. Use
            `files` then: what lies below `path` is not all there.

    Attributes:
        checkpoint: Whose they are.
        files: Each file, open for reading, by its path in the checkpoint.
        path: A private folder with the copies; where the checkpoint lies on this machine,
            that.

    Raises:
        IntegrityError: If a file is not the committed one.
    """

    def __init__(
        self,
        store: Store,
        checkpoint: Checkpoint,
        wanted: Sequence[str],
        *,
        in_place: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.source = f"checkpoint {checkpoint.name} of run {checkpoint.run_id}"
        with ExitStack() as undo:
            self.files: Mapping[str, BinaryIO]
            if checkpoint.local is not None:
                self.path = checkpoint.local
                with _of_this_disk(checkpoint.local):
                    self.manifest = manifest_of(checkpoint.local, checkpoint.digest)
                entries = [e for path in wanted if (e := self.manifest.entry(path))]
                with _of_this_disk(checkpoint.local):
                    self.files = {
                        entry.path: undo.enter_context(entry.open(checkpoint.local))
                        for entry in entries
                    }
                self._close = undo.pop_all()
                return
            self.path = Path(undo.enter_context(TemporaryDirectory(prefix="mlflow-ckpt-")))
            self.manifest = store.manifest(checkpoint, self.path)
            progress.expect(sum(e.size for path in wanted if (e := self.manifest.entry(path))))
            self.files = store.fetch(
                checkpoint, self.manifest, wanted, self.path, in_place=in_place
            )
            for file in self.files.values():
                undo.callback(file.close)
            self._close = undo.pop_all()

    def __enter__(self) -> Fetched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and remove the copies. Safe to call twice."""
        self._close.close()


@contextmanager
def _of_this_disk(folder: Path) -> Iterator[None]:
    """What a disk says it cannot give back is damaged; anything else may pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FAULTS:
            raise
        raise UnreadableCopy(f"The copy at {folder} cannot be read: {error}") from error


def fetched(
    run_id: str, which: str | Selector, wanted: Sequence[str], *, in_place: bool = False
) -> Fetched:
    """Resolve a selector and open files of what it names. The caller closes them.

    Raises:
        IntegrityError: If a file is not the committed one, twice over; with `latest`, if that
            is so of every checkpoint.
        SelectorError, NotFound: As `resolve`.
    """

    def take(checkpoint: Checkpoint) -> Fetched:
        return Fetched(store, checkpoint, wanted, in_place=in_place)

    store = Store()
    found, opened = first_whole(store, store.run(run_id), Selector.parse(which), take)
    opened.checkpoint = found
    return opened


def bring(store: Store, checkpoint: Checkpoint, directory: Path) -> Manifest:
    """Copy all files of a checkpoint into `directory`, each verified.

    Raises:
        IntegrityError: If one is not the committed one.
    """
    manifest = store.manifest(checkpoint, directory)
    paths = [entry.path for entry in manifest.files]
    progress.expect(manifest.total_bytes)
    for file in store.fetch(checkpoint, manifest, paths, directory).values():
        file.close()
    return manifest


def first_whole(
    store: Store,
    run: Run,
    selector: Selector,
    take: Callable[[Checkpoint], Value],
    *,
    series: Series | None = None,
) -> tuple[Checkpoint, Value]:
    """Let `take` read what the selector names; see the module's docstring.

    Args:
        take: Reads files of a checkpoint, and raises `IntegrityError` where one is damaged. It
            may be called again, with the same checkpoint or another one.
        series: Where to look; `None`: where the selector says.

    Returns:
        The checkpoint, which says what was skipped, and what `take` returned.
    """
    series = series or choose_series(run, selector)
    skipped, deleted = list[Skipped](), 0
    while True:
        checkpoint = _choose(store, run, selector, series, skipped)
        value, damage = twice(partial(take, checkpoint))
        if damage is None:
            # What `take` returns may be None.
            return replace(checkpoint, skipped=tuple(skipped)), cast(Value, value)
        if store.reread(checkpoint, series) is None:
            deleted += 1
            if deleted > _DELETED_MEANWHILE:
                raise damage
            continue
        if selector.kind != "latest" or getattr(damage, "path", "") in CARD:
            raise damage
        passed = pass_over(store, checkpoint, damage)
        skipped.append(passed)
        say(f"run {run.run_id}, series {series.name!r}: skipped {passed}.")


def pass_over(store: Store, checkpoint: Checkpoint, damage: IntegrityError) -> Skipped:
    """Mark a damaged checkpoint on the server, if this user may; return what is to be said."""
    try:
        store.upkeep.quarantine(checkpoint, str(damage))
    except StoreError as error:
        say(f"{checkpoint.name} could not be marked as corrupt: {error}")
    return Skipped(name=checkpoint.name, model_id=checkpoint.model_id, reason=brief(damage))


def brief(damage: IntegrityError) -> str:
    """What is wrong, without what to do about it."""
    path, expected, found = (getattr(damage, name, "") for name in ("path", "expected", "found"))
    return f"{path}: expected {expected}, found {found}" if path else str(damage)


def twice(read: Callable[[], Value]) -> tuple[Value | None, IntegrityError | None]:
    """Read files, and once more if they are not the committed ones: a download may break off.

    Returns:
        What was read and `None`, or `None` and what is wrong.

    Raises:
        FormatTooNew: At once: a later version wrote it, so it is whole, and the user upgrades.
    """
    try:
        return read(), None
    except FormatTooNew:
        raise
    except IntegrityError:
        try:
            return read(), None
        except IntegrityError as error:
            return None, error


def _choose(
    store: Store, run: Run, selector: Selector, series: Series, skipped: Sequence[Skipped]
) -> Checkpoint:
    if not skipped:
        return find(store, run, selector, series)
    passed = {each.model_id for each in skipped}
    left = [
        c for c in store.checkpoints(run, series) if c.kind != "final" and c.model_id not in passed
    ]
    if left:
        return max(left, key=lambda c: (c.step, c.created_at))
    raise IntegrityError(
        f"Every checkpoint of the series {series.name!r} of run {run.run_id} is damaged: "
        f"{'; '.join(str(each) for each in skipped)}."
    )
