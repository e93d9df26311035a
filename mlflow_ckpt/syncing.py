"""Deliver what waits in a spool, without a `fit` and without Keras.

spool -> journals -> their tracking servers -> Synced, one a journal
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout

from mlflow_ckpt import parcel
from mlflow_ckpt.delivery import Claim, Delivery
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import (
    CheckpointError,
    LeaseLost,
    ResumeError,
    ServerAway,
    StoreError,
    UnsupportedStore,
)
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.record import Run
from mlflow_ckpt.reporter import bring_up_to_date
from mlflow_ckpt.spool import Spool, journals
from mlflow_ckpt.store import Store, portable_uri, use_tracking_uri

_LOCK_S = 30.0
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What waits in one journal.

    Attributes:
        journal: The journal.
        run_id, series, tracking_uri: Whose it is.
        checkpoints: Names of the checkpoints that wait, in order.
        entries: Number of all entries, checkpoints among them.
        refused: What the server refused before, in words.
        bytes: Bytes of the journal's files, the local copy included.
        fault: Why it cannot be read; `None` if it can.
    """

    journal: Journal
    run_id: str
    series: str
    tracking_uri: str
    checkpoints: tuple[str, ...]
    entries: int
    refused: tuple[str, ...]
    bytes: int
    fault: CheckpointError | None = None

    @classmethod
    def read(cls, journal: Journal) -> Waiting:
        """Look into a journal. One that cannot be read must not hide the others."""
        try:
            return cls._read(journal)
        except CheckpointError as error:
            return cls(
                journal=journal,
                run_id=journal.path.parent.name,
                series=journal.path.name,
                tracking_uri="",
                checkpoints=(),
                entries=0,
                refused=(),
                bytes=journal.bytes,
                fault=error,
            )

    @classmethod
    def _read(cls, journal: Journal) -> Waiting:
        about, entries = journal.about, [*journal.refused(), *journal.waiting()]
        return cls(
            journal=journal,
            run_id=str(about.get("run_id", journal.path.parent.name)),
            series=str(about.get("series", journal.path.name)),
            tracking_uri=str(about.get("tracking_uri", "")),
            checkpoints=tuple(
                parcel.unpack_position(entry.data["position"]).name
                for entry in entries
                if entry.kind == parcel.CHECKPOINT and not entry.dropped
            ),
            entries=len(entries),
            refused=tuple(str(e.progress.get("refused", "")) for e in journal.refused()),
            bytes=journal.bytes,
        )


@dataclass(frozen=True, kw_only=True)
class Synced:
    """What became of one journal.

    Attributes:
        waiting: What there was.
        delivered: Number of entries that were delivered.
        refused: What the server refuses; it stays in the spool.
        error: Why not everything was delivered; `None` if it was, but for what is refused.
    """

    waiting: Waiting
    delivered: int
    refused: tuple[CheckpointError, ...] = ()
    error: CheckpointError | None = None


def look(
    run_id: str | None = None, folder: Path | None = None, *, everywhere: bool = False
) -> list[Waiting]:
    """What waits in the spool.

    Args:
        run_id: Only of this run; `None` means every run of the current tracking server.
        folder: The spool; `None` takes `MLFLOW_CKPT_SPOOL`, else the default one.
        everywhere: Whether to take the runs of all tracking servers.
    """
    here = portable_uri(Store().uri)
    places = [folder] if folder else Spool().folders()
    found = (Waiting.read(journal) for place in places for journal in journals(place))
    return [
        waiting
        for waiting in found
        if (waiting.entries or waiting.fault)
        and (
            waiting.run_id == run_id if run_id else everywhere or waiting.tracking_uri in ("", here)
        )
    ]


def sync(
    run_id: str | None = None,
    folder: Path | None = None,
    *,
    everywhere: bool = False,
    told: Callable[[Waiting, Entry], None] | None = None,
) -> Iterator[Synced]:
    """Deliver what waits, journal by journal, each to the tracking server it was meant for.

    What the server refused before is tried again. A run that MLflow was to end when its
    `fit` had returned, and could not, is marked FINISHED once its process is gone.

    Args:
        run_id, folder, everywhere: See `look`.
        told: Called with each entry that was delivered.
    """
    current = Store().uri
    try:
        for waiting in look(run_id, folder, everywhere=everywhere):
            uri = waiting.tracking_uri
            # The current URI may hold the password, which the journal does not.
            yield _sync_one(
                waiting, current if not uri or portable_uri(current) == uri else uri, told
            )
    finally:
        with suppress(StoreError):  # It was current before, whether there is such a file or not.
            use_tracking_uri(current)


