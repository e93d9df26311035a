"""Reach the tracking server, find the run, and say in our words what went wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from sqlalchemy.exc import SQLAlchemyError

from mlflow_ckpt.errors import (
    NoActiveRun,
    ResumeError,
    RunDeleted,
    ServerAway,
    StoreError,
    UnsupportedStore,
)
from mlflow_ckpt.record import FORK_STATE_TAG, FORKING, Run
from mlflow_ckpt.store._faults import advice, is_away, is_denied
from mlflow_ckpt.store._missing import run_not_found
from mlflow_ckpt.store._reach import reason
from mlflow_ckpt.store._uri import (
    UPGRADE,
    hide_secret,
    refuse_missing_database,
    unreadable,
    without_secret,
)
from mlflow_ckpt.store._uri import portable as portable
from mlflow_ckpt.store._uri import refuse as refuse

_KIND_TAG = "mlflow.experimentKind"
_KIND = "custom_model_development"
_LATE_S = 2.0
_DRIVERS = {"MySQLdb": "mysqlclient", "psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
_STORE_TIMEOUT_S = 60.0  # Other clients than MLflow's own wait for no answer longer than this.


@dataclass
class Connection:
    """A tracking server, the same one from every thread and whatever `set_tracking_uri` says later.

    Attributes:
        uri: Its tracking URI.
        client: MLflow's own client of it.
        quiet_at: When nothing is on its way any more that nobody waits for, by the monotonic
            clock in seconds.
    """

    uri: str
    client: MlflowClient
    quiet_at: float = 0.0

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make requests that leave something behind.

        What timed out, whether it was made again or not, may be carried out later than what
        is asked after it.
        """
        began = time.monotonic()
        try:
            yield
        finally:
            now = time.monotonic()
            if now - began >= min(MLFLOW_HTTP_REQUEST_TIMEOUT.get(), _STORE_TIMEOUT_S):
                self.quiet_at = now + _LATE_S

    def wait_until_quiet(self) -> None:
        """Give what timed out a moment to be carried out: call it before deleting."""
        time.sleep(max(0.0, self.quiet_at - time.monotonic()))

    def tag_model(self, model_id: str, tags: dict[str, str]) -> None:
        """Set tags of a LoggedModel in one request.

        `MlflowClient.set_logged_model_tags` reads the model first, only to say more when it
        does not exist. This is the class that it calls next.
        """
        TrackingServiceClient(self.uri).set_logged_model_tags(model_id, tags)


def now_ms() -> int:
    """Milliseconds since the Unix epoch, as MLflow stamps its rows."""
    return time.time_ns() // 1_000_000


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Turn MLflow's exceptions into `StoreError`, with what was being done in front."""
    try:
        yield
    except MlflowException as error:
        raise _in_our_words(action, error) from error
    except ImportError as error:
        raise StoreError(
            f"The tracking database {_here()} needs a driver: {error}. "
            f"Type: pip install {_DRIVERS.get(error.name or '', error.name)}"
        ) from error
    except SQLAlchemyError as error:
        raise (ServerAway if is_away(error) else StoreError)(
            f"The tracking database {_here()} could not {action}: {_text(error)}"
        ) from error


def _in_our_words(action: str, error: MlflowException) -> StoreError:
    if error.error_code == "ENDPOINT_NOT_FOUND":
        return UnsupportedStore(
            f"The tracking server {_here()} does not know logged models ({action}). {UPGRADE}"
        )
    if is_denied(error):
        return StoreError(
            f"The tracking server {_here()} does not permit to {action}. {advice(error)}"
        )
    if not is_away(error):
        return StoreError(f"The tracking server refused to {action}: {_text(error)}")
    why = reason(error)
    if why is None:
        return ServerAway(f"The tracking server could not {action}: {_text(error)}")
    return ServerAway(
        f"The tracking server {_here()} could not {action}: it does not answer ({why})."
    )


def _here() -> str:
    return without_secret(mlflow.get_tracking_uri())


def _text(error: Exception) -> str:
    return hide_secret(error, mlflow.get_tracking_uri())


