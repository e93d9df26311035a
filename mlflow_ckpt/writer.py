"""Turn snapshots into committed checkpoints behind the training, in order.

    submit(SaveRequest) -+
    log(metric rows)    -+-> a worker's thread -> journal (this disk) -> deliverer -> server
    put(kind, data)     -+

The training thread makes no request and waits for no server: it waits, at most, for the
checkpoint before to be on the disk. Whatever is handed over reaches the server in the order
of the calls, so that who finds a checkpoint also finds what was logged before it. Failures are
kept until `raise_failures`. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any

from mlflow_ckpt import parcel
from mlflow_ckpt.contents import entry_data, write_files
from mlflow_ckpt.deliverer import Deliverer
from mlflow_ckpt.delivery import Claim, Delivery
from mlflow_ckpt.errors import SnapshotTorn
from mlflow_ckpt.failures import Failures
from mlflow_ckpt.job import Job
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.outcomes import Outcomes
from mlflow_ckpt.pending import Activity, PendingSave, SaveRequest
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import Checkpoint, MetricRow, Run
from mlflow_ckpt.reporter import Reporter
from mlflow_ckpt.say import say
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import Store
from mlflow_ckpt.thinning import superseded
from mlflow_ckpt.worker import Worker

_ROWS = 1_000  # MLflow takes no more in one request.
_SLACK = 10  # checkpoints that may wait while the server answers


class Writer:
    """Writes the checkpoints of one series of one run, one at a time.

    Args:
        store, run: Where to.
        journal: Where they wait.
        spool: How much room they may take there.
        keep: What stays in the store; `None` keeps all.
        meter: Told of every commit and every failure.
        committed: Called with each new checkpoint, on the thread that delivers.
        claim: Says whether this process may write the series.
        reporter: Keeps the run's report up to date.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        journal: Journal,
        *,
        spool: Spool,
        keep: Keep | None = None,
        meter: Meter | None = None,
        committed: Callable[[Checkpoint], None] | None = None,
        claim: Claim | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.journal, self.run_id, self.reporter = journal, run.run_id, reporter
        self._spool = spool
        self._keep = keep
        self._meter = meter or Meter()
        key = (store.uri, run.run_id)
        self._worker = Worker(key)
        self._failures = Failures()
        self._claim, self._left = claim, False
        delivery = Delivery(store, journal, claim=claim, failed=self._failures.keep)
        self._outcomes = Outcomes(
            run.run_id,
            self._failures,
            delivery.find,
            meter=self._meter,
            committed=committed,
            reporter=reporter,
        )
        self._deliverer = Deliverer(
            journal,
            delivery,
            key=key,
            outcome=self._outcomes.tell,
            emptied=self._emptied,
            exit_wait=spool.drain_timeout,
        )
        self._lock = threading.RLock()
        self._waiting: list[MetricRow] | None = None
        self._unwritten: list[MetricRow] = []
        self._newest: Job | None = None
        self._activity = Activity()

    # --- handing over ---------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the checkpoint submitted last is neither on the disk nor failed."""
        return self._newest is not None and not self._newest.written.done()

    @property
    def through(self) -> bool:
        """Whether nothing is left to do, and no failure to raise."""
        with self._lock:
            return not self._failures.open and self.join(0)

    @property
    def activity(self) -> Activity:
        """What it is doing, in words."""
        entry = self._deliverer.busy_with
        if self._activity.total is not None or entry is None:
            return self._activity
        if entry.kind != parcel.CHECKPOINT:
            return Activity("logging")
        name = parcel.unpack_position(entry.data["position"]).name
        return Activity(f"committing {name}", 0, int(entry.data["bytes"]))

    @property
    def fault(self) -> BaseException | None:
        """Why nothing can be delivered at the moment."""
        return self._deliverer.fault

    def deliver(self) -> None:
        """Begin with what an earlier process has left in the journal."""
        if self.journal.first() is not None:
            self._deliverer.wake(hurry=True)

    def wait_until_free(self) -> None:
        """Return when it is no longer busy; a failure is left to `raise_failures`."""
        if self._newest is not None:
            futures.wait([self._newest.written])

    def submit(self, request: SaveRequest) -> PendingSave:
        """Hand a snapshot over. One that reads the live model is written before this returns."""
        job = Job(request)
        if not request.snapshot.valid_while_training:
            self._save(job)
            error = job.written.exception()
            if error is not None and not isinstance(error, Exception):
                raise error  # Ctrl-C in the middle of the writing goes to the caller.
            with self._lock:
                self._newest, self._waiting = job, None
            return job.pending
        with self._lock:
            self._newest, self._waiting = job, None
            self._worker.put(lambda: self._save(job))
        return job.pending

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Add points to the run's curves; rows that wait together go out together."""
        if not rows:
            return
        with self._lock:
            if self._waiting is not None and len(self._waiting) + len(rows) <= _ROWS:
                self._waiting.extend(rows)
                return
            self._waiting = batch = [*rows]
            self._worker.put(lambda: self._log(batch))

    def put(self, kind: str, data: Mapping[str, Any]) -> None:
        """Let the server hear something else, in turn: see `delivery.py`."""
        if self.reporter is not None and kind in (parcel.END, parcel.STATUS):
            self.reporter.ending()
        self.call(lambda: self._append(kind, data))

    def call(self, action: Callable[[], object]) -> None:
        """Do something on the worker's thread, in turn."""
        with self._lock:
            self._waiting = None
            self._worker.put(lambda: self._try(action))

    # --- the outcome ----------------------------------------------------------

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do and no thread is left; whether that is so."""
        end = None if timeout is None else monotonic() + timeout
        if not self._worker.join(timeout):
            return False
        return self._deliverer.join(None if end is None else max(0.0, end - monotonic()))

    def join_written(self, timeout: float | None = None) -> bool:
        """Wait until everything is on the disk; whether that is so."""
        return self._worker.join(timeout)

    def leave(self) -> None:
        """Hand over nothing more: give the claim up once everything is delivered."""
        self._left = True
        if self.reporter is not None:
            self.reporter.ending()
        self.call(self._deliverer.wake)

    def stop(self) -> None:
        """Leave what is not delivered to somebody else, and let the claim age."""
        self._deliverer.stop()
        if self._claim is not None:
            self._claim.stop()

    def raise_failures(self, *, last: bool = False) -> None:
        """Raise what failed since the last call, unless `PendingSave.wait` has raised it.

        Args:
            last: Whether this is the end: what a full disk did, with which training goes on,
                is raised as well.

        Raises:
            SaveFailed, StoreError: The first failure; its notes name the others.
        """
        self._failures.raise_first(last=last)

    # --- on the worker's thread -----------------------------------------------

    def _save(self, job: Job) -> None:
        """Write a checkpoint to the journal. Nothing may escape: nobody stands above."""
        request = job.request
        try:
            entry = self._write(job)
        except BaseException as error:  # noqa: BLE001 (kept, and raised by `wait`)
            self._meter.failed()
            request.snapshot.release()
            self._log([*request.curve])
            failure = job.unwritable(error, self.journal.path, self.run_id)
            if isinstance(error, SnapshotTorn) and not request.must:
                # The next one is copied: training need not end for this one.
                say(str(error))
            else:
                self._failures.keep(failure, job.pending, passing=isinstance(error, OSError))
            self._activity = Activity()
            job.fail(failure)
            return
        job.written.set_result(entry)
        self._try(self._thin)
        self._deliverer.wake()

    def _write(self, job: Job) -> str:
        request, began = job.request, perf_counter()
        self._activity = Activity(f"writing {request.position.name}")
        self._spool.make_room(self.journal.spool, request.snapshot.state_bytes)
        room = self.journal.room()
        try:
            manifest = write_files(request, self.journal.files_of(room), self._progress(request))
        except BaseException:
            self.journal.give_up(room)
            raise
        request.snapshot.release()
        job.write_s, job.size = perf_counter() - began, manifest.total_bytes
        # Before it can be delivered, and by whomever.
        uid = self._outcomes.expect(job)
        try:
            data = entry_data(request, manifest, self._keep)
            self.journal.append(parcel.CHECKPOINT, data, room, uid=uid)
        except BaseException:
            self._outcomes.forget(uid)
            raise
        self._outcomes.arrived(uid)
        self._activity = Activity()
        return uid

    def _thin(self) -> None:
        """Drop what waits and would be deleted once delivered."""
        if self._deliverer.fault is None and self._outcomes.expected <= _SLACK:
            return  # They are about to be delivered.
        for entry in superseded(self.journal.checkpoints(), self._keep):
            self.journal.drop(entry)
            self._outcomes.dropped(entry.uid)

    def _progress(self, request: SaveRequest) -> Callable[[int], None]:
        written = 0

        def advance(count: int) -> None:
            nonlocal written
            written += count
            total = max(written, request.snapshot.state_bytes)
            self._activity = Activity(f"writing {request.position.name}", written, total)

        return advance

    def _log(self, batch: list[MetricRow]) -> None:
        with self._lock:
            if self._waiting is batch:
                self._waiting = None
        if batch:
            self._unwritten.extend(batch)
            self._try(self._flush_if_room)

    def _flush_if_room(self) -> None:
        # What finds no room now is written with the next rows, at the latest at the end.
        with suppress(OSError):
            self._flush()

    def _flush(self) -> None:
        """Write rows to the journal; those that find no room wait for the next attempt."""
        while self._unwritten:
            rows = self._unwritten[:_ROWS]
            self.journal.append(parcel.ROWS, {"rows": parcel.pack_rows(rows)})
            del self._unwritten[: len(rows)]
            self._deliverer.wake()

    def _append(self, kind: str, data: Mapping[str, Any]) -> None:
        self._flush()
        self.journal.append(kind, data)
        self._deliverer.wake()

    def _try(self, action: Callable[[], object]) -> None:
        self._failures.attempt(action, self.run_id, self.journal.path)

    # --- on the deliverer's thread --------------------------------------------

    def _emptied(self) -> None:
        self._outcomes.emptied(entry.uid for entry in self.journal.each())
        if self._left and self._claim is not None and not self._worker.busy:
            self._claim.release()
