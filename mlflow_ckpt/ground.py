"""What a `fit` stands on when it begins: the run, and what this machine holds of it.

    tracking server -+
                     +-> Ground -> run, resume point
    journal (spool) -+

What waits in the journal counts as said: its tags overlay the run's, and its checkpoints
are resume points. So a machine that has trained a run can continue it while the server is
away; one that has not must ask the server first.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mlflow_ckpt import members, parcel
from mlflow_ckpt.entry import Entry
from mlflow_ckpt.errors import IntegrityError, ServerAway
from mlflow_ckpt.fetched import Fetched, UnreadableCopy, brief, pass_over
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.record import Checkpoint, Run, Series, Skipped
from mlflow_ckpt.say import say
from mlflow_ckpt.spool import Spool, journals, keep_newest_copies
from mlflow_ckpt.store import Store
from mlflow_ckpt.syncing import deliver_now

Value = TypeVar("Value")

PATIENCE_S = 10.0
_RESUME_KINDS = ("epoch", "batch")
_FILES = (members.STATE, members.MODEL, members.WEIGHTS)


@dataclass
class Ground:
    """Run and journal of one series.

    Attributes:
        store: The server, whether it answers or not.
        run: The run, with what waits in the journal said.
        journal: What waits.
        away: Why the server is not asked; `None` if it answers.
        skipped: Damaged checkpoints that were passed over, newest first.
    """

    store: Store
    run: Run
    journal: Journal
    away: ServerAway | None = None
    skipped: list[Skipped] = field(default_factory=list)
    _pinned: list[Path] = field(default_factory=list)
    _opened: Fetched | None = None
    _bad: set[str] = field(default_factory=set)

    def open(self, checkpoint: Checkpoint) -> Fetched:
        """What a resume needs of a checkpoint, verified. It stays open until `close_files`.

        Raises:
            IntegrityError: If a file is not the committed one.
        """
        if self._opened is None or self._opened.checkpoint != checkpoint:
            self.close_files()
            self._opened = Fetched(self.store, checkpoint, _FILES, in_place=True)
        return self._opened

    def close_files(self) -> None:
        """Let go of what was opened, and of its copy on the disk. Safe to call twice."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def pass_over(self, checkpoint: Checkpoint, series: Series, damage: IntegrityError) -> None:
        """Skip a damaged checkpoint: no later look at this ground finds it.

        One that lies on this machine goes from here, unless only its disk does not give it back.
        The server's is read next, if it has it.
        What was deleted meanwhile is no damage.
        """
        if checkpoint.local is not None:
            passed = Skipped(
                name=checkpoint.name,
                model_id=checkpoint.model_id,
                reason=f"on this machine, {brief(damage)}",
            )
            if isinstance(damage, UnreadableCopy):
                self._bad.add(checkpoint.entry)  # It may be the only one: its files stay.
            else:
                self._drop(checkpoint.entry)
        else:
            self._bad.add(checkpoint.model_id)
            if self.store.reread(checkpoint, series) is None:
                return
            passed = pass_over(self.store, checkpoint, damage)
        self.skipped.append(passed)
        say(f"run {self.run.run_id}, series {checkpoint.series!r}: skipped {passed}.")

    def resume_point(self, series: Series) -> Checkpoint | None:
        """The newest checkpoint that a `fit` wrote, here or on the server; see `pass_over`."""
        there = None if self.away else self._there(series)
        while (found := _newest(self.journal, self.run.run_id, self._bad)) is not None:
            entry, here = found
            if there is not None and there.step > here.step:
                break
            if self._is_stale(here, there):
                self.journal.drop_copy()
                continue
            try:
                room = self.journal.pin(entry)
            except FileNotFoundError:
                there = None if self.away else self._there(series)
                continue  # Somebody has delivered it.
            self._pinned.append(room)
            self.journal.touch_copy()
            return replace(here, local=self.journal.files_of(room))
        return there

    def _is_stale(self, here: Checkpoint, there: Checkpoint | None) -> bool:
        """Whether somebody has deleted a delivered checkpoint on the server since.

        One whose files went bad there is the better one here.
        """
        if not here.model_id or self.away or (there and there.model_id == here.model_id):
            return False
        return self.store.upkeep.state_of(here.model_id) != "corrupt"

    def _drop(self, uid: str) -> None:
        """Remove the files of a checkpoint here; the metrics of one that waits still wait."""
        copy = self.journal.copy()
        if copy is not None and copy.uid == uid:
            self.journal.drop_copy()
        for entry in self.journal.checkpoints():
            if entry.uid == uid:
                self.journal.drop(entry)

    def _there(self, series: Series) -> Checkpoint | None:
        """The newest resume point on the server that was not found to be damaged."""
        found = self.store.resume_point(self.run, series)
        if found is None or found.model_id not in self._bad:
            return found
        # It could not be marked there: this user may only read.
        left = (c for c in self.store.checkpoints(self.run, series) if c.kind in _RESUME_KINDS)
        whole = [c for c in left if c.model_id not in self._bad]
        return max(whole, key=lambda c: (c.step, c.created_at), default=None)

    @property
    def holds_one(self) -> bool:
        """Whether this machine holds a checkpoint to resume from."""
        return _newest(self.journal, self.run.run_id) is not None

    def require_server(self, what: str) -> None:
        """Say that `what` cannot be done without the server.

        Raises:
            ServerAway: If it does not answer.
        """
        if self.away is not None:
            raise ServerAway(f"{what} needs the tracking server: {self.away}") from self.away

    def deliver(self, what: str) -> None:
        """Let the server have what waits, before `what` is looked up there.

        Raises:
            ServerAway: If it does not answer.
        """
        self.require_server(what)
        if self.journal.first() is not None:
            for refused in deliver_now(self.store, self.journal):
                say(str(refused))

    def release(self) -> None:
        """Let go of the files that were read. Safe to call twice."""
        self.close_files()
        while self._pinned:
            self.journal.give_up(self._pinned.pop())


