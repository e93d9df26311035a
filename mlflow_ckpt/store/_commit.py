"""Make one checkpoint visible, all of it or nothing.

    create (PENDING, tag ckpt.complete=pending) -> files -> manifest -> metrics
    -> link to the run -> finalize READY
    -> tags ckpt.manifest_digest and ckpt.complete=true, in one call

The last call is the only commit point: what is killed before it resolves nowhere. The
link comes late because a run's page lists whatever is linked, half-made or not.

Any of these requests may be carried out and its answer lost, and a process may die between
two of them. So each can be made again: the LoggedModel carries the name of the spool's entry
(`ckpt.entry`) and is found by it, an upload replaces, MLflow stores equal metric rows once,
and tags are set. A checkpoint that turns out to be committed is left as it is.

These are all the requests of one committed whole-model checkpoint through `mlflow server`,
in their order; a local artifact store makes the same ones without PUTs and listings. MLflow
has no call that takes two of them together, and the artifact proxy takes one file a request.

    POST  api/2.0/mlflow/logged-models                           create
    PUT   .../artifacts/MLmodel                                  one for each file:
    PUT   .../artifacts/conda.yaml
    PUT   .../artifacts/data/keras_module.txt
    PUT   .../artifacts/data/model.keras
    PUT   .../artifacts/python_env.yaml
    PUT   .../artifacts/requirements.txt
    PUT   .../artifacts/state/training_state.h5
    PUT   .../artifacts/manifest.json                            last of the files
    GET   .../artifacts?path=                                    are they whole?
    GET   .../artifacts?path=data
    GET   .../artifacts?path=state
    POST  api/2.0/mlflow/runs/log-batch                          metrics
    POST  api/2.0/mlflow/runs/outputs                            link, if it is due
    PATCH api/2.0/mlflow/logged-models/{model_id}                finalize
    PATCH api/2.0/mlflow/logged-models/{model_id}/tags           commit
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.exceptions import MlflowException

from mlflow_ckpt.errors import ServerAway
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import (
    CAPTURE_TAG,
    COMPLETE_TAG,
    DIGEST_TAG,
    ENTRY_TAG,
    FINAL_TAG,
    MODEL_TYPE,
    Checkpoint,
    MetricRow,
    Position,
    Run,
)
from mlflow_ckpt.store import _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._draft import Draft, failed, open_draft
from mlflow_ckpt.store._faults import is_away


@dataclass(frozen=True, kw_only=True)
class Commit:
    """What one commit writes.

    Attributes:
        entry: Names the checkpoint in the spool.
        position: Where in its series it stands.
        directory: Where its files are, `manifest.json` among them.
        digest: Digest of `manifest.json`.
        metrics: Finite rows to log with the model; they also appear on the run's curves.
        beside: Rows of the same epoch for the run's curves alone: a LoggedModel would turn
            NaN into 0.0.
        values: The finite metrics by Keras's names, for the returned `Checkpoint`.
        weights_only: Whether the draft holds weights instead of a model.
        capture: How the state was taken: `snapshot.Strategy`.
        final: Whether it is the state in which `fit` left the model.
        link: Whether the run's page is to list it from now on.
    """

    entry: str
    position: Position
    directory: Path
    digest: str
    metrics: Sequence[MetricRow]
    beside: Sequence[MetricRow] = ()
    values: Mapping[str, float]
    weights_only: bool
    capture: str
    final: bool = False
    link: bool = True


class Progress(Protocol):
    """Remembers how far a commit came, also for another process."""

    @property
    def progress(self) -> dict[str, Any]: ...
    def note(self, progress: Mapping[str, Any]) -> None: ...


def commit(
    connection: Connection,
    run: Run,
    request: Commit,
    progress: Progress,
    *,
    give_up: bool = False,
) -> Checkpoint:
    """Carry out the protocol above, from where it was left.

    Args:
        give_up: Whether nobody will go on with it: what is left half-made is then marked
            FAILED, whatever happened.

    Raises:
        ServerAway: If the server does not answer. Call it again.
        SaveFailed: If it refuses, or does not answer and `give_up` is set. Its LoggedModel is
            FAILED; a new call makes another one.
    """
    data = (request.directory / FILENAME).read_bytes()
    manifest = Manifest.parse(data, digest=request.digest)
    draft: Draft | None = None
    sealed = False
    try:
        model = _model(connection, run, request, progress)
        if model.tags.get(COMPLETE_TAG) == "true":
            return _committed(run, request, manifest, model)
        draft = open_draft(connection, run, request.position, request.directory, model)
        sizes = {entry.path: entry.size for entry in manifest.files}
        with connection.writing():
            draft.publish({**sizes, FILENAME: len(data)})
        _log(connection, run, request, model)
        sealed = True
        _seal(connection, request, manifest, model)
        return _committed(run, request, manifest, model)
    except BaseException as error:
        if not give_up and (isinstance(error, ServerAway) or not isinstance(error, Exception)):
            raise
        reason = error if isinstance(error, Exception) else InterruptedError("interrupted")
        if draft is None:
            if reason is not error:
                raise
            raise failed(run, request.position, reason) from error
        failure = draft.abandon(connection, reason, sealed=sealed)
        if reason is not error:
            for note in getattr(failure, "__notes__", ()):
                error.add_note(note)
            raise
        progress.note({})
        if failure is error:
            raise
        raise failure from error


def _model(connection: Connection, run: Run, request: Commit, progress: Progress) -> LoggedModel:
    """The LoggedModel of this entry: the one of an earlier attempt, or a new one."""
    begun = progress.progress
    if model_id := begun.get("model_id"):
        with translated("read a logged model"):
            try:
                return connection.client.get_logged_model(model_id)
            except MlflowException as error:
                if not _query.is_gone(connection.client, model_id, error):
                    raise
    elif begun:
        # Whether an earlier request was carried out is not known.
        found = _query.of_entry(connection.client, run, request.entry)
        earlier = [model for model in found if model.status.value != "FAILED"]
        if earlier:
            first = next((m for m in earlier if m.tags.get(COMPLETE_TAG) == "true"), earlier[0])
            progress.note({"model_id": first.model_id})
            return first
    progress.note({"begun": True})
    position = request.position
    with translated("create a logged model"), connection.writing():
        model = connection.client.create_logged_model(
            run.experiment_id,
            name=position.name,
            source_run_id=run.run_id,
            tags={**position.tags(), ENTRY_TAG: request.entry, COMPLETE_TAG: "pending"},
            params={k: str(getattr(position, k)) for k in ("series", "epoch", "step")},
            model_type=MODEL_TYPE,
        )
    progress.note({"model_id": model.model_id})
    return model


def _log(connection: Connection, run: Run, request: Commit, model: LoggedModel) -> None:
    """All requests between the files and the last one."""
    rows = [_metric(row, run.run_id, model.model_id) for row in request.metrics]
    rows += [_metric(row, run.run_id, None) for row in request.beside]
    with translated("commit a checkpoint"):
        log_metrics(connection, run, rows)
        if request.link:
            link(connection, run, {model.model_id: request.position.epoch})
        connection.client.finalize_logged_model(model.model_id, "READY")


def log_metrics(connection: Connection, run: Run, metrics: Sequence[Metric]) -> None:
    """Log rows, of which the run may have some already.

    MLflow stores equal rows once. Up to 3.7 it compares NaN with NaN, finds them different, and
    refuses the whole batch: then those that the run has are left out.

    Raises:
        MlflowException: If the server refuses.
    """
    try:
        # Said here because MLFLOW_ENABLE_ASYNC_LOGGING would let a failure pass in silence.
        connection.client.log_batch(run.run_id, metrics=metrics, synchronous=True)
    except MlflowException as error:
        keys = {metric.key for metric in metrics if math.isnan(metric.value)}
        if not keys or is_away(error):
            raise
        there = {
            (key, row.step, row.timestamp)
            for key in keys
            for row in connection.client.get_metric_history(run.run_id, key)
        }
        new = [m for m in metrics if (m.key, m.step, m.timestamp) not in there]
        if len(new) == len(metrics):
            raise
        connection.client.log_batch(run.run_id, metrics=new, synchronous=True)


def link(connection: Connection, run: Run, steps: Mapping[str, int]) -> None:
    """Let the run's page list these models; what it lists already is no error.

    MLflow refuses a link that exists, where it stores equal metric rows and tags once (seen
    on MLflow 3.17 with SQLite).

    Args:
        steps: The step at which each model ID is listed.

    Raises:
        MlflowException: If the server refuses for another reason.
    """
    outputs = [LoggedModelOutput(model_id, step) for model_id, step in steps.items()]
    try:
        connection.client.log_outputs(run.run_id, outputs)
    except MlflowException:
        missing = _unlinked(connection, run, outputs)
        if len(missing) == len(outputs):
            raise
        if missing:
            connection.client.log_outputs(run.run_id, missing)


def link_missing(connection: Connection, run: Run, steps: Mapping[str, int]) -> None:
    """Like `link`, but asks first."""
    outputs = [LoggedModelOutput(model_id, step) for model_id, step in steps.items()]
    if missing := _unlinked(connection, run, outputs):
        connection.client.log_outputs(run.run_id, missing)


def _unlinked(
    connection: Connection, run: Run, outputs: Iterable[LoggedModelOutput]
) -> list[LoggedModelOutput]:
    found = connection.client.get_run(run.run_id).outputs
    there = {output.model_id for output in found.model_outputs} if found else set()
    return [output for output in outputs if output.model_id not in there]


def _seal(connection: Connection, request: Commit, manifest: Manifest, model: LoggedModel) -> None:
    """The last request, which commits."""
    with translated("commit a checkpoint"):
        connection.tag_model(
            model.model_id,
            {
                "ckpt.bytes": str(manifest.total_bytes),
                "ckpt.weights_only": "true" if request.weights_only else "false",
                CAPTURE_TAG: request.capture,
                DIGEST_TAG: request.digest,
                COMPLETE_TAG: "true",
            }
            | ({FINAL_TAG: "true"} if request.final else {}),
        )


def _committed(run: Run, request: Commit, manifest: Manifest, model: LoggedModel) -> Checkpoint:
    return Checkpoint(
        run_id=run.run_id,
        model_id=model.model_id,
        position=request.position,
        metrics=request.values,
        bytes=manifest.total_bytes,
        digest=request.digest,
        artifact_uri=model.artifact_location,
        created_at=model.creation_timestamp,
        weights_only=request.weights_only,
        final=request.final,
        entry=request.entry,
    )


def _metric(row: MetricRow, run_id: str, model_id: str | None) -> Metric:
    return Metric(row.key, row.value, row.timestamp, row.step, model_id=model_id, run_id=run_id)
