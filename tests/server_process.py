"""MLflow's own server as a process, to be killed and started again under a running training."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from leash import Leash
from wire import hold

_START_S = 120.0
_END_S = 10.0
_POLL_S = 0.05


class ServerProcess:
    """`mlflow server` on a port that it keeps over restarts.

    Its database is `<folder>/mlflow.db`, its artifacts go through its proxy to
    `<folder>/served`, unless the arguments say otherwise; its output goes to
    `<folder>/server.log`. It ends with this process.

    Args:
        folder: Made if missing; the server runs in it.
        port: A free one for `None`.
        database: A migrated file to begin with: MLflow takes seconds to make one.
        workers: Processes of the server. MLflow's own default is 4.
        store: URI of another database.
        options: Replace those that send artifacts through the proxy.
        environment: Added to the server's own.
        program: `server`, or `ui`.

    Attributes:
        uri: Its tracking URI, whether it runs or not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        database: Path | None = None,
        workers: int = 1,
        store: str | None = None,
        options: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        program: str = "server",
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if database is not None and not (folder / "mlflow.db").exists():
            shutil.copy(database, folder / "mlflow.db")
        self.folder = folder.absolute()
        self._workers, self._program = workers, program
        self._store = store or f"sqlite:///{self.folder / 'mlflow.db'}"
        proxied = ("--artifacts-destination", (self.folder / "served").as_uri())
        self._options = proxied if options is None else tuple(options)
        self._added = dict(environment or {})
        self._leash: Leash | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._held, self._port = hold(port)
        self.uri = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._held.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._held.close()

    def start(self) -> None:
        """Start it and wait until it answers. Does nothing while it runs.

        Raises:
            RuntimeError: If it ends, or does not answer within two minutes.
        """
        if self._process is not None:
            return
        command = [sys.executable, "-m", "mlflow", self._program, "--host", "127.0.0.1"]
        command += ["--port", str(self._port), "--workers", str(self._workers)]
        command += self._options
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                # Not among the arguments, where every user of the machine reads the password.
                env=_environment() | {"MLFLOW_BACKEND_STORE_URI": self._store} | self._added,
            )
        self._leash = Leash(self._process)
        try:
            self._wait(self._process)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL for all of its session. Does nothing while it does not run."""
        if self._process is None or self._leash is None:
            return
        self._leash.end()
        self._process = self._leash = None
        # Its workers, which hold the port, are not ours to wait for.
        deadline = time.monotonic() + _END_S
        while self._answers_the_phone() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def restart(self) -> None:
        """Kill it and start it again, with the same database, artifacts and port."""
        self.kill()
        self.start()

    def _answers_the_phone(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(_POLL_S)
        log = (self.folder / "server.log").read_text(errors="replace")
        raise RuntimeError(f"The tracking server did not answer. Its log ends: {log[-2000:]}")


def _environment() -> dict[str, str]:
    """This process's without what it tells MLflow, and without the server's idle job workers."""
    plain = {k: v for k, v in os.environ.items() if not k.lstrip("_").startswith("MLFLOW_")}
    return plain | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