def reach(store: Store, run_id: str | None, series: str, spool: Spool) -> Ground:
    """Find the run on the server, or, if that is away, in the spool.

    Raises:
        NoActiveRun, RunNotFound, RunDeleted: If there is no run.
        ServerAway: If the server does not answer and this machine holds no checkpoint of it.
        SpoolError: If the spool cannot be used.
    """
    found, folder = store.run_id(run_id), spool.open()
    ground = Ground(store, Run(run_id=found, experiment_id=""), Journal(folder / found / series))
    about = ground.journal.about
    enough = "run" in about and ground.holds_one
    try:
        ground.run = within(PATIENCE_S, lambda: store.run(found)) if enough else store.run(found)
    except ServerAway as error:
        if not enough:
            raise
        ground.away, ground.run = error, _read_run(about["run"])
        say(
            f"run {found}: the tracking server does not answer. Training goes on from what this "
            f"machine holds of the run, in {ground.journal.path}; the server gets everything later."
        )
        ground.journal = Journal.create(folder, found, series, about)
    else:
        ground.journal = open_journal(store, ground.run, series, spool)
    ground.run = _with_waiting(ground.run, ground.journal)
    if refused := ground.journal.refused():
        say(
            f"run {found}: the server has refused {len(refused)} entries of the series {series!r} "
            f"before, which wait in {ground.journal.path}: mlflow-ckpt sync {found}"
        )
    return ground


def open_journal(store: Store, run: Run, series: str, spool: Spool) -> Journal:
    """The journal of a series of a run that the server knows.

    Raises:
        SpoolError: If the spool cannot be used.
    """
    folder = spool.open()
    keep_newest_copies(folder)
    about = {
        "tracking_uri": store.portable_uri(),
        "run_id": run.run_id,
        "series": series,
        "run": _write_run(run),
    }
    return Journal.create(folder, run.run_id, series, about)


def within(seconds: float, ask: Callable[[], Value]) -> Value:
    """Ask a server that may never answer.

    Raises:
        ServerAway: If it has not answered in `seconds`. The question stays open, on a thread
            that holds nobody.
    """
    answer: Future[Value] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001 (raised by who waits)
            answer.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(run,), name="mlflow-ckpt-ask", daemon=True).start()
    try:
        return answer.result(seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        raise ServerAway(f"It has not answered in {seconds:.0f} s.") from error


def standing_here(folder: Path, run_id: str) -> dict[str, int]:
    """The step of the newest checkpoint that a fit can resume from here, by series."""
    found = ((j, _newest(j, run_id)) for j in journals(folder) if j.path.parent.name == run_id)
    return {journal.path.name: newest[1].step for journal, newest in found if newest}


def _newest(
    journal: Journal, run_id: str, bad: Container[str] = ()
) -> tuple[Entry, Checkpoint] | None:
    copy = journal.copy()
    here = [
        (entry, checkpoint)
        for entry in [*([copy] if copy else []), *journal.checkpoints()]
        if not entry.dropped
        and entry.uid not in bad
        and (checkpoint := _checkpoint(run_id, entry)).kind in _RESUME_KINDS
    ]
    return max(here, key=lambda pair: pair[1].step, default=None)


def _checkpoint(run_id: str, entry: Entry) -> Checkpoint:
    waiting = parcel.waiting_checkpoint(run_id, entry.uid, entry.data, entry.files)
    delivered = entry.progress.get("delivered")
    return replace(waiting, **delivered) if delivered else waiting


def _with_waiting(run: Run, journal: Journal) -> Run:
    """What the run says, with what waits counted as said."""
    tags = dict(run.tags)
    copy = journal.copy()
    for entry in [*([copy] if copy else []), *journal.checkpoints()]:
        # The run may have been read before its series was written there.
        tags.setdefault(entry.data["series"]["tag"], entry.data["series"]["facts"])
    for entry in [*journal.refused(), *journal.waiting()]:
        if entry.kind == parcel.TAGS:
            tags.update(entry.data["tags"])
        elif entry.kind == parcel.SERIES:
            tags[entry.data["tag"]] = entry.data["facts"]
    return replace(run, tags=tags)


def _write_run(run: Run) -> dict[str, Any]:
    return {**asdict(run), "metric_names": sorted(run.metric_names), "params": {}}


def _read_run(raw: Mapping[str, Any]) -> Run:
    return Run(**{**raw, "metric_names": frozenset(raw["metric_names"])})
