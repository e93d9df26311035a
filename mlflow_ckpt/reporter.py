"""Keep a run's report up to date behind its training.

    commit -> noted; journal empty -> is a report due? -> gather -> page, table, history -> run

The report is written on the thread that delivers, and only when nothing waits to be delivered:
no checkpoint is late for it. It costs a second or less of one core, most of it the page itself,
so that it waits for its turn: at first a while into the fit, then at intervals which grow with
what it costs, and once more when the fit has ended. It is for people to look at. Whatever goes
wrong with it is told once and harms nothing else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_ckpt import page
from mlflow_ckpt.errors import CheckpointError, ConfigError, ManifestError, NoCheckpoints
from mlflow_ckpt.history import LARGEST, History, Resumed
from mlflow_ckpt.record import Checkpoint, Run
from mlflow_ckpt.say import say
from mlflow_ckpt.stats import Meter
from mlflow_ckpt.store import Store, now_ms

SWITCH = "MLFLOW_CKPT_REPORT"
_FOLDER, _ENDING = "checkpoints", ".history.json"
_FIRST_S, _AGAIN_S = 5.0, 30.0
_SHARE = 50  # A report may take this part of the time from one to the next.


def is_wanted(asked: bool = True) -> bool:
    """Whether reports are to be written: `MLFLOW_CKPT_REPORT=false` switches all of them off."""
    return asked and os.environ.get(SWITCH, "true").strip().lower() not in ("0", "false", "no")


class Reporter:
    """Writes the report of one run for one of its series.

    Called on the thread that delivers, but for `resumed` and `ending`.

    Args:
        store, run_id: Where the run is.
        series: Name of the series whose history this process writes.
        meter: Knows what training lost by a checkpoint; `None` if nobody trains here.
        first_s, again_s: Seconds before the first report, and at least from one to the next.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        series: str,
        *,
        meter: Meter | None = None,
        first_s: float | None = None,
        again_s: float = _AGAIN_S,
    ) -> None:
        self._store, self._run_id = store, run_id
        self._meter = meter
        self._history = History(series=series)
        self._read = False
        self._stale = False
        self._ends = self._ended = False
        self._due, self._again_s = (
            time.monotonic() + (_FIRST_S if first_s is None else first_s),
            again_s,
        )
        self._told = ""
        # What the training thread says must not be lost while a report is being written.
        self._lock = threading.Lock()

    def committed(self, checkpoint: Checkpoint, *, write_s: float, lag_s: float) -> None:
        """Note a commit."""
        with self._lock:
            self._history.add(checkpoint, write_s=write_s, lag_s=lag_s)
            self._stale = True

    def resumed(self, *, fit: int, epoch: int, step: int) -> None:
        """Note that a fit goes on from a checkpoint."""
        at = now_ms()
        with self._lock:
            self._history.resumed.append(Resumed(fit=fit, epoch=epoch, step=step, at=at))
            self._stale = True

    def ending(self) -> None:
        """The fit has ended: the report that comes next, when all is delivered, is the last."""
        with self._lock:
            if not self._ended:
                self._ended = self._ends = self._stale = True

    def refresh_if_due(self) -> None:
        """Write the report if something has changed and its turn has come."""
        began = time.monotonic()
        with self._lock:
            if not self._stale or (began < self._due and not self._ends):
                return
            self._stale = self._ends = False
        try:
            self.refresh()
        except Exception as error:  # noqa: BLE001 (it is told; no training ends for a report)
            self._tell(_words(error))
        now = time.monotonic()
        self._due = now + max(self._again_s, _SHARE * (now - began))

    def refresh(self) -> page.Facts:
        """Write the report now.

        Raises:
            StoreError: If the server does not answer, or refuses.
        """
        run = self._store.run(self._run_id, settled=False)
        histories = read_histories(self._store, run)
        own = self._history.series
        with self._lock:
            if not self._read and own in histories:
                self._history = _joined(histories[own], self._history)
            self._read = True
            self._measure()
        facts = page.gather(self._store, run, {**histories, own: self._history})
        files = {f"{_FOLDER}/{own}{_ENDING}": self._history.to_bytes()} if self._noted else {}
        publish(self._store, facts, files)
        return facts

    @property
    def _noted(self) -> bool:
        return bool(self._history.made or self._history.resumed)

    def _measure(self) -> None:
        """Add what training lost, which is known a step after the commit at the earliest."""
        if self._meter is not None:
            self._history.measured(self._meter.stall_of)

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._told = text
            say(f"the report of run {self._run_id} was not written: {text}")


