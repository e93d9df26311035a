"""What somebody reads who forgot something: the whole text, down to the line to type next.

What Keras and MLflow say by themselves, such as "You must call `compile()` before using the
model.", is theirs; it is held here where a first-time user meets it through this package.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import fit, mlp
from calling import Cli
from click.testing import CliRunner
from mlflow.tracking import fluent

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import (
    CheckpointError,
    ConfigError,
    MonitorMissing,
    NoActiveRun,
    RunNotFound,
    ServerAway,
    StoreError,
    UnsupportedStore,
)

ROOT = Path(__file__).parents[1]
NOBODY = "0123456789abcdef0123456789abcdef"
UPGRADE = (
    "Checkpoints are MLflow 3 logged models. Use a tracking server of MLflow 3 or later "
    'with a database, or mlflow.set_tracking_uri("sqlite:///mlflow.db").'
)
NO_URI = (
    "Expected a tracking URI, such as http://host:5000 or sqlite:////path/to/mlflow.db. "
    "Received: {received!r}. {meant}Set it with MLFLOW_TRACKING_URI or --tracking-uri."
)


def text_of(error: type[Exception], do: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        do()
    return str(caught.value)


# --- the active run -----------------------------------------------------------


def test_a_fit_without_a_run() -> None:
    fluent._last_active_run_id.set(None)  # Other tests of this process have ended runs.
    assert text_of(NoActiveRun, lambda: fit(mlp(), MlflowCheckpoint())) == (
        "No MLflow run is active and none was named. Put the call into `with mlflow.start_run():`, "
        "or name a run: run_id='...' or MLFLOW_RUN_ID."
    )


def test_a_fit_behind_the_run_is_told_how_to_go_on_in_it() -> None:
    with mlflow.start_run() as run:
        pass
    assert text_of(NoActiveRun, lambda: fit(mlp(), MlflowCheckpoint())).endswith(
        "The last one has ended, as one of autologging does behind its fit. To go on in it: "
        f"`with mlflow.start_run(run_id='{run.info.run_id}'):`"
    )


def test_a_fit_under_autologging_takes_the_run_that_autologging_makes() -> None:
    mlflow.keras.autolog(log_models=False)
    try:
        fit(mlp(), MlflowCheckpoint())
    finally:
        mlflow.keras.autolog(disable=True)
    (run,) = mlflow.search_runs(output_format="list")
    assert len(ckpt.list_checkpoints(run.info.run_id)) >= 1


def test_a_run_that_the_environment_names_and_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, tracking: str
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", NOBODY)
    assert text_of(RunNotFound, lambda: fit(mlp(), MlflowCheckpoint())) == (
        f"No run '{NOBODY}' on the tracking server {tracking}. Check the ID, which has 32 digits "
        "from 0 to f, and MLFLOW_TRACKING_URI or mlflow.set_tracking_uri(...)."
    )


def test_a_script_ends_with_the_message(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import keras, numpy\n"
        "from mlflow_ckpt import MlflowCheckpoint\n"
        "model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])\n"
        "model.compile('sgd', 'mse')\n"
        "x = numpy.zeros((4, 2))\n"
        "model.fit(x, x[:, :1], verbose=0, callbacks=[MlflowCheckpoint()])\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "mlflow_ckpt.errors.NoActiveRun: No MLflow run is active and none was named. Put the call "
        "into `with mlflow.start_run():`, or name a run: run_id='...' or MLFLOW_RUN_ID."
    )


# --- the monitor --------------------------------------------------------------


@pytest.mark.parametrize(
    ("monitor", "validated", "hint"),
    [
        pytest.param(
            "val_loss",
            False,
            "They hold: accuracy, loss. Give fit validation_data=(x_val, y_val), or pass "
            "monitor='loss'.",
            id="no-validation",
        ),
        pytest.param(
            "val_f1",
            False,
            "They hold: accuracy, loss. Give fit validation_data=(x_val, y_val).",
            id="no-validation-and-no-metric",
        ),
        pytest.param(
            "val_acc",
            True,
            "They hold: accuracy, loss, val_accuracy, val_loss. Did you mean "
            "monitor='val_accuracy'?",
            id="another-name",
        ),
        pytest.param(
            "val_los",
            True,
            "They hold: accuracy, loss, val_accuracy, val_loss. Did you mean monitor='val_loss'?",
            id="misspelt",
        ),
        pytest.param(
            "val_f1",
            True,
            "They hold: accuracy, loss, val_accuracy, val_loss. Add it where the model is "
            "compiled: compile(metrics=['f1']).",
            id="no-metric",
        ),
    ],
)
def test_a_monitor_that_is_not_there(monitor: str, validated: bool, hint: str) -> None:
    def train() -> None:
        with mlflow.start_run():
            more = {} if validated else {"validation_data": None}
            fit(mlp(), MlflowCheckpoint(monitor=monitor), **more)

    assert text_of(MonitorMissing, train) == (
        f"monitor={monitor!r} is not in the logs of epoch 1. {hint} To keep no best: monitor=None."
    )


# --- compile ------------------------------------------------------------------

KERAS_SAYS = "You must call `compile()` before using the model."


def uncompiled() -> keras.Model:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


def test_what_was_not_compiled_is_keras_s_to_tell() -> None:
    """Keras looks before any callback is called, so that this package cannot say more."""
    x, y = np.zeros((4, 4)), np.zeros((4, 1))
    callbacks = [MlflowCheckpoint(monitor=None)]
    with mlflow.start_run() as run:
        told = text_of(ValueError, lambda: uncompiled().fit(x, y, callbacks=callbacks, verbose=0))
        assert told == KERAS_SAYS
        ckpt.save(uncompiled())
    again = ckpt.load_model(run.info.run_id)
    assert text_of(ValueError, lambda: again.evaluate(x, y, verbose=0)) == KERAS_SAYS


def test_a_project_asked_to_evaluate_what_was_never_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "projects"))
    common = importlib.import_module("common")
    with mlflow.start_run() as run:
        made = ckpt.save(uncompiled())
    command = common.evaluate_command(lambda _: (np.zeros((4, 4)), np.zeros((4, 1))))
    done = CliRunner().invoke(command, ["--run-id", run.info.run_id, "--which", "latest"])
    assert (done.exit_code, done.output) == (
        1,
        f"Error: The model of {made.name} was never compiled, so that it has no loss to evaluate. "
        "Before the training: model.compile(optimizer, loss, metrics=[...])\n",
    )


def test_weights_need_no_compiled_model() -> None:
    with mlflow.start_run() as run:
        ckpt.save(uncompiled())
    assert ckpt.warm_start(uncompiled(), run.info.run_id, "latest").series == "manual"


# --- two of them --------------------------------------------------------------


def test_two_callbacks_of_one_name() -> None:
    def train() -> None:
        with mlflow.start_run():
            fit(mlp(), MlflowCheckpoint(), MlflowCheckpoint(monitor=None))

    assert text_of(ConfigError, train) == (
        "Two MlflowCheckpoint callbacks write the series 'ckpt'. Leave one of them out, or give it "
        "another name=, such as MlflowCheckpoint(name='ckpt2')."
    )


def test_one_callback_twice() -> None:
    callback = MlflowCheckpoint()

    def train() -> None:
        with mlflow.start_run():
            fit(mlp(), callback, callback)

    assert text_of(ConfigError, train) == (
        "The same MlflowCheckpoint stands twice among the callbacks of this fit. "
        "Leave one of them out."
    )


# --- the backend --------------------------------------------------------------


@pytest.mark.pure
def test_a_backend_that_is_not_installed() -> None:
    code = "from mlflow_ckpt import MlflowCheckpoint"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None; {code}"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ModuleNotFoundError: ")
    assert last.endswith(
        "It is the backend that Keras was to use. Type: pip install torch, or: "
        "export KERAS_BACKEND=tensorflow"
    )


# --- the tracking URI ---------------------------------------------------------


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: str) -> Path:
    """A folder without a database, and no word about where one is."""
    folder = tmp_path / "nowhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


NO_DATABASE = (
    "No MLflow database at {path}. Go to the folder where the run was made, or name its tracking "
    "server: MLFLOW_TRACKING_URI or --tracking-uri, such as sqlite:////path/to/mlflow.db or "
    "http://host:5000."
)


@pytest.mark.parametrize(
    "look",
    [ckpt.resolve, ckpt.list_checkpoints, ckpt.load_model, ckpt.verify, ckpt.explain],
    ids=lambda look: look.__name__,
)
def test_who_looks_in_the_wrong_folder_leaves_nothing_there(
    look: Callable[[str], object], nowhere: Path, call: Cli
) -> None:
    text = NO_DATABASE.format(path=nowhere / "mlflow.db")
    assert text_of(StoreError, lambda: look(NOBODY)) == text
    assert call("list", NOBODY).err == f"Error: {text}\n"
    assert list(nowhere.iterdir()) == []


def test_who_looks_in_another_folder_with_a_database(
    nowhere: Path, empty_database: Path, call: Cli
) -> None:
    shutil.copy(empty_database, "mlflow.db")
    assert call("list", NOBODY).err == (
        f"Error: No run '{NOBODY}' on the tracking server sqlite:///{nowhere}/mlflow.db. Check the "
        "ID, which has 32 digits from 0 to f, and MLFLOW_TRACKING_URI or "
        "mlflow.set_tracking_uri(...). MLFLOW_TRACKING_URI is not set, so the database of this "
        "folder was asked.\n"
    )


def test_a_run_of_another_server_that_this_machine_has_trained(
    tracking: str, tmp_path: Path, empty_database: Path, call: Cli
) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp())
    shutil.copy(empty_database, tmp_path / "other.db")
    other = f"sqlite:///{tmp_path}/other.db"
    text = (
        f"No run '{run.info.run_id}' on the tracking server {other}. It was trained on this "
        f"machine, for {tracking}. Type: export MLFLOW_TRACKING_URI={tracking}"
    )
    assert call("list", run.info.run_id, "--tracking-uri", other).err == f"Error: {text}\n"
    assert text_of(RunNotFound, lambda: ckpt.load_model(run.info.run_id)) == text


def test_a_password_of_another_server_is_not_in_the_line_to_type(
    tracking: str, tmp_path: Path, call: Cli
) -> None:
    journal = tmp_path / "spool" / NOBODY / "ckpt" / "journal.json"
    journal.parent.mkdir(parents=True)
    journal.write_text(json.dumps({"format": "1.0", "tracking_uri": "http://***@host:5000"}))
    assert call("list", NOBODY).err == (
        f"Error: No run '{NOBODY}' on the tracking server {tracking}. It was trained on this "
        "machine, for http://***@host:5000. Type: export MLFLOW_TRACKING_URI=http://host:5000\n"
    )


@pytest.mark.parametrize(
    ("uri", "meant"),
    [
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("htp://host:5000", "http://host:5000"),
        ("http:/host:5000", "http://host:5000"),
        ("http://host:abc", None),
        ("https://", None),
        ("sqlite:/tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
        ("postgres://me:secret@host/db", "postgresql://***@host/db"),
        ("ftp//host", None),
    ],
)
def test_a_uri_that_is_none(uri: str, meant: str | None, call: Cli) -> None:
    done = call("list", NOBODY, "--tracking-uri", uri)
    assert done.code == 1
    assert "secret" not in done.err
    if uri == "ftp//host":  # a folder's name, for all that anybody knows
        text = f"The file store cannot hold checkpoints. Received: {uri!r}. {UPGRADE}"
    else:
        hint = f"Did you mean {meant}? " if meant else ""
        text = NO_URI.format(received=uri.replace("me:secret", "***"), meant=hint)
    assert done.err == f"Error: {text}\n"


def test_a_folder_of_the_file_store(tmp_path: Path, call: Cli) -> None:
    text = f"The file store cannot hold checkpoints. Received: './mlruns'. {UPGRADE}"
    assert call("list", NOBODY, "--tracking-uri", "./mlruns").err == f"Error: {text}\n"
    mlflow.set_tracking_uri("./mlruns")
    assert text_of(UnsupportedStore, lambda: ckpt.resolve(NOBODY)).startswith(
        "The file store cannot hold checkpoints. Received: "
    )


def test_a_path_of_a_database_without_its_scheme(
    tmp_path: Path, empty_database: Path, call: Cli
) -> None:
    shutil.copy(empty_database, "mlflow.db")
    assert call("list", NOBODY, "--tracking-uri", "mlflow.db").err == (
        "Error: The file store cannot hold checkpoints. Received: 'mlflow.db'. "
        f"Did you mean sqlite:///mlflow.db? {UPGRADE}\n"
    )


def test_a_database_whose_driver_is_not_installed(call: Cli) -> None:
    assert call("list", NOBODY, "--tracking-uri", "mysql://me:secret@127.0.0.1:9/db").err == (
        "Error: The tracking database mysql://***@127.0.0.1:9/db needs a driver: "
        "No module named 'MySQLdb'. Type: pip install mysqlclient\n"
    )


# --- a server that does not answer --------------------------------------------

AWAY = (
    "The tracking server {uri} does not answer: {why}. Start it, or name another one: "
    "MLFLOW_TRACKING_URI or --tracking-uri."
)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:9", "connection refused"),
        ("http://nobody.invalid:5000", "no host of this name"),
        ("http://me:secret@127.0.0.1:9", "connection refused"),
    ],
)
def test_a_server_that_does_not_answer(uri: str, why: str, call: Cli) -> None:
    shown = uri.replace("me:secret", "***")
    done = call("list", NOBODY, "--tracking-uri", uri)
    assert done.err == f"Error: {AWAY.format(uri=shown, why=why)}\n"


def test_a_server_that_takes_the_call_and_says_nothing(
    call: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_ckpt.store import _reach

    monkeypatch.setattr(_reach, "_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        done = call("list", NOBODY, "--tracking-uri", uri)
    assert done.err == f"Error: {AWAY.format(uri=uri, why='no answer in time')}\n"


def test_from_python_it_is_said_in_a_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://me:secret@127.0.0.1:9")
    assert text_of(ServerAway, lambda: ckpt.resolve(NOBODY)) == (
        f"The tracking server http://***@127.0.0.1:9 could not read run '{NOBODY}': "
        "it does not answer (connection refused)."
    )


class _Ill(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(503)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def ill() -> Iterator[str]:
    """A server that answers 503 to everything."""
    with HTTPServer(("127.0.0.1", 0), _Ill) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_ill_gives_no_password_away(
    ill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://me:secret@{ill}")
    text = text_of(ServerAway, lambda: ckpt.resolve(NOBODY))
    assert text.startswith(f"The tracking server could not read run '{NOBODY}': ")
    assert "503" in text
    assert "secret" not in text


# --- a run, and an experiment, of another name --------------------------------


def test_a_name_or_a_beginning_is_answered_and_never_taken(call: Cli, tracking: str) -> None:
    with mlflow.start_run(run_name="my-run") as run:
        pass
    run_id = run.info.run_id
    for typed in ("my-run", run_id[:8], run_id[:31]):
        assert call("list", typed).err == (
            f"Error: No run {typed!r} on the tracking server {tracking}. "
            f"Did you mean {run_id} (my-run)?\n"
        )


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (f"runs:/{NOBODY}/model", f"Give the ID alone: {NOBODY}"),
        (f"http://host/#/experiments/1/runs/{NOBODY}", f"Give the ID alone: {NOBODY}"),
        (
            "m-000bee7e416e4eadb971cb49064a7c6f",
            "That is a logged model. The ID of its run stands on the model's page, as Source run.",
        ),
        (
            "models:/m-000bee7e416e4eadb971cb49064a7c6f",
            "That is a logged model. The ID of its run stands on the model's page, as Source run.",
        ),
        (
            "a'b",
            "Check the ID, which has 32 digits from 0 to f, and MLFLOW_TRACKING_URI or "
            "mlflow.set_tracking_uri(...).",
        ),
    ],
    ids=["runs-uri", "page", "model", "models-uri", "quote"],
)
def test_what_is_no_run_id(typed: str, hint: str, call: Cli, tracking: str) -> None:
    assert call("list", typed).err == (
        f"Error: No run {typed!r} on the tracking server {tracking}. {hint}\n"
    )


@pytest.mark.parametrize("command", [["verify"], ["gc"]], ids=["verify", "gc"])
def test_an_experiment_that_is_not_there(command: list[str], call: Cli, tracking: str) -> None:
    mlflow.set_experiment("digits")
    assert call(*command, "--experiment", "digit").err == (
        f"Error: No experiment is called 'digit' on the tracking server {tracking}. "
        "There are: 'digits'.\n"
    )


def test_a_misspelt_series_is_answered_with_the_nearest(call: Cli) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp(), series="finetune")
    assert call("show", run.info.run_id, "latest@fintune").err == (
        f"Error: Run {run.info.run_id} has no series 'fintune'. It has: finetune. "
        "Did you mean 'finetune'?\n"
    )


def test_a_run_without_checkpoints(call: Cli) -> None:
    with mlflow.start_run() as run:
        pass
    text = (
        f"Run {run.info.run_id} holds no checkpoints. Add MlflowCheckpoint() to the callbacks of "
        "fit, or save one by hand with mlflow_ckpt.save(model)."
    )
    assert text_of(CheckpointError, lambda: ckpt.load_model(run.info.run_id)) == text
    assert call("show", run.info.run_id).err == f"Error: {text}\n"