def _sync_one(waiting: Waiting, uri: str, told: Callable[[Waiting, Entry], None] | None) -> Synced:
    if waiting.fault is not None:
        return Synced(waiting=waiting, delivered=0, error=waiting.fault)
    journal, done = waiting.journal, 0

    def count(entry: Entry) -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(waiting, entry)

    refused: list[CheckpointError] = []
    try:
        ended, reports = _has_ended(journal), _reports(journal)
        use_tracking_uri(uri)
        store = Store()
        run = store.run(waiting.run_id, settled=False)
        for left in reversed(range(_TRIES)):
            try:
                with _alone(store, run, waiting.series) as lease:
                    again = not refused
                    deliver_now(
                        store, journal, claim=lease, told=count, again=again, refused=refused
                    )
                    bring_up_to_date(store, run.run_id, anew=reports)
                    if ended and run.status == "RUNNING" and journal.writer_is_gone:
                        store.end_run(run, "FINISHED")
                break
            except LeaseLost:  # Another `sync`, which began in the same instant, has it.
                if not left:
                    raise
    except CheckpointError as error:
        return Synced(waiting=waiting, delivered=done, refused=tuple(refused), error=error)
    except OSError as error:
        # A disk of this machine, such as that of a local artifact store.
        failure = StoreError(f"Could not write to run {waiting.run_id}: {error}")
        failure.__cause__ = error
        return Synced(waiting=waiting, delivered=done, refused=tuple(refused), error=failure)
    return Synced(waiting=waiting, delivered=done, refused=tuple(refused))


@contextmanager
def _alone(store: Store, run: Run, series: str) -> Iterator[Lease]:
    """Hold the lease of a series.

    Raises:
        LeaseHeld: If another process that is alive has it.
    """
    lease = Lease(store.lease_tag(run, series), where=f"run {run.run_id}, series {series!r}")
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


def _has_ended(journal: Journal) -> bool:
    """Whether MLflow would have ended the run after a `fit` that waits here, had it been able to.

    A signal may have come after that, while the `fit` waited for the server.
    """
    ended = False
    for entry in journal.waiting():
        if entry.kind == parcel.END:
            ended = ended or bool(entry.data.get("active"))
        elif entry.kind == parcel.STATUS:
            ended = False
    return ended


def _reports(journal: Journal) -> bool:
    """Whether a `fit` that waits here would have written the run's report."""
    ends = [entry for entry in journal.waiting() if entry.kind == parcel.END]
    return any(entry.data.get("report") for entry in ends)


def deliver_now(
    store: Store,
    journal: Journal,
    *,
    claim: Claim | None = None,
    told: Callable[[Entry], None] | None = None,
    again: bool = False,
    refused: list[CheckpointError] | None = None,
) -> list[CheckpointError]:
    """Deliver a journal to its end, in this thread.

    Args:
        claim: Asked before every checkpoint.
        told: Called with each entry that was delivered.
        again: Whether to try what the server refused before.
        refused: Gets what the server refuses, even if the rest is not delivered.

    Returns:
        What the server refused; those entries are put aside.

    Raises:
        ServerAway: If the server does not answer, or another process is delivering: what is
            left stays.
        LeaseHeld, LeaseLost: If another process is writing the series.
    """
    refused = [] if refused is None else refused
    delivery = Delivery(store, journal, claim=claim, failed=refused.append)
    lock = journal.lock()
    try:
        held = lock.acquire(timeout=_LOCK_S)
    except Timeout as error:
        raise ServerAway(f"Another process delivers {journal.path}. Try again later.") from error
    with held:  # `with lock` would acquire it once more, and release it once.
        if again:
            journal.ask_again()
        while (entry := journal.first()) is not None:
            try:
                delivery(entry)
            except (ServerAway, UnsupportedStore, ResumeError):
                raise
            except FileNotFoundError:
                if entry.path.exists() and not entry.dropped:
                    raise
                # Dropped, or delivered elsewhere, under our hands.
            except CheckpointError as error:
                journal.refuse(entry, str(error))
                refused.append(error)
            else:
                if told is not None:
                    told(entry)
    return refused
