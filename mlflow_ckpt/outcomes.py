"""Tell whoever waits what became of the checkpoints on their way to the server."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable
from time import perf_counter

from mlflow_ckpt.errors import CheckpointError, StoreError
from mlflow_ckpt.failures import Failures
from mlflow_ckpt.job import Job
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.reporter import Reporter
from mlflow_ckpt.stats import Meter


class Outcomes:
    """The checkpoints of one writer that are in its journal.

    Args:
        run_id: The run, for messages.
        failures: Where failures are kept.
        find: Looks a checkpoint up by its entry, whoever delivered it.
        meter: Told of every commit and every failure.
        committed: Called with each new checkpoint, on the thread that delivers.
        reporter: Told of each checkpoint that was made here, of what it took, and when nothing
            waits.
    """

    def __init__(
        self,
        run_id: str,
        failures: Failures,
        find: Callable[[str], Checkpoint | None],
        *,
        meter: Meter,
        committed: Callable[[Checkpoint], None] | None,
        reporter: Reporter | None = None,
    ) -> None:
        self._run_id = run_id
        self._failures = failures
        self._find = find
        self._meter = meter
        self._committed = committed
        self._reporter = reporter
        self._lock = threading.Lock()
        self._on_way: dict[str, Job] = {}
        self._arrived: set[str] = set()

    @property
    def expected(self) -> int:
        """How many checkpoints are on their way."""
        with self._lock:
            return len(self._on_way)

    def expect(self, job: Job) -> str:
        """Note that a checkpoint is about to be in the journal; returns a name for its entry."""
        uid = uuid.uuid4().hex
        with self._lock:
            self._on_way[uid] = job
        return uid

    def arrived(self, uid: str) -> None:
        """A checkpoint is in the journal."""
        with self._lock:
            if uid in self._on_way:
                self._arrived.add(uid)

    def forget(self, uid: str) -> None:
        """A checkpoint has not come into the journal."""
        self._take(uid)

    def dropped(self, uid: str) -> None:
        """A checkpoint was dropped, because `keep` would delete it once delivered."""
        if job := self._take(uid):
            job.fail(job.superseded())

    def tell(self, uid: str, result: Checkpoint | BaseException | None) -> None:
        """An entry was delivered or refused; with an empty name nothing more is delivered."""
        job = self._take(uid)
        if isinstance(result, Checkpoint):
            self._succeed(job, result)
        elif isinstance(result, BaseException):
            self._fail(job, result)

    def emptied(self, left: Iterable[str]) -> None:
        """What has left the journal and was not told was delivered by another process.

        Args:
            left: The entries that are there, read when it is iterated over.
        """
        with self._lock:
            arrived = [uid for uid in self._on_way if uid in self._arrived]
        there = set(left)
        for uid in arrived:
            if uid in there:
                continue
            found = self._find(uid)
            if found is not None:
                self.tell(uid, found)
        if self._reporter is not None:
            self._reporter.refresh_if_due()

    def _take(self, uid: str) -> Job | None:
        with self._lock:
            self._arrived.discard(uid)
            return self._on_way.pop(uid, None)

    def _succeed(self, job: Job | None, checkpoint: Checkpoint) -> None:
        if self._committed is not None:
            try:
                self._committed(checkpoint)
            except Exception as error:  # noqa: BLE001 (kept, and raised by the writer)
                self._failures.keep(self._worded(error))
        if job is None:
            return
        lag_s = perf_counter() - job.request.captured
        self._meter.committed(lag_s=lag_s, write_s=job.write_s, size=checkpoint.bytes)
        if self._reporter is not None:
            self._reporter.committed(checkpoint, write_s=job.write_s, lag_s=lag_s)
        job.outcome.set_result(checkpoint)

    def _fail(self, job: Job | None, error: BaseException) -> None:
        failure = self._worded(error)
        if job is None:
            self._failures.keep(failure)
        else:
            self._meter.failed()
            passing = isinstance(getattr(error, "reason", error), OSError)
            self._failures.keep(failure, job.pending, passing=passing)
            job.fail(failure)
        if not isinstance(error, StoreError):
            self._fail_all(failure)

    def _fail_all(self, failure: BaseException) -> None:
        """Nothing more is delivered: whoever waits for something learns why."""
        with self._lock:
            jobs, self._on_way = list(self._on_way.values()), {}
            self._arrived.clear()
        for job in jobs:
            job.fail(failure)

    def _worded(self, error: BaseException) -> BaseException:
        if isinstance(error, CheckpointError) or not isinstance(error, Exception):
            return error
        failure = StoreError(f"Could not write to run {self._run_id}: {error!r}")
        failure.__cause__ = error
        return failure
