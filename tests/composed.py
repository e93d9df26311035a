"""Run the server of docs/compose.yaml as that file says, without Docker.

Its command, its environment and its configuration are taken from the file. What is replaced are
the secrets, and the hosts of the services: they listen on free loopback ports.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import yaml
from postgres import Postgres
from s3 import S3
from server_process import ServerProcess
from wire import hold

FILE = Path(__file__).parents[1] / "docs" / "compose.yaml"
NAME = "127.0.0.1"
_OF_THE_FILE = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL"
}  # fmt: skip
_OWN = ("--host=", "--port=", "--workers=")  # arguments that ServerProcess gives


def services() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"])


def workers() -> int:
    (found,) = (a for a in services()["mlflow"]["command"] if a.startswith("--workers="))
    return int(found.partition("=")[2])


class Composed:
    """PostgreSQL, an S3 server and `mlflow server`, wired as in the file.

    Args:
        folder: Where it may write.

    Attributes:
        uri: Tracking URI.
        s3: The object store.
        admin: What a client of the administrator has to be told.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self.s3 = undo.enter_context(S3(self._folder, bucket=None))
            self._postgres = undo.enter_context(Postgres())
            held, port = hold(None)
            undo.callback(held.close)
            self._set_up(port)
            self._make_bucket()
            server = undo.enter_context(self._server(port))
            self.uri = server.uri
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _set_up(self, port: int) -> None:
        place, _, self._database = self._postgres.uri.rpartition("@")[2].partition("/")
        self._hosts = {
            "database:5432/mlflow": f"{place}/{self._database}",
            "objects:8333": self.s3.environment["MLFLOW_S3_ENDPOINT_URL"].removeprefix("http://"),
            "localhost:5000": f"localhost:{port}",
            f"{NAME}:5000": f"{NAME}:{port}",
        }
        password = re.search(r":([0-9a-f]+)@", self._postgres.uri)
        assert password is not None
        self._values = {
            "SERVER_NAME": NAME,
            "DATABASE_PASSWORD": password[1],
            "S3_ACCESS_KEY": self.s3.environment["AWS_ACCESS_KEY_ID"],
            "S3_SECRET_KEY": self.s3.environment["AWS_SECRET_ACCESS_KEY"],
            "ADMIN_PASSWORD": secrets.token_hex(8),
            "SERVER_SECRET": secrets.token_hex(8),
        }
        self.admin = {
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self._values["ADMIN_PASSWORD"],
        }

    def _make_bucket(self) -> None:
        """Run the service `bucket`; a second run finds what the first one made."""
        service = services()["bucket"]
        for _ in range(2):
            subprocess.run(
                [self._filled(part) for part in service["command"]],
                check=True,
                env=os.environ | self._environment(service),
                stdin=subprocess.DEVNULL,
            )

    def _server(self, port: int) -> ServerProcess:
        service = services()["mlflow"]
        command = [self._filled(part) for part in service["command"]]
        assert command[:2] == ["mlflow", "server"]
        environment = self._environment(service)
        (config,) = service["configs"]
        path = self._folder / "auth.ini"
        content = yaml.safe_load(FILE.read_text(encoding="utf-8"))["configs"][config["source"]]
        path.write_text(self._filled(content["content"]))
        assert environment["MLFLOW_AUTH_CONFIG_PATH"] == config["target"]
        return ServerProcess(
            self._folder,
            port=port,
            store=environment.pop("MLFLOW_BACKEND_STORE_URI"),
            workers=workers(),
            options=[part for part in command[2:] if not part.startswith(_OWN)],
            environment={k: v for k, v in self.s3.environment.items() if k not in _OF_THE_FILE}
            | environment
            | {"MLFLOW_AUTH_CONFIG_PATH": str(path)},
        )

    def _environment(self, service: Mapping[str, Any]) -> dict[str, str]:
        return {key: self._filled(value) for key, value in service["environment"].items()}

    def _filled(self, text: str) -> str:
        """With the values and the hosts of this run."""
        filled = re.sub(r"\$\{(\w+):\?\}", lambda found: self._values[found[1]], text)
        for there, here in self._hosts.items():
            filled = re.sub(rf"\b{re.escape(there)}\b", here, filled)
        return filled
