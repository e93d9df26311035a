"""Find what a version in the model registry is to serve: a slim copy, or the checkpoint itself.

    selector -> checkpoint -> slim copy, found or made (`slim_copy.py`)
                           -> itself: every byte read, then pinned, then looked for once more

Who prunes asks the registry and looks for a pin before it deletes anything, and whoever pins looks
whether it is being deleted: of the two that meet, one sees the other. Sizes are bytes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mlflow_ckpt import progress, slim_copy
from mlflow_ckpt.errors import CheckpointNotFound, ConfigError, StoreError
from mlflow_ckpt.fetched import first_whole
from mlflow_ckpt.record import Checkpoint, Run
from mlflow_ckpt.say import say
from mlflow_ckpt.selector import Selector
from mlflow_ckpt.slim_copy import Prepared, Ready
from mlflow_ckpt.store import SlimCopies, SlimCopy, Store

_PINNED = "pinned"
# How often a checkpoint may be deleted under a reader before that is an error.
_DELETED_MEANWHILE = 20


@dataclass(frozen=True, kw_only=True)
class Served:
    """The LoggedModel that a version is to name.

    Attributes:
        made: The slim copy, if it was made now.
    """

    checkpoint: Checkpoint
    model_id: str
    bytes: int
    slim: bool
    keeps_optimizer: bool
    made: SlimCopy | None = None


def slimmed(store: Store, copies: SlimCopies, run: Run, selector: Selector, folder: Path) -> Served:
    """The slim copy of what a selector names, found or made.

    Args:
        folder: Where files go meanwhile.

    Raises:
        ConfigError: If the checkpoint holds weights only.
        IntegrityError, ModelNotLoadable: If a file is not the committed one, or not Keras's.
        SelectorError, NotFound, StoreError: As `resolve`, or if the server refuses.
    """

    def take(checkpoint: Checkpoint) -> Ready | Prepared:
        _check_whole(checkpoint)
        found = slim_copy.find(store, copies, run, checkpoint)
        return found or slim_copy.prepare(store, checkpoint, folder)

    checkpoint, found = first_whole(store, run, selector, take)
    slim_copy.clear(copies, run, checkpoint)
    if isinstance(found, Prepared):
        found = slim_copy.make(copies, run, checkpoint, found)
    return Served(
        checkpoint=checkpoint,
        model_id=found.copy.model_id,
        bytes=found.copy.bytes,
        slim=True,
        keeps_optimizer=found.keeps_optimizer,
        made=found.copy if found.made else None,
    )


def whole(store: Store, run: Run, selector: Selector, folder: Path, undo: ExitStack) -> Served:
    """What a selector names itself, every byte of it read.

    Args:
        undo: Unpins it: until then no policy deletes it.

    Raises:
        ConfigError, IntegrityError, SelectorError, NotFound, StoreError: As `slimmed`.
    """

    def take(checkpoint: Checkpoint) -> bool:
        _check_whole(checkpoint)
        manifest = store.manifest(checkpoint, folder)
        progress.expect(manifest.total_bytes)
        for entry in manifest.files:
            opened = store.fetch(checkpoint, manifest, [entry.path], folder, in_place=True)
            for file in opened.values():
                file.close()
            (folder / entry.path).unlink(missing_ok=True)
        return any(each["trains"] for each in manifest.model.get("optimizers", []))

    for left in reversed(range(_DELETED_MEANWHILE)):
        checkpoint, keeps_optimizer = first_whole(store, run, selector, take)
        try:
            store.upkeep.pin(checkpoint)
            break
        except CheckpointNotFound:
            if not left:
                raise
    if _PINNED not in checkpoint.held:
        undo.callback(_unpin, store, checkpoint)
    return Served(
        checkpoint=checkpoint,
        model_id=checkpoint.model_id,
        bytes=checkpoint.bytes,
        slim=False,
        keeps_optimizer=keeps_optimizer,
    )


def _unpin(store: Store, checkpoint: Checkpoint) -> None:
    """Leave a checkpoint to the registry, which holds it from now on, or to the policies."""
    try:
        store.upkeep.unpin(checkpoint)
    except StoreError as error:
        say(
            f"{checkpoint.name} stays pinned: {error} Unpin it with: mlflow-ckpt pin "
            f"{checkpoint.run_id} step={checkpoint.step}@{checkpoint.series} --remove"
        )


def _check_whole(checkpoint: Checkpoint) -> None:
    if checkpoint.weights_only:
        raise ConfigError(
            "Expected a checkpoint of a whole model: only such a one can be served. Received: "
            f"{checkpoint.name}, which holds weights only. Load them into your model with "
            f"load_weights(model, {checkpoint.run_id!r}, "
            f"'step={checkpoint.step}@{checkpoint.series}'), save it whole with save(model), and "
            "register that one."
        )
