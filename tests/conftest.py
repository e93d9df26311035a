"""A clean environment and a fresh tracking database for every test."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# A shell's background job begins with Ctrl-C ignored, and so would whatever the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import keras
import mlflow
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mlflow_ckpt import resume, saving


@event.listens_for(Engine, "connect")
def wait_for_locks(connection: Any, _record: object) -> None:
    """Let SQLite wait out a garbage collection that another thread does in a transaction.

    Behind hundreds of models in one process that takes longer than the driver's 5 seconds.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout = 120000")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated sqlite file: MLflow takes seconds to make one, a copy takes none."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.MlflowClient().search_experiments()
    return path


@pytest.fixture(autouse=True)
def store_of_its_own(request: pytest.FixtureRequest) -> None:
    """Give every test a tracking store, but those that need none: copying one takes time."""
    if request.node.get_closest_marker("pure") is None:
        request.getfixturevalue("tracking")


@pytest.fixture
def tracking(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Point MLflow at a store of this test's own, from its own folder."""
    for name in [n for n in os.environ if n.startswith("MLFLOW_") and "TELEMETRY" not in n]:
        monkeypatch.delenv(name)
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "spool"))
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(
        experiment_id=mlflow.MlflowClient().create_experiment(
            "tests", artifact_location=(tmp_path / "artifacts").as_uri()
        )
    )
    keras.utils.set_random_seed(7)
    yield uri
    while mlflow.active_run():
        mlflow.end_run()
    keras.utils.clear_session(free_memory=False)


@pytest.fixture
def another_process() -> Callable[[], None]:
    """Call it to forget what this process did, as a restarted script has."""

    def forget() -> None:
        resume._PROGRESS.clear()
        saving._LANES.clear()

    return forget
