"""Turn snapshots into committed checkpoints behind the training, in order.

    submit(SaveRequest) -+                    +-> draft -> files -> commit -> keep policy
    log(metric rows)    -+-> one worker thread+-> one log_batch for all rows that wait
    call(action)        -+                    +-> action()

Whatever is handed over reaches the server in the order of the calls, so that who finds a
checkpoint also finds what was logged before it. The training thread makes no request.
Failures are kept until `raise_failures`. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from mlflow_ckpt.contents import commit_request, write_files
from mlflow_ckpt.errors import CheckpointError, SnapshotTorn, StoreError
from mlflow_ckpt.links import Links
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.pending import Activity, PendingSave, SaveRequest
from mlflow_ckpt.policy import Keep
from mlflow_ckpt.record import Checkpoint, MetricRow, Run, Series
from mlflow_ckpt.retention import Retention
from mlflow_ckpt.say import say
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import Draft, Store
from mlflow_ckpt.worker import Worker

_logger = logging.getLogger("mlflow_ckpt")
_ROWS = 1_000  # MLflow takes no more in one request.


class Writer:
    """Writes the checkpoints of one series of one run, one at a time.

    Args:
        store, run: Where to.
        keep: What stays in the store; `None` keeps all.
        meter: Told of every commit and every failure.
        committed: Called with each new checkpoint, on the writer's thread.
    """

    def __init__(
        self,
        store: Store,
        run: Run,
        *,
        keep: Keep | None = None,
        meter: Meter | None = None,
        committed: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        self._store = store
        self._run = run
        self._retention = Retention(store, run, keep)
        self._links = Links(run.links)
        self._meter = meter or Meter()
        self._committed = committed
        self._worker = Worker((store.uri, run.run_id))
        self._lock = threading.RLock()
        self._waiting: list[MetricRow] | None = None
        self._failures: list[tuple[PendingSave | None, BaseException]] = []
        self._newest: Future[Checkpoint] | None = None
        self.activity = Activity()

    # --- handing over ---------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether the checkpoint submitted last is neither committed nor failed."""
        return self._newest is not None and not self._newest.done()

    @property
    def through(self) -> bool:
        """Whether nothing is left to do, and no failure to raise."""
        with self._lock:
            return not self._unraised() and self.join(0)

    def wait_until_free(self) -> None:
        """Return when it is no longer busy; a failure is left to `raise_failures`."""
        if self._newest is not None:
            futures.wait([self._newest])

    def submit(self, request: SaveRequest) -> PendingSave:
        """Hand a snapshot over. One that reads the live model is written before this returns."""
        outcome: Future[Checkpoint] = Future()
        job = _Save(request, PendingSave(request.position, outcome), outcome)
        if not request.snapshot.valid_while_training:
            self._attempt(job, self._write)
            if outcome.done() and not isinstance(outcome.exception(), Exception):
                outcome.result()  # Ctrl-C in the middle of the writing goes to the caller.
        with self._lock:
            self._newest, self._waiting = outcome, None
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

    def call(self, action: Callable[[], object]) -> None:
        """Do something to the store, in turn."""
        with self._lock:
            self._waiting = None
            self._worker.put(lambda: self._try(action))

    def link_rest(self) -> None:
        """Let the run's page list what it left out and still exists. Call it after `join`."""
        if rest := self._links.take_rest():
            self.call(lambda: self._store.link(self._run, rest))

    # --- the outcome ----------------------------------------------------------

    def join(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do and no thread is left; whether that is so."""
        return self._worker.join(timeout)

    def raise_failures(self) -> None:
        """Raise what failed since the last call, unless `PendingSave.wait` has raised it.

        Raises:
            SaveFailed, StoreError: The first failure; its notes name the others.
        """
        with self._lock:
            found = self._unraised()
            self._failures.clear()
        if found:
            first, *others = found
            for other in others:
                first.add_note(f"After it: {other}")
            raise first

    def _unraised(self) -> list[BaseException]:
        return [e for pending, e in self._failures if pending is None or not pending.raised]

    # --- on the worker's thread -----------------------------------------------

    def _save(self, job: _Save) -> None:
        if job.files is None:
            self._attempt(job, self._write)
        if job.files is not None:
            self._attempt(job, self._commit)
        if job.outcome.exception() is None:
            checkpoint = job.outcome.result()
            if self._committed is not None:
                self._try(partial(self._committed, checkpoint))
            self._try(partial(self._keep, checkpoint, job.request.series))

    def _keep(self, newest: Checkpoint, series: Series) -> None:
        self._links.deleted(self._retention.apply(newest, series))

    def _attempt(self, job: _Save, part: Callable[[_Save], None]) -> None:
        """Do one part of a save. Nothing may escape: nobody stands above this thread."""
        if job.outcome.done():
            return
        try:
            part(job)
        except BaseException as error:  # noqa: BLE001 (kept, and raised by `wait`)
            self._meter.failed()
            job.request.snapshot.release()
            self.log(job.request.curve)
            if isinstance(error, SnapshotTorn) and not job.request.must:
                # The next one is copied: training need not end for this one.
                say(str(error))
            else:
                self._keep_failure(job.pending, error)
            self.activity = Activity()
            job.outcome.set_exception(error)

    def _write(self, job: _Save) -> None:
        request, began = job.request, perf_counter()
        draft = self._store.draft(self._run, request.position)
        try:
            self.activity = Activity(f"writing {request.position.name}")
            manifest, synced = write_files(request, draft, self._progress(request))
        except Exception as error:
            failure = self._store.abandon(draft, error)
            if failure is error:
                raise
            raise failure from error
        except BaseException:
            draft.close()
            raise
        request.snapshot.release()
        job.files, job.write_s = (draft, manifest, synced), perf_counter() - began

    def _commit(self, job: _Save) -> None:
        assert job.files is not None
        draft, manifest, synced = job.files
        name, size = job.request.position.name, manifest.total_bytes
        text = f"committing {name}" if draft.in_place else f"uploading {name}"
        self.activity = Activity(text, size, size)
        request = commit_request(job.request, manifest, synced, link=self._links.due)
        checkpoint = self._store.commit(draft, request)
        self._links.committed(checkpoint, linked=request.link)
        lag_s = perf_counter() - job.request.captured
        self._meter.committed(lag_s=lag_s, write_s=job.write_s, size=checkpoint.bytes)
        self.activity = Activity()
        job.outcome.set_result(checkpoint)

    def _progress(self, request: SaveRequest) -> Callable[[int], None]:
        written = 0

        def advance(count: int) -> None:
            nonlocal written
            written += count
            total = max(written, request.snapshot.state_bytes)
            self.activity = Activity(f"writing {request.position.name}", written, total)

        return advance

    def _log(self, batch: list[MetricRow]) -> None:
        with self._lock:
            if self._waiting is batch:
                self._waiting = None
        self._try(lambda: self._store.log_rows(self._run, batch))

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except CheckpointError as error:
            failure: CheckpointError = error
        except Exception as error:  # noqa: BLE001 (kept, and raised by `raise_failures`)
            failure = StoreError(f"Could not write to run {self._run.run_id}: {error!r}")
            failure.__cause__ = error
        else:
            return
        self._keep_failure(None, failure)

    def _keep_failure(self, pending: PendingSave | None, error: BaseException) -> None:
        with self._lock:
            self._failures.append((pending, error))
        _logger.error("%s", error)
        if not threading.main_thread().is_alive():
            say(str(error))  # Nobody is left to raise it to.


@dataclass
class _Save:
    """A request on its way: what is asked for, and what has become of it so far."""

    request: SaveRequest
    pending: PendingSave
    outcome: Future[Checkpoint]
    files: tuple[Draft, Manifest, Sequence[str]] | None = None
    write_s: float = 0.0
