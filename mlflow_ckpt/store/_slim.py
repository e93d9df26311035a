"""Slim copies of checkpoints: LoggedModels that are served, and that no selector finds.

    create (PENDING, tag ckpt.slim_of) -> files -> manifest -> metrics -> link to the run
    -> tags ckpt.slim_digest and ckpt.slim_bytes -> finalize READY, last

They have another model type than checkpoints and none of the tags by which those are looked for,
so that no selector, keep policy or collection takes one for a checkpoint.

Sizes are bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModel, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from mlflow_ckpt import card_content
from mlflow_ckpt.errors import ManifestError, ServerAway, StoreError
from mlflow_ckpt.record import STEP_METRIC, Checkpoint, MetricRow, Run, Series
from mlflow_ckpt.store import _commit, _delete, _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._draft import open_draft
from mlflow_ckpt.store._faults import advice, is_denied

SLIM_MODEL_TYPE = "keras"
SLIM_OF_TAG = "ckpt.slim_of"
SLIM_MAKER_TAG = "ckpt.slim_maker"
SLIM_DIGEST_TAG = "ckpt.slim_digest"
SLIM_BYTES_TAG = "ckpt.slim_bytes"

_NOTE_TAG = "mlflow.note.content"
_LOADER = "mlflow.keras"
_MOST = 100  # copies of one checkpoint


@dataclass(frozen=True)
class SlimCopy:
    """One slim copy, in whatever state."""

    model: LoggedModel

    @property
    def model_id(self) -> str:
        return str(self.model.model_id)

    @property
    def uri(self) -> str:
        return f"models:/{self.model_id}"

    @property
    def state(self) -> str:
        """`PENDING`, `READY` or `FAILED`."""
        return str(self.model.status.value)

    @property
    def maker(self) -> str:
        """Which process makes it: see `slim_copy`. Empty once it is READY."""
        return str(self.model.tags.get(SLIM_MAKER_TAG, ""))

    @property
    def bytes(self) -> int:
        """Of its files, once it is READY."""
        return int(self.model.tags.get(SLIM_BYTES_TAG, 0))

    @property
    def changed_at(self) -> int:
        """Milliseconds since the Unix epoch, by the server's clock."""
        return int(self.model.last_updated_timestamp)

    def as_of(self, checkpoint: Checkpoint) -> Checkpoint:
        """The copy as something whose files are fetched like those of a checkpoint."""
        return Checkpoint(
            run_id=checkpoint.run_id,
            model_id=self.model_id,
            position=checkpoint.position,
            metrics={},
            bytes=self.bytes,
            digest=self.model.tags.get(SLIM_DIGEST_TAG, ""),
            artifact_uri=self.model.artifact_location,
            created_at=self.model.creation_timestamp,
        )


