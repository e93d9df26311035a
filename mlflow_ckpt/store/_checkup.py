"""Ask a tracking server how it is, and leave nothing behind on it.

Leans on `mlflow.store.db.utils` for what MLflow itself says of a database's schema. Times are
seconds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.environment_variables import (
    MLFLOW_EXPERIMENT_ID,
    MLFLOW_EXPERIMENT_NAME,
)
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.db import utils as databases
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from requests.exceptions import RequestException

from mlflow_ckpt.errors import NotFound, ServerAway, StoreError
from mlflow_ckpt.record import Run
from mlflow_ckpt.store import _delete
from mlflow_ckpt.store._connection import Connection, connect, portable, translated
from mlflow_ckpt.store._faults import advice, is_away, is_denied
from mlflow_ckpt.store._reach import reason
from mlflow_ckpt.store._speed import folder_of, patient

_VERSION_S = 5.0
_ASKED = 5
_DEFAULT_EXPERIMENT = "0"
_NO_TAG = "no-such-tag"


@dataclass(frozen=True, kw_only=True)
class Server:
    """What answers at a tracking URI.

    Attributes:
        kind: `http`, or the database: `sqlite`, `postgresql`, ...
        version: MLflow's, of a server; of a database the revision of its schema, "" if empty.
        expected: The revision that this MLflow writes; "" for a server.
    """

    kind: str
    version: str
    expected: str = ""


@dataclass(frozen=True, kw_only=True)
class Visitor:
    """Who this is to the server.

    Attributes:
        name: Of the user; "" if none is named.
        asked: Whether the server asks who one is.
        denied: Why this user may not make a run in the experiment; "" if that is permitted,
            `None` if there is nobody to ask.
    """

    name: str
    asked: bool
    denied: str | None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an experiment's artifacts go.

    Attributes:
        experiment_id, experiment: ID and name.
        artifact_uri: The experiment's artifact location.
        folder: If that is a folder of this machine.
        proxied: Whether they go through the tracking server.
    """

    experiment_id: str
    experiment: str
    artifact_uri: str
    folder: Path | None
    proxied: bool


def current_uri() -> str:
    """The tracking URI that is current, whatever it is."""
    return str(mlflow.get_tracking_uri())


