"""Bring the files of a checkpoint from the spool to the artifact store.

A local artifact store gets them as further names of the same files where the file system
can do that, so that no byte is written twice; else as copies. Any other store gets them
uploaded, and is then asked what it has: a server that loses a connection in the middle of
an upload may keep the half it got. Readers see neither: a checkpoint exists from its
commit on.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mlflow_ckpt import progress
from mlflow_ckpt.durable import link_or_copy, sync
from mlflow_ckpt.errors import ArtifactsMissing, SaveFailed, ServerAway
from mlflow_ckpt.record import COMPLETE_TAG, Position, Run
from mlflow_ckpt.store import _files
from mlflow_ckpt.store._connection import Connection
from mlflow_ckpt.store._faults import advice, is_away, is_denied


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A checkpoint on its way to the artifact store.

    Attributes:
        uri: Tracking URI.
        run, position: Whose it is.
        directory: Where its files are; they stay there.
        model: The pending LoggedModel.
        repository: The artifact store of this checkpoint.
        place: Where a local artifact store keeps them; `None` if it is not one.
    """

    uri: str
    run: Run
    position: Position
    directory: Path
    model: LoggedModel
    repository: ArtifactRepository
    place: Path | None

    def publish(self, sizes: Mapping[str, int]) -> None:
        """Make files of `directory` durable where the artifact store keeps them.

        One request a file: MLflow's upload of a folder needs a thread pool, and Python
        refuses new work to those while the interpreter ends.

        Args:
            sizes: Bytes of each file, by its POSIX path.

        Raises:
            ServerAway: If the store does not answer, or has not got everything.
            ArtifactsMissing: If a local one has nothing of the experiment: every series has a
                file of its own there before its first checkpoint, and a copied run has models.
        """
        if self.place is not None:
            where = self.model.artifact_location
            # The folder of the models is there from the first one on; the experiment's may be long.
            if not self.place.parents[1].exists() and not _files.is_there(self.uri, where):
                raise ArtifactsMissing(_files.nothing_there(where))
            _lay(self.directory, self.place, sizes)
            progress.moved(sum(sizes.values()))
            return
        try:
            for path in sizes:
                parent = PurePosixPath(path).parent.as_posix()
                self.repository.log_artifact(
                    str(self.directory / path), None if parent == "." else parent
                )
                progress.moved(sizes[path])
            self._check(sizes)
        except Exception as error:
            if isinstance(error, ServerAway) or not is_away(error):
                raise
            raise ServerAway(
                f"The artifact store did not take {self.position.name}: {error}"
            ) from error

    def _check(self, sizes: Mapping[str, int]) -> None:
        """Ask the store what it has of these files."""
        for folder in sorted({PurePosixPath(path).parent.as_posix() for path in sizes}):
            there = {
                info.path: info.file_size
                for info in self.repository.list_artifacts(None if folder == "." else folder)
                if not info.is_dir
            }
            for path, size in sizes.items():
                if PurePosixPath(path).parent.as_posix() != folder:
                    continue
                # Some stores do not know a size.
                if path not in there or there[path] not in (None, size):
                    raise ServerAway(
                        f"The artifact store has {there.get(path, 'no')} bytes of {path!r} of "
                        f"{self.position.name} instead of {size}."
                    )

    def abandon(self, connection: Connection, error: Exception, *, sealed: bool) -> SaveFailed:
        """Mark the LoggedModel FAILED and give its disk space back; the spool keeps the files.

        Args:
            sealed: Whether the request that commits was sent. It may have been carried out
                although its answer was lost, so it is taken back first; where that fails too
                the files stay, because a reader may see the checkpoint.

        Returns:
            What to raise from `error`.
        """
        failure = failed(self.run, self.position, error, folder=self.place)
        gone = not sealed or self._withdraw(connection, failure)
        if self.place is not None and gone:
            shutil.rmtree(self.place, ignore_errors=True)
        try:
            connection.client.finalize_logged_model(self.model.model_id, "FAILED")
        except MlflowException as second:
            failure.add_note(
                f"Its logged model {self.model.model_id} could not be marked FAILED: {second}"
            )
        return failure

    def _withdraw(self, connection: Connection, failure: SaveFailed) -> bool:
        try:
            connection.tag_model(self.model.model_id, {COMPLETE_TAG: "failed"})
        except MlflowException as error:
            failure.add_note(f"It may have been committed all the same: {error}")
            return False
        return True


def open_draft(
    connection: Connection, run: Run, position: Position, directory: Path, model: LoggedModel
) -> Draft:
    """Find the place of a checkpoint's files."""
    repository = get_artifact_repository(model.artifact_location, tracking_uri=connection.uri)
    # A subclass may do more than keep files: it gets them handed over.
    plain = type(repository) is LocalArtifactRepository
    return Draft(
        uri=connection.uri,
        run=run,
        position=position,
        directory=directory,
        model=model,
        repository=repository,
        place=Path(repository.artifact_dir) if plain else None,
    )


def _lay(source: Path, target: Path, paths: Iterable[str]) -> None:
    """Lay files below `target`, durably; what an earlier attempt left there is replaced."""
    folders = {target}
    for path in paths:
        there = target / path
        there.parent.mkdir(parents=True, exist_ok=True)
        folders.update(_between(there.parent, target))
        partial = there.with_name(f".{there.name}-part")
        partial.unlink(missing_ok=True)
        if not link_or_copy(source / path, partial):
            sync(partial)
        partial.replace(there)
        # Two names of one file: POSIX leaves both where one is to replace the other.
        partial.unlink(missing_ok=True)
    for folder in [*sorted(folders, reverse=True), target.parent]:
        sync(folder)


def _between(folder: Path, root: Path) -> Sequence[Path]:
    return [folder, *(p for p in folder.parents if p.is_relative_to(root))]


def failed(
    run: Run, position: Position, error: Exception, *, folder: Path | None = None
) -> SaveFailed:
    """What to raise when a checkpoint cannot be committed because of `error`."""
    if isinstance(error, SaveFailed):
        return error
    if isinstance(error, OSError) and error.strerror:
        text = (
            f"The checkpoint {position.name} could not be written to "
            f"{error.filename or folder}: {error.strerror}. Free some space there; it waits in "
            f"the spool until then (`mlflow-ckpt sync {run.run_id}`)."
        )
    else:
        text = (
            f"The checkpoint {position.name} of run {run.run_id} was not committed: "
            f"{error or repr(error)}"
        )
        if is_denied(error):
            text += f" {advice(error)}"
    return SaveFailed(f"{text} Earlier checkpoints are untouched.", reason=error)
