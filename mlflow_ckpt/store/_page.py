"""Files about a run's checkpoints among the run's own artifacts, and the run's description."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from mlflow.entities import RunTag
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NOTE

from mlflow_ckpt.errors import CheckpointError, ServerAway, StoreError
from mlflow_ckpt.record import Run
from mlflow_ckpt.store import _bounded
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._faults import advice, is_away, is_denied


class Page:
    """What a person finds about a run's checkpoints where MLflow shows the run."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, run: Run, files: Mapping[str, bytes]) -> None:
        """Write files among the artifacts of a run, in the place of those that are there.

        Args:
            files: Content by path.

        Raises:
            ServerAway, StoreError: If the artifact store does not answer, or refuses.
        """
        with TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
            for path, content in files.items():
                place = PurePosixPath(path)
                local = Path(folder) / place.name
                local.write_bytes(content)
                with _told(f"write {path} of run {run.run_id}"):
                    self._repository(run).log_artifact(str(local), place.parent.as_posix())

    def get(self, run: Run, folder: str, ending: str, *, limit: int) -> dict[str, bytes]:
        """Read the files of a folder among the artifacts of a run.

        Args:
            ending: That of their names.
            limit: Bytes that one may have.

        Returns:
            Content by name, without the ending.

        Raises:
            ServerAway, StoreError: If the artifact store does not answer, or refuses.
            DigestMismatch: If a file is larger.
        """
        found: dict[str, bytes] = {}
        with _told(f"read {folder} of run {run.run_id}"):
            repository = self._repository(run)
            names = [PurePosixPath(info.path).name for info in repository.list_artifacts(folder)]
            for name in (name for name in names if name.endswith(ending)):
                with TemporaryDirectory(prefix="mlflow-ckpt-") as place:
                    _bounded.download(repository, f"{folder}/{name}", Path(place), limit=limit)
                    found[name.removesuffix(ending)] = (Path(place) / folder / name).read_bytes()
        return found

    def describe(self, run: Run, table: str, note: str | None) -> None:
        """Name a table that the run has, as `mlflow.log_table` does, and describe the run.

        Args:
            table: Path of the table.
            note: The description; `None` leaves it.
        """
        tags = {}
        entry = {"path": table, "type": "table"}
        known = _tables(run.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))
        if known is not None and entry not in known:
            tags[MLFLOW_LOGGED_ARTIFACTS] = json.dumps([*known, entry])
        if note is not None and note != self.description(run):
            tags[MLFLOW_RUN_NOTE] = note
        if tags:
            with translated("describe the run"):
                found = [RunTag(key, value) for key, value in tags.items()]
                self._connection.client.log_batch(run.run_id, tags=found, synchronous=True)

    @staticmethod
    def description(run: Run) -> str:
        """What the run's page shows above everything else."""
        return run.tags.get(MLFLOW_RUN_NOTE, "")

    def _repository(self, run: Run) -> ArtifactRepository:
        return get_artifact_repository(run.artifact_uri, tracking_uri=self._connection.uri)


@contextmanager
def _told(action: str) -> Iterator[None]:
    """Turn what a store's client raises into `StoreError`, with what was being done in front."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        text = f"Could not {action}: {error}"
        if is_denied(error):
            raise StoreError(f"{text} {advice(error)}") from error
        raise (ServerAway if is_away(error) else StoreError)(text) from error


def _tables(text: str) -> list[object] | None:
    """What the tag says; `None` if it says something else than a list, and is left alone."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, list) else None