class Checkup:
    """Asks one tracking server.

    Args:
        uri: Its tracking URI, to which `use_tracking_uri` did not object.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._made: Connection | None = None

    @property
    def _connection(self) -> Connection:
        if self._made is None:
            self._made = connect(self.uri)
        return self._made

    @property
    def _client(self) -> MlflowClient:
        return self._connection.client

    @property
    def host(self) -> str:
        """Of a server."""
        return urlsplit(self.uri).hostname or ""

    @property
    def is_http(self) -> bool:
        return urlsplit(self.uri).scheme in ("http", "https")

    # --- the server -----------------------------------------------------------

    def server(self) -> Server:
        """What answers, and its version.

        Raises:
            ServerAway: If nothing does, within 5 s over HTTP.
            StoreError: If it is no tracking server, or refuses.
        """
        if self.is_http:
            return Server(kind="http", version=self._http_version())
        kind = self.uri.partition(":")[0].partition("+")[0]
        with translated("be reached"):
            engine = databases.create_sqlalchemy_engine(self.uri)
            try:
                found = databases._get_schema_version(engine)  # noqa: SLF001
            finally:
                engine.dispose()
        latest = databases._get_latest_schema_revision()  # noqa: SLF001
        return Server(kind=kind, version=found or "", expected=latest)

    def _http_version(self) -> str:
        creds = get_default_host_creds(self.uri)
        try:
            answer = http_request(
                creds, "/version", "GET", timeout=_VERSION_S, max_retries=0, raise_on_status=False
            )
        except (MlflowException, RequestException) as error:
            raise ServerAway(
                f"{portable(self.uri)} does not answer: {reason(error) or error} "
                f"(waited for {_VERSION_S:g} s at most)."
            ) from error
        text = str(answer.text).strip()
        if answer.status_code >= 500:
            raise ServerAway(f"{portable(self.uri)} answers with status {answer.status_code}.")
        if answer.status_code in (401, 403):
            denial = RequestException(response=answer)
            raise StoreError(f"{portable(self.uri)} lets nobody in like that. {advice(denial)}")
        if answer.status_code != 200 or not text[:1].isdigit() or len(text) > 40:
            raise StoreError(
                f"Expected an MLflow server at {portable(self.uri)}. Received: status "
                f"{answer.status_code} for /version."
            )
        return text

    def round_trip(self) -> float:
        """Median of a few requests, in seconds."""
        return statistics.median(self._ask() for _ in range(_ASKED))

    def _ask(self) -> float:
        began = time.monotonic()
        with translated("search experiments"), patient():
            self._client.search_experiments(max_results=1)
        return time.monotonic() - began

    def search_models(self, experiment_id: str) -> None:
        """Ask for logged models.

        Raises:
            UnsupportedStore: If the server has none.
        """
        with translated("search logged models"), patient():
            self._client.search_logged_models([experiment_id], max_results=1)

    # --- who ------------------------------------------------------------------

    def visitor(self, experiment_id: str) -> Visitor:
        """Who this is, and whether they may train in the experiment.

        MLflow's basic-auth asks the same permission of who deletes a tag of an experiment as of
        who makes a run in it, so one is deleted that is not there.
        """
        if not self.is_http:
            return Visitor(name="", asked=False, denied=None)
        creds = get_default_host_creds(self.uri)
        name = creds.username or unquote(urlsplit(self.uri).username or "")
        name = name or ("the owner of a token" if creds.token else "")
        denied = ""
        with translated("ask for permissions"), patient():
            try:
                self._client.delete_experiment_tag(experiment_id, _NO_TAG)
            except MlflowException as error:
                if is_denied(error):
                    denied = advice(error)
                elif is_away(error):
                    raise
        return Visitor(name=name, asked=self._asks_who(), denied=denied)

    def may_delete(self, model_id: str) -> bool | str:
        """Whether this user may delete a logged model; why not; `False` if there is none."""
        with patient():
            return _delete.may_delete(self._connection, model_id)

    def _asks_who(self) -> bool:
        parts = urlsplit(self.uri)
        host = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        creds = get_default_host_creds(host)
        nobody = type(creds)(host=host, ignore_tls_verification=creds.ignore_tls_verification)
        answer = http_request(
            nobody,
            "/api/2.0/mlflow/experiments/search",
            "GET",
            params={"max_results": 1},
            timeout=_VERSION_S,
            max_retries=0,
            raise_on_status=False,
        )
        return answer.status_code in (401, 403)

    # --- where artifacts go ---------------------------------------------------

    def place(self, run: Run | None, name: str | None) -> Place:
        """Where artifacts go: of a run, of an experiment, or of the one that is current.

        Raises:
            NotFound: If there is no such experiment.
        """
        with translated("read an experiment"), patient():
            found = self._experiment(run, name)
        scheme = urlsplit(found.artifact_location).scheme
        proxied = scheme in ("mlflow-artifacts", "http", "https")
        return Place(
            experiment_id=found.experiment_id,
            experiment=found.name,
            artifact_uri=found.artifact_location,
            folder=folder_of(
                get_artifact_repository(found.artifact_location, tracking_uri=self.uri)
            ),
            proxied=proxied,
        )

    def _experiment(self, run: Run | None, name: str | None) -> Experiment:
        by_name = name or (None if run else MLFLOW_EXPERIMENT_NAME.get())
        if by_name:
            found = self._client.get_experiment_by_name(by_name)
            if found is None:
                raise NotFound(f"No experiment is called {by_name!r} on this tracking server.")
            return found
        by_id = run.experiment_id if run else MLFLOW_EXPERIMENT_ID.get() or _DEFAULT_EXPERIMENT
        return self._client.get_experiment(by_id)
