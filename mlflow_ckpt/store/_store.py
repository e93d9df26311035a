"""One object for everything the rest of the package asks of MLflow."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Literal

import mlflow
from mlflow.entities import LoggedModelOutput, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt import worker
from mlflow_ckpt.errors import DigestMismatch, NoActiveRun, SaveFailed, StoreError
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import COMPLETE_TAG, FINAL_TAG, Checkpoint, MetricRow, Position, Run, Series
from mlflow_ckpt.selector import Mode
from mlflow_ckpt.store import _commit, _connection, _draft, _fork, _query
from mlflow_ckpt.store._card import versions
from mlflow_ckpt.store._connection import translated

_logger = logging.getLogger("mlflow_ckpt")


class Store:
    """Checkpoints of runs on the tracking server that is current when this object is made.

    A `fit` uses one from two threads: the writer's, and the one that trains.

    Raises:
        UnsupportedStore: If the tracking URI names the file store.
    """

    def __init__(self) -> None:
        self.uri: str = mlflow.get_tracking_uri()
        self._client = _connection.connect()
        self._connection = _connection.Connection(self.uri, self._client)
        self._cannot_delete = False

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
            self._client.log_dict(run.run_id, document, f"checkpoints/{series.name}.json")

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
            # Said here because MLFLOW_ENABLE_ASYNC_LOGGING would let a failure pass in silence.
            self._client.log_batch(
                run.run_id,
                metrics=[Metric(r.key, r.value, r.timestamp, r.step) for r in rows],
                synchronous=True,
            )

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

    def checkpoints(self, run: Run, series: Series) -> list[Checkpoint]:
        """All committed ones, oldest first, the end state included."""
        return _query.everything(self._client, run, series)

    def reread(self, checkpoint: Checkpoint, series: Series) -> Checkpoint | None:
        """What the server says of a committed checkpoint at this moment; `None` if it is gone."""
        with translated(f"read {checkpoint.name}"):
            try:
                model = self._client.get_logged_model(checkpoint.model_id)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        committed = model.tags.get(COMPLETE_TAG) == "true"
        return _query.to_checkpoint(model, series) if committed else None

    def logged(self, checkpoint: Checkpoint) -> _fork.Logged:
        """The metric rows of a checkpoint, and how its state was taken."""
        return _fork.logged(self._client, checkpoint)

    def draft(self, run: Run, position: Position) -> _draft.Draft:
        """Begin a checkpoint: see `_draft`. End it with `commit` or `abandon`."""
        return _draft.open_draft(self._connection, run, position)

    def commit(self, draft: _draft.Draft, request: _commit.Commit) -> Checkpoint:
        """Make a checkpoint of a draft whose files are all there: see `_commit`."""
        return _commit.commit(self._connection, draft, request)

    def abandon(self, draft: _draft.Draft, error: Exception, *, sealed: bool = False) -> SaveFailed:
        """Give a draft up; returns what to raise from `error`. For `sealed` see `Draft.abandon`."""
        return draft.abandon(self._connection, error, sealed=sealed)

    def mark_final(self, run: Run, series: Series, checkpoint: Checkpoint) -> None:
        """Say that a committed checkpoint is the state in which `fit` left the model.

        The end of an earlier, shorter fit is then an end no more: a record that was made
        for nothing else goes, any other loses the mark.
        """
        with translated(f"mark {checkpoint.name} as final"):
            self._connection.tag_model(checkpoint.model_id, {FINAL_TAG: "true"})
            ends = _query.ends(self._client, run, series)
            earlier = [c for c in ends if c.model_id != checkpoint.model_id]
            gone = [c for c in earlier if c.kind == "final" and not c.pinned]
            for other in earlier:
                if other not in gone:
                    self._connection.tag_model(other.model_id, {FINAL_TAG: "false"})
        self.delete(gone)

    def link(self, run: Run, checkpoints: Sequence[Checkpoint]) -> None:
        """Let the run's page list these too, in one request."""
        outputs = [LoggedModelOutput(c.model_id, c.epoch) for c in checkpoints]
        with translated("link checkpoints to the run"):
            self._client.log_outputs(run.run_id, outputs)

    def delete(self, checkpoints: Iterable[Checkpoint]) -> None:
        """Delete checkpoints; where the artifact store cannot, warn once and go on."""
        for checkpoint in checkpoints:
            reason = _commit.delete(self._connection, checkpoint)
            if reason and not self._cannot_delete:
                self._cannot_delete = True
                _logger.warning(
                    "The artifact store cannot delete files (%s). Old checkpoints leave the list "
                    "but their files stay at %s.", reason, checkpoint.artifact_uri
                )  # fmt: skip

    # --- files ----------------------------------------------------------------

    def manifest(self, checkpoint: Checkpoint, directory: Path) -> Manifest:
        """Fetch and check a checkpoint's manifest.

        Raises:
            DigestMismatch: If it is missing or not the committed one.
        """
        path = self._fetch(checkpoint, FILENAME, directory) / FILENAME
        return Manifest.parse(path.read_bytes(), digest=checkpoint.digest)

    def fetch(
        self,
        checkpoint: Checkpoint,
        manifest: Manifest,
        paths: Sequence[str],
        directory: Path,
        *,
        in_place: bool = False,
    ) -> dict[str, BinaryIO]:
        """Open files of a checkpoint, each verified. The caller closes them.

        Args:
            paths: Those that the checkpoint does not have are left out.
            directory: Where copies go.
            in_place: Whether to read the files of a local artifact store where they lie,
                without a copy. They belong to the store: never write, move or delete them.

        Raises:
            DigestMismatch: If one is missing, or its size or digest differs.
        """
        with ExitStack() as undo:
            files: dict[str, BinaryIO] = {}
            for path in paths:
                entry = manifest.entry(path)
                if entry is not None:
                    root = self._fetch(checkpoint, path, directory, in_place=in_place)
                    files[path] = undo.enter_context(entry.open(root))
            undo.pop_all()
        return files

    def _fetch(
        self, checkpoint: Checkpoint, path: str, directory: Path, *, in_place: bool = False
    ) -> Path:
        """Bring one file here; return the folder below which it lies now."""
        directory.mkdir(parents=True, exist_ok=True)
        try:
            repository = get_artifact_repository(checkpoint.artifact_uri, tracking_uri=self.uri)
            # No subclass: a plugin's own may do more than lay files into a folder.
            if in_place and type(repository) is LocalArtifactRepository:
                return Path(repository.artifact_dir)
            repository.download_artifacts(path, dst_path=str(directory))
            return directory
        except (MlflowException, OSError) as error:
            if (
                isinstance(error, FileNotFoundError)
                or "No such" in str(error)
                or "404" in str(error)
            ):
                raise DigestMismatch(
                    f"The file {path!r} of checkpoint {checkpoint.name} is missing at "
                    f"{checkpoint.artifact_uri}. Take another one "
                    f"(`mlflow-ckpt list {checkpoint.run_id}` shows them).",
                    path=path,
                    expected="a file",
                    found="no file",
                ) from error
            raise StoreError(
                f"Could not download {path!r} of {checkpoint.name}: {error}"
            ) from error

    @staticmethod
    def versions() -> dict[str, str]:
        return versions()
