"""What the processes do that are killed: fill a spool, deliver it, finish, read."""

from __future__ import annotations

import os
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import kill_checks as checks
from kill_checks import KEEP, SERIES, Ledger, Said, World

from mlflow_ckpt import parcel
from mlflow_ckpt.deliverer import Deliverer
from mlflow_ckpt.delivery import Delivery
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import SaveFailed, ServerAway
from mlflow_ckpt.ground import open_journal, reach
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import STEP_METRIC, MetricRow, Position
from mlflow_ckpt.store import Store
from mlflow_ckpt.syncing import deliver_now
from mlflow_ckpt.thinning import superseded

STEPS = 4  # of an epoch
HANG_S = 20.0
MEASURED = "ckpt/write_s"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one process does until it is killed.

    Attributes:
        role: `write`, `drain`, or `two`, where one drains beside it.
        deliver: Who delivers what `write` writes: itself, `now` after each epoch, or
            `behind` on a thread; `later` leaves it.
        refuses: Whether the server refuses some checkpoints.
    """

    role: str
    epochs: int = 3
    deliver: str = "now"
    thin: bool = False
    refuses: bool = False


TASKS = (
    Task(role="two", epochs=5, deliver="later", thin=True),
    Task(role="write", deliver="now"),
    Task(role="write", deliver="behind"),
    Task(role="write", deliver="behind", thin=True),
    Task(role="write", deliver="later", thin=True),
    Task(role="write", deliver="now", refuses=True),
)


def write(world: World, task: Task) -> None:
    """Go on as a `fit` does: from the newest checkpoint that this machine holds."""
    store = Store()
    ground = reach(store, world.run_id, SERIES.name, world.spool)
    point = ground.resume_point(SERIES)
    epoch = point.epoch if point else 0
    ground.release()
    journal, book = ground.journal, Ledger(world)
    journal.append(parcel.SERIES, parcel.pack_series(SERIES))
    journal.append(parcel.TAGS, {"tags": {"ckpt.note": str(epoch)}})
    behind = Behind(store, world, journal) if task.deliver == "behind" else None
    for _ in range(task.epochs):
        epoch += 1
        rows = epoch_rows(world, epoch)
        say(journal, book, parcel.ROWS, Said(rows, None), {"rows": parcel.pack_rows(rows)})
        measured = [row(MEASURED, time.perf_counter(), epoch)]
        data = {"rows": parcel.pack_rows(measured), "measured": True}
        say(journal, book, parcel.ROWS, Said(measured, None), data)
        if chance(world, epoch, "saved") < 0.85:
            save(world, journal, book, epoch, rows)
        if task.thin:
            for entry in superseded(journal.checkpoints(), KEEP):
                journal.drop(entry)
        if behind is not None:
            behind.deliverer.wake()
        elif task.deliver == "now":
            deliver(store, world, journal)
    if behind is not None:
        behind.finish(task.refuses)


def save(world: World, journal: Journal, book: Ledger, epoch: int, rows: list[MetricRow]) -> None:
    """Write a checkpoint's files and its entry, as the writer does: see `contents.py`."""
    position = Position(series=SERIES.name, kind="epoch", epoch=epoch, step=STEPS * epoch, fit=1)
    room = journal.room()
    folder, source = journal.files_of(room), random.Random(f"{world.seed} {epoch}")
    for path in ("data/model.keras", "state/training_state.h5", "MLmodel"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(source.randbytes(source.randrange(1, 30_000)))
    manifest = Manifest.build(
        folder, checkpoint={"step": position.step}, model={}, versions=Store.versions()
    )
    (folder / FILENAME).write_bytes(manifest.to_bytes())
    for path in sorted(folder.rglob("*"), reverse=True):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    rows = [*rows, row(STEP_METRIC, float(position.step), position.step)]
    data = entry_data(position, manifest, rows)
    value = data["values"].get("loss")
    said = Said(rows, position.step, epoch, value, data["created_at"])
    say(journal, book, parcel.CHECKPOINT, said, data, room)


def entry_data(position: Position, manifest: Manifest, rows: list[MetricRow]) -> dict[str, Any]:
    """What `contents.entry_data` says of a checkpoint; that module brings Keras."""
    finite = [r for r in rows if r.value - r.value == 0]
    return {
        "position": asdict(position),
        "series": parcel.pack_series(SERIES),
        "keep": parcel.pack_keep(KEEP),
        "digest": digest_bytes(manifest.to_bytes()),
        "bytes": manifest.total_bytes,
        "rows": parcel.pack_rows(finite),
        "beside": parcel.pack_rows(r for r in rows if r not in finite),
        "curve": parcel.pack_rows(rows),
        "values": {r.key: r.value for r in finite if r.key != STEP_METRIC},
        "weights_only": False,
        "capture": "host-copy",
        "final": False,
        "created_at": time.time_ns() // 1_000_000,
    }


def say(
    journal: Journal,
    book: Ledger,
    kind: str,
    said: Said,
    data: dict[str, Any],
    room: Path | None = None,
) -> None:
    """Append an entry, with a line in the ledger before it and one behind it."""
    name = book.begin(said)
    book.end(name, journal.append(kind, data, room).uid)


def epoch_rows(world: World, epoch: int) -> list[MetricRow]:
    """The same values at every replay, at another time; some repeat, some are NaN."""
    loss = round(chance(world, epoch, "loss"), 1)
    if chance(world, epoch, "diverged") < 0.1:
        loss = float("nan")
    return [row("loss", loss, epoch), row("accuracy", chance(world, epoch, "accuracy"), epoch)]


def row(key: str, value: float, step: int) -> MetricRow:
    return MetricRow(key=key, value=value, timestamp=time.time_ns() // 1_000_000, step=step)


def chance(world: World, epoch: int, what: str) -> float:
    return random.Random(f"{world.seed} {epoch} {what}").random()


class Behind:
    """A deliverer at work, as the writer has one."""

    def __init__(self, store: Store, world: World, journal: Journal) -> None:
        self.failures: list[BaseException] = []
        self.deliverer = Deliverer(
            journal,
            Delivery(store, journal, claim=claim(store, world)),
            key=(store.uri, world.run_id),
            outcome=self._outcome,
            emptied=lambda: None,
            exit_wait=HANG_S,
        )

    def _outcome(self, uid: str, result: object) -> None:
        if isinstance(result, BaseException):
            self.failures.append(result)

    def finish(self, refuses: bool) -> None:
        assert self.deliverer.join(HANG_S), f"still delivers: {self.deliverer.fault}"
        for failure in self.failures:
            if not (refuses and isinstance(failure, SaveFailed)):
                raise failure


def claim(store: Store, world: World) -> Lease | None:
    if not world.lease:
        return None
    lease = Lease(store.lease_tag(store.run(world.run_id, settled=False), SERIES.name), where="")
    lease.acquire()
    return lease


def deliver(store: Store, world: World, journal: Journal, *, again: bool = False) -> None:
    """Deliver to the end; a database that another process holds is asked again."""
    held = claim(store, world)
    until = time.monotonic() + HANG_S
    while True:
        try:
            deliver_now(store, journal, claim=held, again=again)
            break
        except ServerAway:
            if time.monotonic() > until:
                raise
    if held is not None:
        held.release()


def drain(world: World, again: bool = True) -> None:
    """What the next process does first of all."""
    store = Store()
    journal = open_journal(store, store.run(world.run_id), SERIES.name, world.spool)
    deliver(store, world, journal, again=again)


def finish(world: World) -> None:
    """Let everything arrive, end the `fit`, and hold the run against the ledger."""
    store = Store()
    run = store.run(world.run_id)
    journal = open_journal(store, run, SERIES.name, world.spool)
    waited = checks.survivors(world)
    deliver(store, world, journal, again=True)
    newest = store.latest(store.run(world.run_id), SERIES)
    if newest is not None:
        data = {"series": parcel.pack_series(SERIES), "model_id": "", "entry": newest.entry}
        journal.append(parcel.FINAL, data)
    journal.append(parcel.END, {"series": parcel.pack_series(SERIES)})
    deliver(store, world, journal)
    checks.everything_arrived(world, waited)


def watch(world: World) -> None:
    """Read while others write: nothing torn may resolve."""
    store = Store()
    run = store.run(world.run_id)
    while not (world.folder / "enough").exists():
        checks.resolved_now(world, store, run)


def act(world: World, task: Task) -> None:
    if task.role == "write":
        write(world, task)
    else:
        drain(world, again=not task.refuses)