@dataclass(frozen=True, kw_only=True)
class Written:
    """A report.

    Attributes:
        run_id: Of which run.
        where: Path of the file, or URI of the run's artifact.
        checkpoints: How many there are.
        corrupt: How many of them are known to be corrupt.
        bytes: Of all their files.
    """

    run_id: str
    where: str
    checkpoints: int
    corrupt: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def write_report(run_id: str, dst: str | os.PathLike[str] | None = None) -> str:
    """Write the page about a run's checkpoints, or bring that of the run up to date.

    Args:
        dst: An HTML file to write; an earlier report there is replaced. `None`: the run's
            artifacts `checkpoints/report.html` and `checkpoints/checkpoints.json`.

    Returns:
        Path of the file, or URI of the artifact.

    Raises:
        RunNotFound, RunDeleted, NoCheckpoints: If there is nothing to report.
        ConfigError: If `dst` is a file, and no report.
        StoreError: If the server refuses.
    """
    return write(run_id, dst).where


def write(run_id: str, dst: str | os.PathLike[str] | None) -> Written:
    """`write_report`, and what stands in it."""
    store = Store()
    run = store.run(run_id)
    if not run.series:
        raise NoCheckpoints(
            f"Run {run.run_id} holds no checkpoints. Add MlflowCheckpoint() to the callbacks of "
            "fit, or save one by hand with mlflow_ckpt.save(model)."
        )
    facts = page.gather(store, run, read_histories(store, run))
    if dst is None:
        publish(store, facts, {})
        where = f"{run.artifact_uri.rstrip('/')}/{page.REPORT}"
    else:
        where = str(_replace(Path(dst), page.html(facts)))
    held = facts.held
    return Written(
        run_id=run.run_id,
        where=where,
        checkpoints=len(held),
        corrupt=sum(bool(each.reason) for each in held),
        bytes=sum(each.checkpoint.bytes for each in held),
    )


def _replace(path: Path, content: bytes) -> Path:
    """Write a file in the place of an earlier report, and of nothing else."""
    if path.exists() and page.TITLE not in path.read_bytes()[:4096]:
        raise ConfigError(f"{path} exists, and is no report. Choose another dst.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def bring_up_to_date(store: Store, run_id: str, *, anew: bool = False) -> None:
    """Write the report of a run that has one, after something else than a `fit` changed it.

    Args:
        anew: Whether to write one where there is none.
    """
    if not is_wanted():
        return
    try:
        run = store.run(run_id, settled=False)
        histories = read_histories(store, run)
        if histories or anew:
            publish(store, page.gather(store, run, histories), {})
    except Exception as error:  # noqa: BLE001 (it is told; what was asked for is done)
        say(f"the report of run {run_id} was not written: {_words(error)}")


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, CheckpointError) else repr(error)


def publish(store: Store, facts: page.Facts, files: Mapping[str, bytes]) -> None:
    """Write page and table to the run, and its description where the user has none."""
    content = {**files, page.TABLE: page.table(facts), page.REPORT: page.html(facts)}
    store.page.put(facts.run, content)
    ours = page.is_ours(store.page.description(facts.run))
    store.page.describe(facts.run, page.TABLE, page.note(facts) if ours else None)


def read_histories(store: Store, run: Run) -> dict[str, History]:
    """What the run remembers of each series. What cannot be read is told, and does without."""
    found: dict[str, History] = {}
    for series, data in store.page.get(run, _FOLDER, _ENDING, limit=LARGEST).items():
        try:
            found[series] = History.parse(data, series)
        except ManifestError as error:
            say(f"run {run.run_id}: {error}")
    return found


def _joined(before: History, now: History) -> History:
    """What an earlier process noted, and what this one has."""
    known = {made.model_id for made in before.made}
    return History(
        series=now.series,
        made=[*before.made, *(made for made in now.made if made.model_id not in known)],
        resumed=[*before.resumed, *now.resumed],
    )