def connect(uri: str) -> Connection:
    """Reach a tracking URI.

    Raises:
        StoreError: If it is none, or a database that is not there or cannot be reached.
    """
    refuse_missing_database(uri)
    with translated("connect"):
        try:
            return Connection(uri, MlflowClient(tracking_uri=uri))
        except UnsupportedModelRegistryStoreURIException as error:
            raise unreadable(uri) from error


def use_tracking_uri(uri: str | None) -> None:
    """Read from `uri` from now on, or from where MLflow points already (`None`).

    Raises:
        StoreError: If the URI is none, or names an SQLite file that does not exist or is none.
        UnsupportedStore: If it names the file store.
    """
    if uri is not None:
        mlflow.set_tracking_uri(uri)
    current = mlflow.get_tracking_uri()
    refuse(current)
    refuse_missing_database(current)


def current_run_id(run_id: str | None) -> str:
    """`run_id`, else the active run's, else `MLFLOW_RUN_ID`.

    Raises:
        NoActiveRun: If there is none of them.
    """
    if run_id:
        return run_id
    active = mlflow.active_run()
    if active is not None:
        return str(active.info.run_id)
    if from_environment := os.environ.get("MLFLOW_RUN_ID"):
        return from_environment
    raise NoActiveRun(
        "No MLflow run is active and none was named. Put the call into "
        f"`with mlflow.start_run():`, or name a run: run_id='...' or MLFLOW_RUN_ID.{_last_run()}"
    )


def _last_run() -> str:
    """How to go on in the run that this thread has ended, by itself or by autologging.

    `mlflow.last_active_run()` makes a request; what it asks first (`fluent._last_active_run_id`)
    suffices.
    """
    last = fluent._last_active_run_id.get()  # noqa: SLF001 (see above)
    if last is None:
        return ""
    return (
        f" The last one has ended, as one of autologging does behind its fit. To go on in it: "
        f"`with mlflow.start_run(run_id={last!r}):`"
    )


def forget_active_run(run_id: str, *, ask: bool) -> None:
    """End the active run as KILLED if it is this one; without a request if `ask` is not set.

    MLflow ends a run in its `with` statement only while the run is on the thread's stack of
    active runs (`fluent._active_run_stack`), and `mlflow.end_run` always makes a request.
    """
    active = mlflow.active_run()
    if active is None or active.info.run_id != run_id:
        return
    if ask:
        with translated(f"mark run {run_id} as KILLED"):
            mlflow.end_run("KILLED")
    else:
        fluent._active_run_stack.get().pop()  # noqa: SLF001 (see above)


def get_run(client: MlflowClient, run_id: str) -> Run:
    """Look up a run.

    Raises:
        RunNotFound: If the server does not know it.
        RunDeleted: If it was deleted.
        ResumeError: If it is a fork that was broken off while it was made.
    """
    with translated(f"read run {run_id!r}"):
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise run_not_found(client, run_id) from error
            raise
    if found.info.lifecycle_stage == LifecycleStage.DELETED:
        raise RunDeleted(
            f"The run {run_id!r} is deleted. Restore it with: mlflow runs restore --run-id {run_id}"
        )
    if found.data.tags.get(FORK_STATE_TAG) == FORKING:
        raise ResumeError(
            f"The run {run_id!r} is a fork that is being made, or was broken off and is not whole. "
            f"If it was: mlflow runs delete --run-id {run_id}, and fork again."
        )
    return Run(
        run_id=found.info.run_id,
        experiment_id=found.info.experiment_id,
        name=found.info.run_name or "",
        status=found.info.status,
        tags=dict(found.data.tags),
        params=dict(found.data.params),
        metric_names=frozenset(found.data.metrics),
        links=len(found.outputs.model_outputs) if found.outputs else 0,
        artifact_uri=found.info.artifact_uri,
    )


def show_as_model_development(client: MlflowClient, experiment_id: str) -> None:
    """Say that the experiment holds models and no agents, unless somebody said otherwise.

    MLflow guesses the kind of an experiment that has no tag, and in its GenAI view calls
    models "Agent versions". The UI of 3.17 ignores the tag for a switch of its own, GenAI or
    Model training, which each browser remembers.
    """
    with translated("read the experiment"):
        if _KIND_TAG not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, _KIND_TAG, _KIND)
