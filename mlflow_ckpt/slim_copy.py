"""Find the slim copy of a checkpoint, or make it: what is served, without what only training needs.

    copies of the checkpoint -> one READY and whole? -> taken again
    else: verified files -> slimmed -> uploaded -> READY, last

A copy says which process makes it. One that is not READY goes at the next time, if that process
is dead, or, where that cannot be seen from here, if it was left a day ago. Sizes are bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mlflow_ckpt import progress
from mlflow_ckpt.card_content import CARD
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import DigestMismatch, IntegrityError, StoreError
from mlflow_ckpt.fetched import twice
from mlflow_ckpt.manifest import FILENAME, NO_FILE_FOUND, Manifest
from mlflow_ckpt.members import MODEL, STATE
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.record import Checkpoint, MetricRow, Run
from mlflow_ckpt.say import say
from mlflow_ckpt.slimming import Slimmed, slim
from mlflow_ckpt.store import SlimCopies, SlimCopy, Store, now_ms

_DAY_MS = 24 * 60 * 60 * 1000
# What this process makes at the moment.
_AT_WORK: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A slim copy that is whole.

    Attributes:
        keeps_optimizer: Whether the state of an optimizer is in it all the same.
        made: Whether it was made now.
    """

    copy: SlimCopy
    keeps_optimizer: bool
    made: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The files of one to be made, and what else it gets."""

    directory: Path
    manifest: Manifest
    slimmed: Slimmed
    rows: Sequence[MetricRow]


def find(store: Store, copies: SlimCopies, run: Run, checkpoint: Checkpoint) -> Ready | None:
    """The slim copy of a checkpoint that is READY, every byte of it read and right.

    One that is not right goes, unless it is registered.

    Raises:
        ServerAway, StoreError: If the server does not answer, or refuses.
    """
    for copy in copies.of(run, checkpoint):
        if copy.state == "READY":
            manifest, _ = twice(lambda: _read(store, copy.as_of(checkpoint)))  # noqa: B023
            if manifest is not None:
                return Ready(copy=copy, keeps_optimizer=bool(manifest.model.get("optimizers")))
            if copies.is_registered(copy):
                say(f"the slim copy {copy.model_id}, which is registered, is damaged.")
            else:
                _remove(copies, copy)
    return None


def prepare(store: Store, checkpoint: Checkpoint, folder: Path) -> Prepared:
    """Fetch, verify and slim the files of a checkpoint into a new folder below `folder`.

    Raises:
        IntegrityError: If one is not the committed one, or there is no model among them.
        ModelNotLoadable: If the model file is not what Keras writes.
    """
    rows = _rows(store, checkpoint)
    directory = Path(tempfile.mkdtemp(dir=folder))
    with ExitStack() as undo:
        fetched = Path(undo.enter_context(TemporaryDirectory(dir=folder)))
        manifest = store.manifest(checkpoint, fetched)
        wanted = {entry.path: entry.size for entry in manifest.files if entry.path != STATE}
        if MODEL not in wanted:
            raise IntegrityError(f"{checkpoint.name} has no {MODEL}. Take another checkpoint.")
        progress.expect(sum(wanted.values()))
        files = store.fetch(checkpoint, manifest, [*wanted], fetched, in_place=True)
        for file in files.values():
            undo.callback(file.close)
        progress.turn_to("slimming")
        slimmed = slim(files.pop(MODEL), directory, manifest.model)
        for path, file in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            with (directory / path).open("xb") as target:
                shutil.copyfileobj(file, target)
    return Prepared(directory=directory, manifest=manifest, slimmed=slimmed, rows=rows)


def make(copies: SlimCopies, run: Run, checkpoint: Checkpoint, prepared: Prepared) -> Ready:
    """Make a slim copy of prepared files; nothing of it is left if that fails.

    Raises:
        ServerAway: If the server does not answer. What is half-made goes at the next try.
        StoreError: If it refuses.
    """
    if prepared.slimmed.kept:
        say(
            f"the slim copy of {checkpoint.name} keeps its optimizer, and needs the class of it: "
            f"{prepared.slimmed.kept}."
        )
    nonce = uuid.uuid4().hex
    _AT_WORK.add(nonce)
    try:
        maker = json.dumps({**Owner.me().to_dict(), "nonce": nonce})
        return _made(copies, run, checkpoint, prepared, maker)
    finally:
        _AT_WORK.discard(nonce)


def _made(
    copies: SlimCopies, run: Run, checkpoint: Checkpoint, prepared: Prepared, maker: str
) -> Ready:
    copy = copies.begin(run, checkpoint, maker, _note(checkpoint, prepared.slimmed))
    try:
        copies.write_card(copy, run, prepared.directory)
        manifest = _manifest(prepared)
        data = manifest.to_bytes()
        (prepared.directory / FILENAME).write_bytes(data)
        sizes = {entry.path: entry.size for entry in manifest.files}
        progress.turn_to("storing the slim copy")
        progress.expect(manifest.total_bytes + len(data))
        copies.publish(copy, run, checkpoint, prepared.directory, {**sizes, FILENAME: len(data)})
        copy = copies.finish(
            copy,
            run,
            checkpoint,
            prepared.rows,
            digest=digest_bytes(data),
            size=manifest.total_bytes,
        )
    except BaseException as error:
        discard(copies, copy, error)
        raise
    return Ready(copy=copy, keeps_optimizer=bool(manifest.model.get("optimizers")), made=True)


def discard(copies: SlimCopies, copy: SlimCopy, error: BaseException) -> None:
    """Delete a copy that was made for nothing, because of `error`."""
    if not isinstance(error, ConnectionError):  # Then the next time finds it.
        _remove(copies, copy)


def clear(copies: SlimCopies, run: Run, checkpoint: Checkpoint) -> None:
    """Delete the copies of a checkpoint that somebody has begun, and nobody goes on with."""
    for copy in copies.of(run, checkpoint):
        if copy.state != "READY" and _is_left(copy):
            _remove(copies, copy)


def _remove(copies: SlimCopies, copy: SlimCopy) -> None:
    try:
        why = copies.remove(copy)
    except ConnectionError:
        raise
    except StoreError as error:
        why = str(error)
    if why:
        say(f"the slim copy {copy.model_id} is left over: {why}")


def _note(checkpoint: Checkpoint, slimmed: Slimmed) -> str:
    left_out = "training state" if slimmed.kept else "training state, optimizer and compilation"
    return (
        f"What a registered version of {checkpoint.name} serves: its model, without {left_out}. To "
        "continue the training, use the run."
    )


def _manifest(prepared: Prepared) -> Manifest:
    origin = prepared.manifest
    model = dict(origin.model)
    if not prepared.slimmed.kept:
        model.pop("optimizer", None)
        model["optimizers"] = []
    return Manifest.build(
        prepared.directory, checkpoint=origin.checkpoint, model=model, versions=origin.versions
    )


def _rows(store: Store, checkpoint: Checkpoint) -> Sequence[MetricRow]:
    """The metrics that were logged with a checkpoint.

    Raises:
        IntegrityError: If it was deleted meanwhile; then the selector is asked again.
    """
    try:
        return store.logged(checkpoint).rows
    except StoreError:
        if store.upkeep.state_of(checkpoint.model_id) is not None:
            raise
        raise IntegrityError(f"{checkpoint.name} was deleted meanwhile.") from None


def _read(store: Store, copied: Checkpoint) -> Manifest:
    """Read every byte of a copy. `MLmodel` and the environment may say something else by now.

    Raises:
        IntegrityError: If a file is not the one that was written.
    """
    with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        manifest = store.manifest(copied, Path(folder))
        progress.expect(manifest.total_bytes)
        for entry in manifest.files:
            try:
                opened = store.fetch(copied, manifest, [entry.path], Path(folder), in_place=True)
            except DigestMismatch as error:
                if entry.path not in CARD or error.found.startswith(NO_FILE_FOUND):
                    raise
                continue
            for file in opened.values():
                file.close()
        return manifest


def _is_left(copy: SlimCopy) -> bool:
    """Whether nobody goes on with a copy that is not READY."""
    if copy.state == "FAILED":
        return True
    try:
        found = json.loads(copy.maker)
        owner, nonce = Owner.from_dict(found), found.get("nonce")
    except (ValueError, RecursionError):
        pass
    else:
        if owner.is_dead() or (owner.is_me() and nonce not in _AT_WORK):
            return True
    return now_ms() - copy.changed_at > _DAY_MS
