"""Find and delete what runs that are gone have left behind.

`mlflow gc` deletes a run for good, with its own artifacts, and leaves its LoggedModels and
their files where they are (seen on MLflow 3.17); of an experiment it deletes the records of
the models too, and leaves files that nothing names any more. So `collect` comes before it:

    mlflow runs delete -> mlflow-ckpt gc --deleted-runs -> mlflow gc

A run that is deleted can be restored until `mlflow gc`; its checkpoints go only if asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlflow_ckpt import progress
from mlflow_ckpt.errors import ArtifactsMissing, SpoolError, StoreError
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool, destroy, journals
from mlflow_ckpt.store import Store, Trace, portable_uri

Kind = Literal["checkpoint", "journal", "hold"]


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """Something of a run that is gone.

    Attributes:
        kind: `checkpoint`: a LoggedModel with its files; `journal`: what waits in the spool of
            this machine; `hold`: a fork that keeps the checkpoint it began at.
        run_id: The run that is gone.
        name: Name of the checkpoint, series of the journal, checkpoint that was held.
        where: Where it lies.
        bytes: Of its files, where that is known.
        gone: Whether it is deleted; in a dry run, whether it would be.
        why: Why it stays, or empty.
    """

    kind: Kind
    run_id: str
    name: str
    where: str
    bytes: int
    gone: bool
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dict(vars(self))


class Collector:
    """Looks for orphans on the current tracking server.

    Args:
        deleted_runs: Whether runs that are deleted, and could be restored, count as gone.
        pinned: Whether checkpoints of such runs go although they are pinned.
        undelivered: Whether journals of such runs go although something in them was never
            delivered: it exists nowhere else.
        dry_run: Whether to look only.
    """

    def __init__(
        self,
        *,
        deleted_runs: bool = False,
        pinned: bool = False,
        undelivered: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._store = Store()
        self._upkeep = self._store.upkeep
        self._gone_stages = {None, "deleted"} if deleted_runs else {None}
        self._pinned, self._undelivered = pinned, undelivered
        self._dry_run = dry_run
        self._stages: dict[str, str | None] = {}

    def collect(self, experiment: str | None, spool: Path | None = None) -> Iterator[Orphan]:
        """Delete orphans, one after the other.

        Args:
            experiment: Its name, whether it is deleted or not; `None` takes all of them.
            spool: The spool of this machine; `None` takes the one that a `fit` would take.

        Raises:
            NotFound: If there is no such experiment.
            ServerAway, StoreError: If the server does not answer, or refuses.
        """
        traces = self._upkeep.of_experiments(self._upkeep.experiments(experiment))
        progress.expect(len(traces))
        for trace in traces:
            if self._is_gone(trace.run_id, trace.experiment_id):
                yield self._checkpoint(trace)
            elif trace.state == "deleting":
                yield self._begun(trace)
            else:
                yield from self._holds(trace)
            progress.moved(1)
        if experiment is None:
            for folder in [spool] if spool else Spool().folders():
                yield from self._journals(folder)

    def _is_gone(self, run_id: str, experiment_id: str) -> bool:
        if run_id not in self._stages:
            self._stages[run_id] = self._upkeep.stage_of(run_id, experiment_id)
        return self._stages[run_id] in self._gone_stages

    def _checkpoint(self, trace: Trace) -> Orphan:
        why = ", ".join(hold for hold in trace.held if self._holds_still(trace, hold))
        if not why and self._upkeep.is_registered(trace.model_id):
            why = "registered"
        return self._removed(trace, why)

    def _holds_still(self, trace: Trace, hold: str) -> bool:
        """Whether what holds it is there, and is not to be overruled."""
        if hold == "forked":
            return not all(self._is_gone(fork, trace.experiment_id) for fork in trace.forks)
        return hold != "pinned" or not self._pinned

    def _begun(self, trace: Trace) -> Orphan:
        """A deletion that somebody has begun and not ended, of a run that is there."""
        return self._removed(trace, "", self._upkeep.finish)

    def _removed(
        self, trace: Trace, why: str, remove: Callable[[Trace], str | None] | None = None
    ) -> Orphan:
        if not why and not self._dry_run:
            try:
                why = (remove or self._upkeep.remove)(trace) or ""
            except ArtifactsMissing as error:
                why = f"{error} Its record alone goes with MlflowClient.delete_logged_model."
        return Orphan(
            kind="checkpoint",
            run_id=trace.run_id,
            name=trace.name,
            where=trace.artifact_uri,
            bytes=trace.bytes,
            gone=not why,
            why=why,
        )

    def _holds(self, trace: Trace) -> Iterator[Orphan]:
        for fork in trace.forks:
            if self._is_gone(fork, trace.experiment_id):
                why = "" if self._dry_run else self._released(trace, fork)
                yield Orphan(
                    kind="hold",
                    run_id=fork,
                    name=trace.name,
                    where=trace.artifact_uri,
                    bytes=0,
                    gone=not why,
                    why=why,
                )

    def _released(self, trace: Trace, fork: str) -> str:
        """Take the hold of a fork away; why it stays, or nothing."""
        try:
            self._upkeep.release_fork(trace.model_id, fork)
        except ConnectionError:
            raise
        except StoreError as error:
            return str(error)
        return ""

    def _journals(self, folder: Path) -> Iterator[Orphan]:
        here = portable_uri(self._store.uri)
        for journal in journals(folder):
            about = journal.about
            run_id = str(about.get("run_id", ""))
            experiment_id = str(about.get("run", {}).get("experiment_id", ""))
            is_ours = about.get("tracking_uri") == here and run_id
            if is_ours and self._is_gone(run_id, experiment_id):
                yield self._journal(journal, run_id)

    def _journal(self, journal: Journal, run_id: str) -> Orphan:
        size, why = journal.bytes, ""
        waits = journal.first() is not None or journal.refused()
        if waits and not self._undelivered:
            why = "not all of it was delivered: --undelivered"
        elif not self._dry_run:
            try:
                destroy(journal)
            except SpoolError as error:
                why = str(error)
        return Orphan(
            kind="journal",
            run_id=run_id,
            name=journal.path.name,
            where=str(journal.path),
            bytes=size,
            gone=not why,
            why=why,
        )
