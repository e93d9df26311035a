"""A clean environment and a fresh experiment for every test."""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
from collections.abc import Callable, Generator, Iterator
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
from backends import EVERYWHERE, Backend, Backends, Local
from calling import Cli, caller
from sqlalchemy import event
from sqlalchemy.engine import Engine

from mlflow_ckpt import resume, saving
from mlflow_ckpt.reporter import SWITCH
from mlflow_ckpt.store import _deleter

# A report at the end of each of some thousand fits would take minutes. These are about reports,
# or about what a user starts, kills and cuts off with everything switched on.
WITH_REPORTS = {
    "test_callback",
    "test_fault_kill",
    "test_fault_machines",
    "test_fault_proxy",
    "test_fault_server",
    "test_fault_signals",
    "test_kill",
    "test_kill_spool",
    "test_notebook",
    "test_page",
    "test_production",
    "test_projects",
    "test_relaunching",
    "test_reporter",
    "test_signals",
    "test_ui",
    "test_verifying",
}


@event.listens_for(Engine, "connect")
def wait_for_locks(connection: Any, _record: object) -> None:
    """Let SQLite wait out a garbage collection that another thread does in a transaction.

    Behind hundreds of models in one process that takes longer than the driver's 5 seconds.
    """
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA busy_timeout = 120000")


def pytest_collection_finish() -> None:
    """Keep what was imported out of every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Collect the garbage of every test, and keep what it leaves out of later collections.

    TensorFlow 2.21 destroys an iterator over a dataset only when its autotuning has slept out,
    which takes the longer the older the iterator is and the more of them there are: a hundred
    at once stopped a test in its middle for 107 seconds. And it lets go of no graph of an inner
    function, so that every collection would look through those of all fits before.
    """
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run tests that are marked with `backends` on several.

    A test keeps its name where it is alone with a local store; the name of another backend
    stands in its ID. The servers take their time, so that they are `slow` unless the marker
    says `quick`: all of them with `quick=True`, or those that it names.
    """
    marker = metafunc.definition.get_closest_marker("backends")
    names = (marker.args or EVERYWHERE) if marker else (Local.name,)
    if names == (Local.name,):
        return
    assert marker is not None
    asked = marker.kwargs.get("quick", ())
    quick = names if asked is True else asked
    metafunc.parametrize(
        "backend_name",
        [
            pytest.param(name, id=pytest.HIDDEN_PARAM)
            if name == Local.name
            else pytest.param(name, id=name, marks=[] if name in quick else [pytest.mark.slow])
            for name in names
        ],
        indirect=True,
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated sqlite file: MLflow takes seconds to make one, a copy takes none."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.MlflowClient().search_experiments()
    return path


@pytest.fixture(scope="session")
def backends(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Backends]:
    """Every backend that the tests of this process have asked for."""
    found = Backends(tmp_path_factory.mktemp("backends"), empty_database)
    yield found
    found.close()


@pytest.fixture
def backend_name(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", Local.name)


@pytest.fixture
def backend(backends: Backends, backend_name: str) -> Backend:
    """What this test runs on."""
    return backends.get(backend_name)


@pytest.fixture(autouse=True)
def store_of_its_own(request: pytest.FixtureRequest, backend_name: str) -> None:
    """Give every test a tracking store, but those that need none: copying one takes time."""
    if request.node.get_closest_marker("pure") is None:
        request.getfixturevalue("tracking")


@pytest.fixture
def tracking(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[str]:
    """Point MLflow at a store with an experiment of this test's own, from its own folder."""
    for name in [n for n in os.environ if n.startswith("MLFLOW_") and "TELEMETRY" not in n]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "spool"))
    if request.module.__name__.rpartition(".")[2] not in WITH_REPORTS:
        monkeypatch.setenv(SWITCH, "false")
    for name, value in backend.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    _deleter._said.clear()
    uri = backend.uri_in(tmp_path)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=backend.new_experiment(request.node.originalname, tmp_path))
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


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `mlflow-ckpt` with these arguments, in this process."""
    return caller(capsys, monkeypatch)