class SlimCopies:
    """Makes and finds them on one tracking server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client

    def of(self, run: Run, checkpoint: Checkpoint) -> list[SlimCopy]:
        """Those of a checkpoint, newest first."""
        clauses = [
            f"source_run_id = '{run.run_id}'",
            _query.tag(SLIM_OF_TAG, checkpoint.model_id),
        ]
        with translated("search slim copies"):
            found = self._client.search_logged_models(
                [run.experiment_id],
                filter_string=" AND ".join(clauses),
                max_results=_MOST,
                order_by=[{"field_name": "creation_time", "ascending": False}],
            )
        return [SlimCopy(model) for model in found]

    def begin(self, run: Run, checkpoint: Checkpoint, maker: str, note: str) -> SlimCopy:
        """Create the record of one, PENDING.

        Args:
            maker: See `SlimCopy.maker`.
            note: Its description, for people.
        """
        position = checkpoint.position
        with translated("create a slim copy"), self._connection.writing():
            return SlimCopy(
                self._client.create_logged_model(
                    run.experiment_id,
                    name=f"{checkpoint.name}-slim",
                    source_run_id=run.run_id,
                    tags={
                        SLIM_OF_TAG: checkpoint.model_id,
                        SLIM_MAKER_TAG: maker,
                        _NOTE_TAG: note,
                    },
                    params={k: str(getattr(position, k)) for k in ("series", "epoch", "step")},
                    model_type=SLIM_MODEL_TYPE,
                )
            )

    def write_card(self, copy: SlimCopy, run: Run, directory: Path) -> None:
        """Put the IDs of run and model, and the size of the data, into `MLmodel`.

        Raises:
            ManifestError: If it is no description of a Keras model, or has code loaded.
        """
        path = directory / card_content.PATH
        card = _read_card(path)
        card.artifact_path = copy.model.artifact_location
        card.model_uuid = card.model_id = copy.model_id
        card.run_id = run.run_id
        data = directory / "data"
        card.model_size_bytes = sum(p.stat().st_size for p in data.rglob("*") if p.is_file())
        card.save(str(path))

    def publish(
        self,
        copy: SlimCopy,
        run: Run,
        checkpoint: Checkpoint,
        directory: Path,
        sizes: Mapping[str, int],
    ) -> None:
        """Bring the files below `directory` to the artifact store; see `_draft`.

        Raises:
            ServerAway, ArtifactsMissing: As `Draft.publish`.
            StoreError: If the store does not take them.
        """
        draft = open_draft(self._connection, run, checkpoint.position, directory, copy.model)
        try:
            with self._connection.writing():
                draft.publish(sizes)
        except (ServerAway, StoreError):
            raise
        except Exception as error:
            text = f"The slim copy of {checkpoint.name} could not be stored"
            if isinstance(error, OSError) and error.strerror:
                where = error.filename or copy.model.artifact_location
                text += f" at {where}: {error.strerror}. Free some space there"
            else:
                text += f": {error}. {advice(error)}" if is_denied(error) else f": {error}"
            raise StoreError(f"{text.rstrip('.')}. Then register it again.") from error

    def finish(
        self,
        copy: SlimCopy,
        run: Run,
        checkpoint: Checkpoint,
        rows: Iterable[MetricRow],
        *,
        digest: str,
        size: int,
    ) -> SlimCopy:
        """Log its metrics, show it on the run's page, and make it READY.

        Args:
            rows: Those of the checkpoint: the run's curves have them, and get none twice.
            digest: Of its `manifest.json`.
            size: Bytes of its files.
        """
        step_metric = run.series.get(checkpoint.series, Series(name="")).prefix + STEP_METRIC
        metrics = [
            Metric(r.key, r.value, r.timestamp, r.step, model_id=copy.model_id, run_id=run.run_id)
            for r in rows
            # A NaN would be stored as 0. By the step checkpoints are looked for.
            if math.isfinite(r.value) and r.key != step_metric
        ]
        with translated("finish a slim copy"):
            if metrics:
                _commit.log_metrics(self._connection, run, metrics)
            _commit.link(self._connection, run, {copy.model_id: checkpoint.epoch})
            self._connection.tag_model(
                copy.model_id,
                {SLIM_DIGEST_TAG: digest, SLIM_BYTES_TAG: str(size)},
            )
            ready = SlimCopy(self._client.finalize_logged_model(copy.model_id, "READY"))
            # Nobody asks any more, and it names a machine.
            self._connection.tag_model(copy.model_id, {SLIM_MAKER_TAG: ""})
        return ready

    def is_registered(self, copy: SlimCopy) -> bool:
        """Whether a version in the registry has its files."""
        return bool(_query.held(copy.model.tags)) or _query.is_registered(
            self._client, copy.model_id
        )

    def remove(self, copy: SlimCopy) -> str | None:
        """Delete files and record. Returns why something stays, or `None`.

        What has to stay is marked FAILED.
        """
        self._connection.wait_until_quiet()
        left = _delete.remove(self._connection, copy.model_id, copy.model.artifact_location)
        if left is None or left.record is None:
            return left.files if left else None
        with translated("mark a slim copy as failed"):
            self._client.finalize_logged_model(copy.model_id, "FAILED")
        return left.record


def _read_card(path: Path) -> Model:
    """An `MLmodel` that has MLflow load a Keras model, and nothing else."""
    if card_content.digest(path.read_bytes()) is not None:
        try:
            card = Model.load(str(path))
            loader = card.flavors["python_function"]
            if set(card.flavors) == {"keras", "python_function"} and (
                loader["loader_module"],
                loader.get("code"),
            ) == (_LOADER, None):
                return card
        except (MlflowException, LookupError, TypeError, ValueError, AttributeError):
            pass
    raise ManifestError(
        f"Expected an {card_content.PATH} of MLflow's keras flavor, without code of its own. "
        "Received: another one. Take another checkpoint, or register this one whole: slim=False, "
        "or --full."
    )
