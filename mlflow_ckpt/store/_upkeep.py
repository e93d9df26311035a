"""What happens to checkpoints after their commit: marked as corrupt, pinned, held, orphaned.

A tag that holds no more is set to another value: MLflow's basic-auth lets nobody delete a tag
who may not delete the model.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlflow.entities import LoggedModel, ViewType
from mlflow.exceptions import MlflowException

from mlflow_ckpt.errors import CheckpointNotFound, ManifestError
from mlflow_ckpt.record import (
    COMPLETE_TAG,
    FORK_TAG_PREFIX,
    MODEL_TYPE,
    PINNED_TAG,
    REASON_TAG,
    SERIES_TAG,
    Checkpoint,
    Run,
    Series,
)
from mlflow_ckpt.store import _delete, _query
from mlflow_ckpt.store._connection import Connection, translated
from mlflow_ckpt.store._deleter import Deleter
from mlflow_ckpt.store._faults import is_denied
from mlflow_ckpt.store._missing import no_experiment
from mlflow_ckpt.store._trace import Trace, trace_of

_REASON_CHARACTERS = 1_000
_PAGE = 100


class Upkeep:
    """Looks after checkpoints that exist, on one tracking server."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client = connection.client

    # --- one checkpoint -------------------------------------------------------

    def committed(self, model_id: str, series: Series) -> Checkpoint | None:
        """The committed checkpoint with this model ID, if there is one."""
        with translated(f"read logged model {model_id}"):
            model = self._model(model_id)
        if model is None or model.tags.get(COMPLETE_TAG) != "true":
            return None
        return _query.to_checkpoint(model, series)

    def reread(self, checkpoint: Checkpoint, series: Series) -> Checkpoint | None:
        """What the server says of a committed checkpoint at this moment; `None` if it is gone."""
        return self.committed(checkpoint.model_id, series)

    def state_of(self, model_id: str) -> str | None:
        """The tag `ckpt.complete` of a LoggedModel, or `None` if it is deleted."""
        with translated(f"read logged model {model_id}"):
            model = self._model(model_id)
        return None if model is None else model.tags.get(COMPLETE_TAG)

    def is_registered(self, model_id: str) -> bool:
        """Whether a version in the model registry has its files; see `_query`."""
        return _query.is_registered(self._client, model_id)

    def quarantine(self, checkpoint: Checkpoint, reason: str) -> None:
        """Take a checkpoint whose bytes are wrong from every resolver. Its files stay."""
        with translated(f"mark {checkpoint.name} as corrupt"):
            self._connection.tag_model(
                checkpoint.model_id,
                {COMPLETE_TAG: "corrupt", REASON_TAG: reason[:_REASON_CHARACTERS]},
            )

    def trust(self, checkpoint: Checkpoint) -> None:
        """Give back a quarantined checkpoint whose bytes are right again."""
        with translated(f"mark {checkpoint.name} as whole"):
            self._connection.tag_model(checkpoint.model_id, {COMPLETE_TAG: "true", REASON_TAG: ""})

    def pin(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, whatever a keep policy says.

        Raises:
            CheckpointNotFound: If it is being deleted at this moment.
        """
        self._hold(checkpoint, f"pin {checkpoint.name}", PINNED_TAG)

    def unpin(self, checkpoint: Checkpoint) -> None:
        with translated(f"unpin {checkpoint.name}"):
            self._connection.tag_model(checkpoint.model_id, {PINNED_TAG: "false"})

    def hold_for_fork(self, checkpoint: Checkpoint, fork: str) -> None:
        """Keep the checkpoint at which the run `fork` begins.

        Raises:
            CheckpointNotFound: If it is being deleted at this moment.
        """
        action = f"note that a fork begins at {checkpoint.name}"
        self._hold(checkpoint, action, FORK_TAG_PREFIX + fork)

    def release_fork(self, model_id: str, fork: str) -> None:
        with translated(f"note that no fork begins at {model_id}"):
            self._connection.tag_model(model_id, {FORK_TAG_PREFIX + fork: "false"})

    # --- a series, an experiment ----------------------------------------------

    def corrupt(self, run: Run, series: Series) -> list[Checkpoint]:
        """What is quarantined, oldest step first."""
        return _query.corrupt(self._client, run, series)

    def in_hand(
        self, run: Run, series: Series
    ) -> tuple[list[tuple[Checkpoint, str]], list[tuple[Trace, ManifestError]]]:
        """Every committed or quarantined checkpoint with its tag `ckpt.complete`, and what has
        such a tag, and others that are not those of a checkpoint.
        """
        found: list[tuple[Checkpoint, str]] = []
        unreadable: list[tuple[Trace, ManifestError]] = []
        for trace, readable in self.seen(run, series):
            if isinstance(readable, Checkpoint):
                found.append((readable, trace.state))
            else:
                unreadable.append((trace, readable))
        return found, unreadable

    def seen(self, run: Run, series: Series) -> Iterator[tuple[Trace, Checkpoint | ManifestError]]:
        """Every committed or quarantined checkpoint, newest first, or why its tags are none."""
        clauses = [f"source_run_id = '{run.run_id}'", _query.tag(SERIES_TAG, series.name)]
        for model in self._search([run.experiment_id], clauses):
            if model.tags.get(COMPLETE_TAG, "") in ("true", "corrupt"):
                try:
                    yield trace_of(model), _query.to_checkpoint(model, series)
                except ManifestError as error:
                    yield trace_of(model), error

    def traces(self, run: Run, series: Series) -> list[Trace]:
        """Every LoggedModel of a series, in whatever state, newest first."""
        clauses = [f"source_run_id = '{run.run_id}'", _query.tag(SERIES_TAG, series.name)]
        return [trace_of(model) for model in self._search([run.experiment_id], clauses)]

    def experiments(self, name: str | None) -> list[str]:
        """IDs of the experiments called `name`, else of all; deleted ones too.

        Raises:
            NotFound: If there is none of that name.
        """
        with translated("search experiments"):
            found, names, token = [], [], None
            while True:
                page = self._client.search_experiments(
                    view_type=ViewType.ALL, max_results=_PAGE, page_token=token
                )
                found += [e.experiment_id for e in page if name is None or e.name == name]
                names += [e.name for e in page]
                token = page.token
                if not token:
                    break
        if name is not None and not found:
            raise no_experiment(self._client, name, names)
        return found

    def of_experiments(self, experiment_ids: list[str]) -> list[Trace]:
        """Every LoggedModel of this package in these experiments, newest first."""
        models = self._search(experiment_ids, [])
        return [trace_of(m) for m in models if m.model_type == MODEL_TYPE and SERIES_TAG in m.tags]

    def stage_of(self, run_id: str, experiment_id: str) -> str | None:
        """`active` or `deleted`; `None` if its experiment has no such run.

        Basic-auth, which asks the run for its experiment, denies everything about one that is
        gone for good.
        """
        with translated("read a run"):
            try:
                return str(self._client.get_run(run_id).info.lifecycle_stage)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                if not is_denied(error):
                    raise
                found = self._client.search_runs(
                    [experiment_id],
                    f"attributes.run_id = '{run_id}'",
                    run_view_type=ViewType.ALL,
                    max_results=1,
                )
                return str(found[0].info.lifecycle_stage) if found else None

    def remove(self, trace: Trace) -> str | None:
        """Delete an orphan: files, then record. Returns why something of it stays, or `None`.

        What holds it by the trace is overruled, and nothing else is.
        """
        asked = _delete.may_delete(self._connection, trace.model_id)
        if isinstance(asked, str):
            return asked
        if asked is True:
            self._connection.wait_until_quiet()
            if refused := _delete.hide(self._connection, trace.model_id):
                return refused
            model = self._model(trace.model_id)
            if model is not None and (since := set(_query.held(model.tags)) - set(trace.held)):
                with translated(f"keep {trace.name}"):
                    self._connection.tag_model(trace.model_id, {COMPLETE_TAG: trace.state})
                return ", ".join(sorted(since))
        left = _delete.remove(self._connection, trace.model_id, trace.artifact_uri)
        return (left.files or left.record) if left else None

    def finish(self, trace: Trace) -> str | None:
        """Go on with a deletion that was begun and not ended. Returns why it stays, or `None`.

        Whoever began it may have stopped before looking what holds it.
        """
        model = self._model(trace.model_id)
        if model is None:
            return None
        if model.tags.get(COMPLETE_TAG) != trace.state:
            return "kept by who began to delete it"
        try:
            checkpoint = _query.to_checkpoint(model, Series(name=trace.series))
        except ManifestError as error:
            return ", ".join(_query.held(model.tags)) or str(error)
        if Deleter(self._connection).delete([checkpoint], "deleting"):
            return None
        return ", ".join(_query.held(model.tags)) or "the server keeps it"

    # --- helpers --------------------------------------------------------------

    def _hold(self, checkpoint: Checkpoint, action: str, tag: str) -> None:
        """Set a tag that holds, then look whether somebody was faster; see `_delete`."""
        gone = None
        with translated(action):
            try:
                self._connection.tag_model(checkpoint.model_id, {tag: "true"})
            except MlflowException as error:
                if not _query.is_gone(self._client, checkpoint.model_id, error):
                    raise
                gone = error
        if gone or self.state_of(checkpoint.model_id) in (None, "deleting"):
            raise CheckpointNotFound(
                f"{checkpoint.name} of run {checkpoint.run_id} is being deleted at this moment: "
                "a keep policy or somebody else let it go. "
                f"`mlflow-ckpt list {checkpoint.run_id}` shows what is left."
            ) from gone

    def _model(self, model_id: str) -> LoggedModel | None:
        try:
            return self._client.get_logged_model(model_id)
        except MlflowException as error:
            if _query.is_gone(self._connection.client, model_id, error):
                return None
            raise

    def _search(self, experiment_ids: list[str], clauses: list[str]) -> Iterator[LoggedModel]:
        for experiment_id in experiment_ids:
            token: str | None = None
            while True:
                with translated("search logged models"):
                    page = self._client.search_logged_models(
                        [experiment_id],
                        filter_string=" AND ".join(clauses) or None,
                        max_results=_PAGE,
                        page_token=token,
                    )
                yield from page
                token = page.token
                if not token:
                    break
