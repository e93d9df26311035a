"""The tracking servers and artifact stores that the tests run on.

    local         sqlite and a folder, with no server
    proxied       mlflow server, sqlite; artifacts go through the server to a folder
    postgres-s3   mlflow server, PostgreSQL; artifacts go from the client to S3
    basic-auth    mlflow server that asks for a user, here one without privileges; artifacts
                  go through the server
    production    what docs/compose.yaml starts; for the tests of that page

Each is started once in a process that tests, when the first test asks for it.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import pytest
from composed import Composed
from postgres import Postgres
from s3 import BUCKET, S3
from server_process import ServerProcess


class Backend:
    """A tracking server and the artifact store behind it.

    Args:
        folder: Where it may write.
        database: A migrated sqlite file to begin with.

    Attributes:
        uri: What to set as the tracking URI.
        environment: What a client has to be told besides.
    """

    name: ClassVar[str]
    uri: str

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        self.database = database
        self.environment: Mapping[str, str] = {}
        self._undo = ExitStack()

    def start(self) -> None:
        """Make it answer.

        Raises:
            pytest.skip.Exception: If this machine lacks what it needs.
        """

    def close(self) -> None:
        self._undo.close()

    def uri_in(self, folder: Path) -> str:
        """The tracking URI for one test, which may write to `folder`."""
        return self.uri

    def new_experiment(self, test: str, folder: Path) -> str:
        """An experiment for that test, once the client has been told what it has to be told."""
        return str(mlflow.MlflowClient().create_experiment(f"{test}-{uuid.uuid4().hex}"))

    def _serve(self, **arguments: Any) -> ServerProcess:
        server = ServerProcess(self.folder, **arguments)
        self._undo.enter_context(server)
        self.uri = server.uri
        return server


class Local(Backend):
    """A database for each test, and its artifacts in the test's own folder."""

    name = "local"

    def uri_in(self, folder: Path) -> str:
        shutil.copy(self.database, folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    def new_experiment(self, test: str, folder: Path) -> str:
        place = (folder / "artifacts").as_uri()
        return str(mlflow.MlflowClient().create_experiment("tests", artifact_location=place))


class Proxied(Backend):
    name = "proxied"

    def start(self) -> None:
        self._serve(database=self.database)


class PostgresS3(Backend):
    name = "postgres-s3"
    workers = 1

    def start(self) -> None:
        self.s3 = self._undo.enter_context(S3(self.folder))
        postgres = self._undo.enter_context(Postgres())
        self.environment = self.s3.environment
        root = ("--default-artifact-root", f"s3://{BUCKET}/mlflow", "--no-serve-artifacts")
        self._serve(store=postgres.uri, options=root, workers=self.workers)


class WithUsers(Backend):
    """A server that asks for a user, and is used as one without privileges.

    It grants nothing by default, so that what a test may do it was given.
    """

    admin: Mapping[str, str]

    def new_user(self, name: str) -> dict[str, str]:
        """Make a user without any permission; what a client of that user has to be told."""
        user = f"{name}-{uuid.uuid4().hex[:8]}", secrets.token_hex(8)
        self._ask("2.0/mlflow/users/create", username=user[0], password=user[1])
        return {"MLFLOW_TRACKING_USERNAME": user[0], "MLFLOW_TRACKING_PASSWORD": user[1]}

    def permit(self, user: Mapping[str, str], experiment_id: str, permission: str) -> None:
        """Give a user `READ`, `EDIT` or `MANAGE` on an experiment."""
        self._ask(
            "3.0/mlflow/users/permissions/grant",
            username=user["MLFLOW_TRACKING_USERNAME"],
            resource_type="experiment",
            resource_id=experiment_id,
            permission=permission,
        )

    def permitted(self, run_id: str, permission: str) -> dict[str, str]:
        """A new user with this permission on the experiment of the run."""
        user = self.new_user(permission.lower())
        self.permit(user, mlflow.get_run(run_id).info.experiment_id, permission)
        return user

    def _ask(self, path: str, **body: str) -> None:
        """Make a request in the name of the administrator.

        MLflow's own client of these is of the module that makes the server, and imports it.
        """
        secret = base64.b64encode(":".join(self.admin.values()).encode()).decode()
        request = urllib.request.Request(
            f"{self.uri}/api/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {secret}"},
        )
        urllib.request.urlopen(request, timeout=60).close()


class BasicAuth(WithUsers):
    """Passwords are kept as hashes that take 50 ms to check; the server remembers for a minute
    which were right.
    """

    name = "basic-auth"

    def start(self) -> None:
        password = secrets.token_hex(8)
        self.admin = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "basic_auth.ini"
        settings.write_text(
            "[mlflow]\n"
            "default_permission = NO_PERMISSIONS\n"
            f"database_uri = sqlite:///{self.folder / 'basic_auth.db'}\n"
            "auth_cache_ttl_seconds = 60\n"
        )
        self._serve(
            database=self.database,
            options=(
                *("--artifacts-destination", (self.folder / "served").as_uri()),
                *("--app-name", "basic-auth"),
            ),
            environment={
                "MLFLOW_AUTH_CONFIG_PATH": str(settings),
                "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
                "MLFLOW_AUTH_ADMIN_PASSWORD": password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            },
        )
        self.environment = self.new_user("trainer")


class Production(WithUsers):
    """What docs/compose.yaml starts: PostgreSQL, S3, several workers, users."""

    name = "production"

    def start(self) -> None:
        composed = self._undo.enter_context(Composed(self.folder))
        self.uri, self.admin, self.s3 = composed.uri, composed.admin, composed.s3
        self.environment = self.s3.environment | self.new_user("trainer")


@contextmanager
def as_user(user: Mapping[str, str]) -> Iterator[None]:
    """Be somebody else; nobody, if `user` says nothing."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.delenv(name, raising=False)
        for name, value in user.items():
            patch.setenv(name, value)
        yield


KINDS: dict[str, type[Backend]] = {
    kind.name: kind for kind in (Local, Proxied, PostgresS3, BasicAuth, Production)
}
EVERYWHERE = tuple(name for name in KINDS if name != Production.name)


class Backends:
    """Those of one process, each started when it is first asked for."""

    def __init__(self, folder: Path, database: Path) -> None:
        self._folder = folder
        self._database = database
        self._running: dict[str, Backend] = {}
        self._missing: dict[str, str] = {}

    def get(self, name: str) -> Backend:
        """A running one; skips the test where it cannot be had."""
        if name in self._missing:
            pytest.skip(self._missing[name])
        if name not in self._running:
            backend = KINDS[name](self._folder / name, self._database)
            try:
                backend.start()
            except pytest.skip.Exception as error:
                backend.close()
                self._missing[name] = str(error)
                raise
            except BaseException:
                backend.close()
                raise
            self._running[name] = backend
        return self._running[name]

    def close(self) -> None:
        for backend in self._running.values():
            backend.close()
