"""Give the files of a checkpoint a place before it is committed.

A local artifact store gets them where they will stay, so that no byte is written twice.
Any other gets them from a private temporary folder. Readers see neither: a checkpoint
exists from its commit on.

    create (PENDING) -> Draft -> files -> commit
                             \\-> abandon (FAILED; local files are removed)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt.errors import SaveFailed
from mlflow_ckpt.record import COMPLETE_TAG, MODEL_TYPE, Position, Run
from mlflow_ckpt.store._connection import Connection, translated

_PREFIX = "mlflow-ckpt-"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checkpoint in the making. It belongs to whoever opened it, until commit or `abandon`.

    Attributes:
        run, position: Whose it is.
        directory: An empty folder for its files.
        in_place: Whether `directory` is where the artifact store keeps them.
        model: The pending LoggedModel.
        repository: The artifact store of this checkpoint.
    """

    run: Run
    position: Position
    directory: Path
    in_place: bool
    model: LoggedModel
    repository: ArtifactRepository

    def publish(self, paths: Iterable[str], *, synced: Iterable[str] = ()) -> None:
        """Make files of `directory` durable where the artifact store keeps them.

        One request a file: MLflow's upload of a folder needs a thread pool, and Python
        refuses new work to those while the interpreter ends.

        Args:
            paths: POSIX paths relative to `directory`.
            synced: Those of them that are on the disk already.
        """
        done = set(synced)
        for path in paths:
            if not self.in_place:
                parent = Path(path).parent.as_posix()
                self.repository.log_artifact(
                    str(self.directory / path), None if parent == "." else parent
                )
            elif path not in done:
                _sync(self.directory / path)
        if self.in_place:
            for folder in (self.directory, *(p for p in self.directory.rglob("*") if p.is_dir())):
                _sync(folder)

    def close(self) -> None:
        """Remove the temporary folder, if there is one. Safe to call twice."""
        if not self.in_place:
            shutil.rmtree(self.directory, ignore_errors=True)

    def abandon(
        self, connection: Connection, error: Exception, *, sealed: bool = False
    ) -> SaveFailed:
        """Mark the LoggedModel FAILED and give its disk space back.

        Args:
            sealed: Whether the request that commits was sent. It may have been carried out
                although its answer was lost, so it is taken back first; where that fails too
                the files stay, because a reader may see the checkpoint.

        Returns:
            What to raise from `error`.
        """
        failure = failed(self.run, self.position, error, folder=self.directory)
        gone = not sealed or self._withdraw(connection, failure)
        if self.in_place and gone:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.close()
        _mark_failed(connection, self.model, failure)
        return failure

    def _withdraw(self, connection: Connection, failure: SaveFailed) -> bool:
        try:
            connection.tag_model(self.model.model_id, {COMPLETE_TAG: "failed"})
        except MlflowException as error:
            failure.add_note(f"It may have been committed all the same: {error}")
            return False
        return True


def open_draft(connection: Connection, run: Run, position: Position) -> Draft:
    """Create the LoggedModel and find its files a place.

    Raises:
        SaveFailed: If the server refuses, or the place cannot be written to.
    """
    try:
        with translated("create a logged model"):
            model = connection.client.create_logged_model(
                run.experiment_id,
                name=position.name,
                source_run_id=run.run_id,
                tags=position.tags(),
                params={k: str(getattr(position, k)) for k in ("series", "epoch", "step")},
                model_type=MODEL_TYPE,
            )
    except Exception as error:
        raise failed(run, position, error) from error
    try:
        repository = get_artifact_repository(model.artifact_location, tracking_uri=connection.uri)
        # A subclass may do more than keep files: it gets them handed over.
        in_place = type(repository) is LocalArtifactRepository
        directory = _place(repository) if in_place else Path(tempfile.mkdtemp(prefix=_PREFIX))
    except Exception as error:
        failure = failed(run, position, error, folder=Path(model.artifact_location))
        _mark_failed(connection, model, failure)
        raise failure from error
    return Draft(
        run=run,
        position=position,
        directory=directory,
        in_place=in_place,
        model=model,
        repository=repository,
    )


def _mark_failed(connection: Connection, model: LoggedModel, failure: SaveFailed) -> None:
    """Show the failure in the UI; where even that fails, say so in the error that is raised."""
    try:
        connection.client.finalize_logged_model(model.model_id, "FAILED")
    except MlflowException as error:
        failure.add_note(f"Its logged model {model.model_id} could not be marked FAILED: {error}")


def _place(repository: ArtifactRepository) -> Path:
    directory = Path(repository.artifact_dir)
    directory.mkdir(parents=True, exist_ok=True)
    _sync(directory.parent)
    return directory


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def failed(
    run: Run, position: Position, error: Exception, *, folder: Path | None = None
) -> SaveFailed:
    """What to raise when a checkpoint cannot be committed because of `error`."""
    if isinstance(error, SaveFailed):
        return error
    if isinstance(error, OSError) and error.strerror:
        text = (
            f"The checkpoint {position.name} could not be written to "
            f"{error.filename or folder or tempfile.gettempdir()}: {error.strerror}. "
            "Free some space there; TMPDIR moves temporary files."
        )
    else:
        text = (
            f"The checkpoint {position.name} of run {run.run_id} was not committed: "
            f"{error or repr(error)}"
        )
    return SaveFailed(f"{text} Earlier checkpoints are untouched.", reason=error)
