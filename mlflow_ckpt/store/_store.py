"""One object for everything the rest of the package asks of MLflow."""

from __future__ import annotations

import json
import threading
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag

from mlflow_ckpt import worker
from mlflow_ckpt.errors import NoActiveRun, StoreError
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    FINAL_TAG,
    LEASE_TAG_PREFIX,
    SERIES_TAG,
    Checkpoint,
    MetricRow,
    Run,
    Series,
)
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store import _commit, _connection, _delete, _files, _fork, _lease, _query
from mlflow_ckpt.store._across import Across
from mlflow_ckpt.store._card import versions
from mlflow_ckpt.store._connection import translated
from mlflow_ckpt.store._deleter import Deleter, State, tell_that_it_may_be_registered
from mlflow_ckpt.store._page import Page
from mlflow_ckpt.store._upkeep import Upkeep


class Store:
    """Checkpoints of runs on one tracking server.

    A `fit` uses one from two threads: the writer's, and the one that trains.

    Args:
        uri: Its tracking URI; `None`: the one that is current when this object is made.

    Raises:
        UnsupportedStore: If the tracking URI names the file store.
        StoreError: If it is none.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri: str = uri or mlflow.get_tracking_uri()
        _connection.refuse(self.uri)
        self._connecting = threading.Lock()
        self._made: _connection.Connection | None = None

    @property
    def _connection(self) -> _connection.Connection:
        """Made when it is first needed: that of a database connects at once."""
        with self._connecting:
            if self._made is None:
                self._made = _connection.connect(self.uri)
            return self._made

    @property
    def _client(self) -> MlflowClient:
        return self._connection.client

    @cached_property
    def _deleter(self) -> Deleter:
        return Deleter(self._connection)

    @property
    def upkeep(self) -> Upkeep:
        """What happens to checkpoints after their commit: see `_upkeep`."""
        return Upkeep(self._connection)

    @property
    def page(self) -> Page:
        """What a person finds about the checkpoints of a run: see `_page`."""
        return Page(self._connection)

    @property
    def across(self) -> Across:
        """Checkpoints of all runs of an experiment: see `_across`."""
        return Across(self._connection)

    @staticmethod
    def run_id(run_id: str | None) -> str:
        """`run_id`, else that of the active run, else `MLFLOW_RUN_ID`.

        Raises:
            NoActiveRun: If there is none of them.
        """
        return _connection.current_run_id(run_id)

    @staticmethod
    def is_active(run_id: str) -> bool:
        """Whether MLflow will end this run: it is the active one of this thread."""
        active = mlflow.active_run()
        return active is not None and active.info.run_id == run_id

    @staticmethod
    def forget_active_run(run_id: str, *, ask: bool) -> None:
        """Take a run that was KILLED from MLflow's hands, where it is the active one.

        `with mlflow.start_run():` would else mark it FAILED on the way out.

        Args:
            ask: Whether the server answers, and can be told again.
        """
        _connection.forget_active_run(run_id, ask=ask)

    def portable_uri(self) -> str:
        """The tracking URI as another process can use it, from any folder, without a password."""
        return _connection.portable(self.uri)

    # --- runs -----------------------------------------------------------------

    def run(self, run_id: str | None = None, *, settled: bool = True) -> Run:
        """The run with this ID, else the active one; see `_connection` for what is raised.

        Args:
            settled: Whether to wait first for what this process is still writing to it, such
                as the last checkpoint of a `fit` that raised: who saves and then reads
                finds what was saved.
        """
        found = _connection.current_run_id(run_id)
        if settled:
            worker.settle((self.uri, found))
        return _connection.get_run(self._client, found)

    def active_run(self) -> Run | None:
        """The active run, else that of `MLFLOW_RUN_ID`, else `None`."""
        try:
            found = _connection.current_run_id(None)
        except NoActiveRun:
            return None
        return self.run(found)

    def new_run(self, beside: Run, name: str, tags: Mapping[str, str]) -> Run:
        """Create a run in the experiment of another one; see `_fork`."""
        return _fork.new_run(self._client, beside, name, tags)

    def set_status(self, run: Run, status: Literal["SCHEDULED", "FAILED"]) -> None:
        _fork.set_status(self._client, run, status)

    def log_params(self, run: Run, params: Mapping[str, str]) -> None:
        _fork.log_params(self._client, run, params)

    def log_input(self, run: Run, checkpoint: Checkpoint) -> None:
        """Record that the run began from this checkpoint. Saying it twice changes nothing."""
        _fork.log_input(self._client, run, checkpoint)

    def prepare_experiment(self, run: Run) -> None:
        """Let the UI show the experiment's Models view."""
        _connection.show_as_model_development(self._client, run.experiment_id)

    def set_series(self, run: Run, series: Series) -> None:
        """Record a series: as a tag, which readers filter by, and as an artifact, whole.

        The artifact also keeps the run page's Artifacts tab alive: a run without one of
        its own opens its first logged model there, and fails if that was pruned
        (seen on MLflow 3.17).
        """
        with translated("record the series"):
            self._client.set_tag(run.run_id, series.tag, series.to_json())
            document = {"series": series.name, **json.loads(series.to_json())}
            self._client.log_dict(run.run_id, document, f"checkpoints/{series.file}")

    def lease_tag(self, run: Run, series: str) -> _lease.LeaseTag:
        """The tag in which the process that writes a series says so."""
        return _lease.LeaseTag(self._client, run.run_id, LEASE_TAG_PREFIX + series)

    def set_tag(self, run: Run, key: str, value: str) -> None:
        with translated("set a tag"):
            self._client.set_tag(run.run_id, key, value)

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set several tags of the run in one request."""
        with translated("set tags"):
            found = [RunTag(key, value) for key, value in tags.items()]
            self._client.log_batch(run.run_id, tags=found, synchronous=True)

    # --- curves ---------------------------------------------------------------

    def log_rows(self, run: Run, rows: Iterable[MetricRow]) -> None:
        """Add points to the run's curves, in one request for each 1,000 (MLflow's limit)."""
        with translated("log metrics"):
            metrics = [Metric(r.key, r.value, r.timestamp, r.step) for r in rows]
            _commit.log_metrics(self._connection, run, metrics)

    def rows(self, run: Run, key: str) -> dict[int, MetricRow]:
        """The run's curve of `key`, by step."""
        with translated(f"read the metric {key!r}"):
            history = self._client.get_metric_history(run.run_id, key)
        return {
            m.step: MetricRow(key=key, value=m.value, timestamp=m.timestamp, step=m.step)
            for m in history
        }

    def history(self, run: Run, key: str) -> list[MetricRow]:
        """Every point of the run's curve of `key`, several of one step included."""
        return _fork.history(self._client, run, key)

    # --- checkpoints ----------------------------------------------------------

    def latest(self, run: Run, series: Series) -> Checkpoint | None:
        return _query.newest(self._client, run, series, _query.ANY_KIND)

    def resume_point(self, run: Run, series: Series) -> Checkpoint | None:
        """The newest checkpoint that a `fit` wrote."""
        return _query.newest(self._client, run, series, ("epoch", "batch"))

    def final(self, run: Run, series: Series) -> Checkpoint | None:
        return _query.newest_where(self._client, run, series, _query.FINAL)

    def best(self, run: Run, series: Series, metric: str, mode: Mode) -> Checkpoint | None:
        return _query.best(self._client, run, series, metric, mode)

    def at_step(self, run: Run, series: Series, step: int) -> Checkpoint | None:
        clauses = (_query.tag("ckpt.step", str(step)), _query.any_of(_query.ANY_KIND))
        return _query.newest_where(self._client, run, series, *clauses)

    def at_epoch(self, run: Run, series: Series, epoch: int) -> Checkpoint | None:
        clauses = (_query.tag("ckpt.epoch", str(epoch)), _query.any_of(("epoch", "manual")))
        return _query.newest_where(self._client, run, series, *clauses)

    def reread(self, checkpoint: Checkpoint, series: Series) -> Checkpoint | None:
        """What the server says of a committed checkpoint at this moment; `None` if it is gone."""
        return self.upkeep.reread(checkpoint, series)

    def checkpoints(self, run: Run, series: Series) -> list[Checkpoint]:
        """All committed ones, oldest first, the end state included."""
        return _query.everything(self._client, run, series)

    def logged(self, checkpoint: Checkpoint) -> _fork.Logged:
        """The metric rows of a checkpoint, and how its state was taken."""
        return _fork.logged(self._client, checkpoint)

    def of_entry(self, run: Run, entry: str) -> Checkpoint | None:
        """The committed checkpoint that came from this entry of a spool."""
        for model in _query.of_entry(self._client, run, entry):
            if model.tags.get(COMPLETE_TAG) == "true":
                return _query.to_checkpoint(model, run.series[model.tags[SERIES_TAG]])
        return None

    def checkpoint(self, run: Run, series: Series, model_id: str, entry: str) -> Checkpoint | None:
        """The committed checkpoint with this model ID, else of this entry of a spool."""
        if not model_id:
            return self.of_entry(self.run(run.run_id, settled=False), entry)
        return self.upkeep.committed(model_id, series)

    def commit(
        self,
        run: Run,
        request: _commit.Commit,
        progress: _commit.Progress,
        *,
        give_up: bool = False,
    ) -> Checkpoint:
        """Make a checkpoint of files that are all there: see `_commit`."""
        return _commit.commit(self._connection, run, request, progress, give_up=give_up)

    def drop_unfinished(self, run: Run, series: str, done: Container[str], *, alone: bool) -> int:
        """Delete what was left of checkpoints that are not committed: see `_delete`."""
        return _delete.drop_unfinished(self._connection, run, series, done, alone=alone)

    def end_run(self, run: Run, status: Literal["KILLED", "FINISHED"]) -> None:
        """Mark the run as ended."""
        with translated(f"mark run {run.run_id} as {status}"):
            self._client.set_terminated(run.run_id, status)

    def mark_final(self, run: Run, series: Series, checkpoint: Checkpoint) -> None:
        """Say that a committed checkpoint is the state in which `fit` left the model.

        The end of an earlier, shorter fit is then an end no more: a record that was made
        for nothing else goes, any other loses the mark.
        """
        with translated(f"mark {checkpoint.name} as final"):
            self._connection.tag_model(checkpoint.model_id, {FINAL_TAG: "true"})
            self.finish_deleting(run, series)
            ends = _query.ends(self._client, run, series)
            earlier = [c for c in ends if c.model_id != checkpoint.model_id]
        gone = self.delete([c for c in earlier if c.kind == "final" and not c.held])
        with translated("mark earlier end states as such"):
            for other in earlier:
                if other not in gone:
                    self._connection.tag_model(other.model_id, {FINAL_TAG: "false"})

    def finish_deleting(self, run: Run, series: Series) -> None:
        """Delete what a process that was killed had begun to delete."""
        self.delete(_query.begun_deleting(self._client, run, series), "deleting")

    def link_newest(self, run: Run, series: Series, count: int) -> None:
        """Let the run's page list the `count` newest checkpoints, whoever committed them."""
        newest = _query.newest_of_all(self._client, run, series, count)
        with translated("link checkpoints to the run"):
            _commit.link_missing(self._connection, run, {c.model_id: c.epoch for c in newest})

    def delete(self, checkpoints: Iterable[Checkpoint], was: State = "true") -> list[Checkpoint]:
        """Delete checkpoints that nothing holds; see `_delete`. Returns what is gone."""
        return self._deleter.delete(checkpoints, was)

    def tell_that_it_may_be_registered(self, error: StoreError) -> None:
        """Say once in a process that checkpoints stay, because the registry cannot be asked."""
        tell_that_it_may_be_registered(self._connection, error)

    # --- files ----------------------------------------------------------------

    def manifest(self, checkpoint: Checkpoint, directory: Path) -> Manifest:
        """Fetch and check a checkpoint's manifest; see `_files`."""
        return _files.manifest(self.uri, checkpoint, directory)

    def fetch(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest,
        paths: Sequence[str],
        directory: Path,
        *,
        in_place: bool = False,
    ) -> dict[str, BinaryIO]:
        """Open files of a checkpoint, each verified; see `_files`. The caller closes them."""
        return _files.fetch(self.uri, checkpoint, manifest, paths, directory, in_place=in_place)

    @staticmethod
    def versions() -> dict[str, str]:
        return versions()
