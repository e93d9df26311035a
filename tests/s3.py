"""An S3 server for the tests: `moto`, as a process of its own, spoken to by the real client."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

import pytest
from leash import Leash, until
from wire import hold

BUCKET = "checkpoints"
_START_S = 60.0


class S3:
    """An object store on a free loopback port. It forgets everything when it ends.

    Args:
        folder: Where it logs; made if missing.
        bucket: What it has from the start.

    Attributes:
        environment: What a client of it, and a server in its name, has to be told.
    """

    def __init__(self, folder: Path, bucket: str | None = BUCKET) -> None:
        pytest.importorskip("boto3")
        pytest.importorskip("moto.server")
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "s3.log"
        self._bucket = bucket
        self._leash: Leash | None = None
        self._held, port = hold(None)
        self._port = port
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests-only",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }

    def __enter__(self) -> Self:
        try:
            self._start()
            if self._bucket:
                self.client().create_bucket(Bucket=self._bucket)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._leash is not None:
            self._leash.end()
        self._held.close()

    def client(self) -> Any:
        """A `boto3` client of it, whatever the environment says."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    def _start(self) -> None:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | self.environment,
            )
        self._leash = Leash(process)
        until(lambda: process.poll() is not None or self._answers(), _START_S)
        if not self._answers():
            raise RuntimeError(f"The S3 server does not answer: {self._log.read_text()[-2000:]}")

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.environment["MLFLOW_S3_ENDPOINT_URL"], timeout=5).close()
        except OSError:
            return False
        return True
