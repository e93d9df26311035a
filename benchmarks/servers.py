"""A tracking server of MLflow's own on the loopback interface, for as long as it is needed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_START_S = 120.0
_STOP_S = 20.0


@contextmanager
def serve(
    folder: Path,
    *,
    workers: int | None = None,
    started: Callable[[int], None] = lambda _: None,
) -> Iterator[str]:
    """Serve `<folder>/mlflow.db`, artifacts proxied from `<folder>/served`; yields the URI.

    Job execution, which has nothing to do with checkpoints, is switched off: it is half a
    dozen more processes that start, and then idle, on the cores that are measured.

    Args:
        folder: Holds the database, which is made if there is none.
        workers: Processes of the server; `None` takes MLflow's default.
        started: Told the ID of the server's process group.

    Raises:
        RuntimeError: If the server ends, or does not answer in time.
    """
    port = _free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", (folder / "served").as_uri()]
    command += ["--workers", str(workers)] if workers else []
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        try:
            _wait_for(uri, server, folder / "server.log")
            started(server.pid)
            yield uri
        finally:
            _stop(server)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"The tracking server did not answer. Its log ends: {_end(log)}")


def _end(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the workers it forked: they share a session that nobody else is in."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, sign)
        except ProcessLookupError:
            break
        try:
            server.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
    server.wait()
