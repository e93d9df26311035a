"""Instants at which a process can be killed, each by a name and a number of its occurrence.

    count()               how often each instant came, for who wants to choose one
    arm(name, when, nth)  SIGKILL to this process before or after its nth occurrence

Both patch this process for good: call them in a child that is about to die. After a request
means that the server has carried it out and nobody here has heard of it.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from requests.adapters import HTTPAdapter
from sqlalchemy.engine.default import DefaultDialect

from mlflow_ckpt.journal import Entry, Journal
from mlflow_ckpt.store._connection import Connection

When = Literal["before", "after"]
Place = tuple[Any, str]


class HandedOver(LocalArtifactRepository):
    """No plain folder to us: it gets its files one by one, and each of them half by half."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        folder = Path(self.artifact_dir) / (artifact_path or "")
        folder.mkdir(parents=True, exist_ok=True)
        data = Path(local_file).read_bytes()
        (folder / Path(local_file).name).write_bytes(data[: len(data) // 2])
        self.halfway()
        super().log_artifact(local_file, artifact_path)

    def halfway(self) -> None:
        """Between the halves of a file."""


POINTS: dict[str, tuple[Place, ...]] = {
    "os.fsync": ((os, "fsync"),),
    "os.rename": ((os, "rename"),),
    "os.replace": ((os, "replace"),),
    "os.link": ((os, "link"),),
    "os.mkdir": ((os, "mkdir"),),
    "os.unlink": ((os, "unlink"),),
    "os.rmdir": ((os, "rmdir"),),
    "shutil.copyfile": ((shutil, "copyfile"),),
    "journal append": ((Journal, "append"),),
    "journal remove": ((Journal, "remove"),),
    "journal keep_copy": ((Journal, "keep_copy"),),
    "journal drop_copy": ((Journal, "drop_copy"),),
    "journal drop": ((Journal, "drop"),),
    "journal refuse": ((Journal, "refuse"),),
    "journal ask_again": ((Journal, "ask_again"),),
    "journal pin": ((Journal, "pin"),),
    "entry note": ((Entry, "note"),),
    "create_logged_model": ((MlflowClient, "create_logged_model"),),
    "log_batch": ((MlflowClient, "log_batch"),),
    "log_outputs": ((MlflowClient, "log_outputs"),),
    "finalize_logged_model": ((MlflowClient, "finalize_logged_model"),),
    "tag_model": ((Connection, "tag_model"),),
    "delete_logged_model": ((MlflowClient, "delete_logged_model"),),
    "search_logged_models": ((MlflowClient, "search_logged_models"),),
    "get_logged_model": ((MlflowClient, "get_logged_model"),),
    "set_tag": ((MlflowClient, "set_tag"),),
    "log_dict": ((MlflowClient, "log_dict"),),
    "log_artifact": ((HandedOver, "log_artifact"), (HttpArtifactRepository, "log_artifact")),
    "half of log_artifact": ((HandedOver, "halfway"),),
    "delete_artifacts": (
        (LocalArtifactRepository, "delete_artifacts"),
        (HttpArtifactRepository, "delete_artifacts"),
    ),
    "database commit": ((DefaultDialect, "do_commit"),),
    "HTTP request": ((HTTPAdapter, "send"),),
}


def count() -> dict[str, int]:
    """Count from now on; the answer is filled while this process lives."""
    seen: dict[str, int] = {}

    def noted(name: str) -> Callable[[], None]:
        def note() -> None:
            seen[name] = seen.get(name, 0) + 1

        return note

    for name, places in POINTS.items():
        for owner, attribute in places:
            _wrap(owner, attribute, before=noted(name))
    return seen


def arm(name: str, when: When, nth: int) -> None:
    """Kill this process before or after the `nth` time, from 1, that it comes to `name`."""
    times = 0

    def pull() -> None:
        nonlocal times
        times += 1
        if times == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, attribute in POINTS[name]:
        _wrap(owner, attribute, **{when: pull})


def _wrap(
    owner: Any,
    attribute: str,
    before: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
) -> None:
    real = getattr(owner, attribute)

    @wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if before:
            before()
        result = real(*args, **kwargs)
        if after:
            after()
        return result

    setattr(owner, attribute, wrapped)
