"""PostgreSQL from the installed binaries, for the tests alone.

It refuses to run as root, and its folder has to be reached by who runs it: so where the tests
run as root it gets an existing user without privileges, and a folder outside pytest's, which
is closed to others.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import pytest
from leash import Leash, until
from wire import hold

_USERS = ("postgres", "nobody")
_INSTALLED = Path("/usr/lib/postgresql")  # Debian keeps them from the path
_START_S = 60.0
_SETTINGS = {
    "fsync": "off",  # its data die with the tests
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "synchronous_commit": "off",
    "unix_socket_directories": "",
}


class Postgres:
    """A cluster of its own on a free loopback port, which ends with this process.

    Attributes:
        uri: Of its database, password included.
    """

    def __init__(self) -> None:
        binaries = _binaries()
        if binaries is None:
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        pytest.importorskip("psycopg2")
        self._binaries = binaries
        self._as: dict[str, Any] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="mlflow-ckpt-postgres-"))
        self._leash: Leash | None = None
        self._held, self._port = hold(None)
        self._password = secrets.token_hex(16)
        # The driver is named because SQLAlchemy's own choice is another one from 2.1 on.
        place = f"mlflow:{self._password}@127.0.0.1:{self._port}/postgres"
        self.uri = f"postgresql+psycopg2://{place}"

    def __enter__(self) -> Self:
        try:
            if os.getuid() == 0:
                self._as = _someone_else(self.folder)
            self._make()
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._leash is not None:
            self._leash.end()
        self._held.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log(self) -> str:
        """The end of what it has said."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def _make(self) -> None:
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        if self._as:
            os.chown(password, self._as["user"], self._as["group"])
        command = [str(self._binaries / "initdb"), "--pgdata", str(self.folder / "data")]
        command += ["--username", "mlflow", "--pwfile", str(password), "--auth", "scram-sha-256"]
        command += ["--encoding", "UTF8", "--locale", "C", "--no-sync"]
        with (self.folder / "log").open("wb") as log:
            done = subprocess.run(
                command, cwd=self.folder, stdout=log, stderr=log, check=False, **self._as
            )
        if done.returncode:
            raise RuntimeError(f"initdb failed: {self.log()}")

    def _start(self) -> None:
        command = [str(self._binaries / "postgres"), "-D", str(self.folder / "data")]
        command += ["-p", str(self._port)]
        for name, value in _SETTINGS.items():
            command += ["-c", f"{name}={value}"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self._as,
            )
        # It answers SIGQUIT by ending at once, and its processes with it.
        self._leash = Leash(process, stop=signal.SIGQUIT, folder=str(self.folder))
        if not until(lambda: process.poll() is not None or self._answers(), _START_S):
            raise RuntimeError(f"PostgreSQL does not answer: {self.log()}")
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL does not start: {self.log()}")

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.uri.replace("+psycopg2", ""), connect_timeout=5).close()
        except psycopg2.OperationalError:
            time.sleep(0.1)
            return False
        return True


def _binaries() -> Path | None:
    """Where initdb and postgres are, of several the newest."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    found = sorted(_INSTALLED.glob("[0-9]*/bin"), key=_version, reverse=True)
    return next((f for f in [*folders, *found] if (f / "postgres").exists()), None)


def _version(binaries: Path) -> int:
    return int(re.match(r"\d+", binaries.parent.name)[0])  # type: ignore[index]


def _someone_else(folder: Path) -> dict[str, Any]:
    """Give the folder to a user without privileges; what `subprocess` needs to be that one."""
    for name in _USERS:
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(_USERS)}")
