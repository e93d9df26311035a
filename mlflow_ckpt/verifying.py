"""Read every byte of checkpoints again, and hold it against what was committed.

    record on the server -> manifest, against its digest -> each file, against the manifest

One file at a time lies on the local disk. A checkpoint of which a file is wrong in two
readings gets the tag `ckpt.complete=corrupt` and the reason in `ckpt.corrupt_reason`: no
selector returns it any more, and its files stay for whoever wants to look. One that is marked
and whole again, because somebody has put its files back, loses the mark.

Sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mlflow_ckpt import progress
from mlflow_ckpt.card_content import CARD
from mlflow_ckpt.errors import (
    ArtifactsMissing,
    DigestMismatch,
    FormatTooNew,
    IntegrityError,
    ResumeError,
    StoreError,
)
from mlflow_ckpt.fetched import twice
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import VERIFIED_TAG_PREFIX, Checkpoint, Run, Series
from mlflow_ckpt.reporter import bring_up_to_date
from mlflow_ckpt.resolver import some_series
from mlflow_ckpt.say import say
from mlflow_ckpt.store import Store, now_ms

State = Literal["whole", "mended", "marked", "altered", "corrupt", "unreadable", "gone"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with one file: its path in the checkpoint, and what was found."""

    path: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one checkpoint.

    Attributes:
        run_id, series, name, model_id, epoch, step: Which one.
        state: `whole`; `mended`: it was marked as corrupt and is whole; `marked`: the same, and
            the mark stays, because it was not to be lifted or this user may not; `altered`:
            MLflow's own files beside the model say something else, as after `set_signature`: it
            loads, and is not marked; `corrupt`; `unreadable`: of a later format than this version
            reads, or a file or tag of it cannot be read at all; `gone`: deleted meanwhile.
        faults: What is wrong, empty unless it is altered, corrupt or unreadable.
        marked: Whether the server has been told, as far as it had to be.
        files, bytes: How many were read.
    """

    run_id: str
    series: str
    name: str
    model_id: str
    epoch: int
    step: int
    state: State
    faults: tuple[Fault, ...] = ()
    marked: bool = False
    files: int = 0
    bytes: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether every byte was read, and the server knows what was found."""
        return self.marked if self.state == "corrupt" else self.state in ("whole", "mended", "gone")


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `verify` found, in the order in which it looked."""

    verdicts: tuple[Verdict, ...]

    @property
    def ok(self) -> bool:
        """Whether every checkpoint is whole, could be read, and can be found."""
        return all(v.state in ("whole", "mended", "gone") for v in self.verdicts)

    @property
    def bytes(self) -> int:
        """Bytes that were read."""
        return sum(v.bytes for v in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "ok": self.ok,
            "checkpoints": len(self.verdicts),
            "bytes": self.bytes,
            "faulty": sum(bool(verdict.faults) for verdict in self.verdicts),
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def verify(
    run_id: str,
    *,
    series: str | None = None,
    mark: bool = True,
    seen: Callable[[Verdict], None] | None = None,
) -> Verification:
    """Read every committed checkpoint of a run again, and mark what is corrupt.

    Args:
        series: Only this one.
        mark: Whether to tell the server, and so every resolver, of what is found.
        seen: Called with each verdict as it falls.

    Raises:
        RunNotFound, RunDeleted: If there is no such run.
        SeriesNotFound: If it has no such series.
        ServerAway: If the server or the artifact store stops answering.
    """
    store = Store()
    return _collect(_of_run(store, store.run(run_id), series, mark), seen)


def verify_experiment(
    name: str,
    *,
    mark: bool = True,
    seen: Callable[[Verdict], None] | None = None,
) -> Verification:
    """`verify` every run of an experiment that is not deleted, oldest run first.

    Raises:
        NotFound: If there is no experiment of that name.
        ServerAway: As `verify`.
    """
    store = Store()
    traces = store.upkeep.of_experiments(store.upkeep.experiments(name))
    runs = {trace.run_id: trace.experiment_id for trace in reversed(traces)}

    def each() -> Iterator[Verdict]:
        for run_id, experiment_id in runs.items():
            if store.upkeep.stage_of(run_id, experiment_id) == "active":
                try:
                    run = store.run(run_id)
                except ResumeError as error:  # half a fork
                    say(str(error))
                    continue
                yield from _of_run(store, run, None, mark)

    return _collect(each(), seen)


def _collect(verdicts: Iterator[Verdict], seen: Callable[[Verdict], None] | None) -> Verification:
    found = []
    for verdict in verdicts:
        found.append(verdict)
        if seen is not None:
            seen(verdict)
    return Verification(verdicts=tuple(found))


def _of_run(store: Store, run: Run, series: str | None, mark: bool) -> Iterator[Verdict]:
    read = False
    for facts in some_series(run, series):
        began, verdicts = now_ms(), list[Verdict]()
        for verdict in _of_series(store, run, facts, mark):
            verdicts.append(verdict)
            yield verdict
        if mark and verdicts:
            read = True
            if all(each.is_settled for each in verdicts):
                tag = {VERIFIED_TAG_PREFIX + facts.name: str(began)}
                _tell(partial(store.set_tags, run, tag))
    if read:
        bring_up_to_date(store, run.run_id)


def _of_series(store: Store, run: Run, series: Series, mark: bool) -> Iterator[Verdict]:
    found, unreadable = store.upkeep.in_hand(run, series)
    progress.expect(sum(checkpoint.bytes for checkpoint, _ in found))
    for checkpoint, state in sorted(found, key=lambda each: _place(each[0])):
        yield _judge(store, checkpoint, was_bad=state == "corrupt", mark=mark)
    for trace, error in unreadable:
        fault = Fault(path="tags", expected="those of a checkpoint", found=str(error))
        yield Verdict(
            run_id=run.run_id,
            series=series.name,
            name=trace.name,
            model_id=trace.model_id,
            epoch=trace.epoch,
            step=trace.step,
            state="unreadable",
            faults=(fault,),
        )


def _place(checkpoint: Checkpoint) -> tuple[int, int]:
    return checkpoint.step, checkpoint.created_at


def _judge(store: Store, checkpoint: Checkpoint, *, was_bad: bool, mark: bool) -> Verdict:
    state: State
    try:
        faults, files, size = _faults(store, checkpoint)
    except FormatTooNew as error:
        fault = Fault(path=FILENAME, expected="a format that is known", found=str(error))
        return _verdict(checkpoint, "unreadable", (fault,))
    except StoreError as error:
        if isinstance(error, ConnectionError) and not isinstance(error, ArtifactsMissing):
            raise
        fault = Fault(path="files", expected="files that can be read", found=str(error))
        return _verdict(checkpoint, "unreadable", (fault,))
    marked = False
    if all(fault.path in CARD for fault in faults):
        state = "altered" if faults else "whole"
        if was_bad:
            marked = mark and _tell(lambda: store.upkeep.trust(checkpoint))
            state = state if faults else "mended" if marked else "marked"
    elif not _exists(store, checkpoint):
        return _verdict(checkpoint, "gone", ())
    else:
        state = "corrupt"
        reason = "; ".join(str(fault) for fault in faults)
        if mark:
            marked = was_bad or _tell(lambda: store.upkeep.quarantine(checkpoint, reason))
    return _verdict(checkpoint, state, faults, marked=marked, files=files, size=size)


def _verdict(
    checkpoint: Checkpoint,
    state: State,
    faults: tuple[Fault, ...],
    *,
    marked: bool = False,
    files: int = 0,
    size: int = 0,
) -> Verdict:
    return Verdict(
        run_id=checkpoint.run_id,
        series=checkpoint.series,
        name=checkpoint.name,
        model_id=checkpoint.model_id,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        state=state,
        faults=faults,
        marked=marked,
        files=files,
        bytes=size,
    )


def _exists(store: Store, checkpoint: Checkpoint) -> bool:
    """Whether it is still there: a keep policy may have deleted it under this reader."""
    return store.upkeep.state_of(checkpoint.model_id) in ("true", "corrupt")


def _tell(say_it: Callable[[], None]) -> bool:
    try:
        say_it()
    except ConnectionError:
        raise
    except StoreError as error:
        say(f"could not be marked on the server: {error}")
        return False
    return True


# --- reading ------------------------------------------------------------------


def _faults(store: Store, checkpoint: Checkpoint) -> tuple[tuple[Fault, ...], int, int]:
    """What is wrong in two readings of the manifest and of each file; files and bytes read."""
    with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        manifest, damage = twice(lambda: store.manifest(checkpoint, Path(folder)))
    if manifest is None:
        return (_fault(damage, FILENAME),), 0, 0
    faults = list(_record_faults(checkpoint, manifest))
    for entry in manifest.files:
        _, damage = twice(partial(_read, store, checkpoint, manifest, entry.path))
        if damage is not None:
            faults.append(_fault(damage, entry.path))
    return tuple(faults), len(manifest.files), manifest.total_bytes


def _read(store: Store, checkpoint: Checkpoint, manifest: Manifest, path: str) -> None:
    with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        files = store.fetch(checkpoint, manifest, [path], Path(folder), in_place=True)
        for file in files.values():
            file.close()


def _record_faults(checkpoint: Checkpoint, manifest: Manifest) -> Iterator[Fault]:
    """Where the tags by which the checkpoint is found say something else than its manifest."""
    for name in ("series", "kind", "epoch", "step"):
        written, found = manifest.checkpoint.get(name), getattr(checkpoint, name)
        if written != found:
            yield Fault(path=f"tag ckpt.{name}", expected=repr(written), found=repr(found))


def _fault(damage: IntegrityError | None, path: str) -> Fault:
    if isinstance(damage, DigestMismatch):
        return Fault(path=damage.path, expected=damage.expected, found=damage.found)
    return Fault(path=path, expected="a manifest", found=str(damage))
