"""What docs/production.md says of the server in docs/compose.yaml is what happens there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from backends import Production, as_user
from builders import fit, history, mlp, same
from calling import Cli
from composed import NAME, services, workers
from doubles import RaiseAt, StopHere

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import StoreError

PAGE = (Path(__file__).parents[1] / "docs" / "production.md").read_text(encoding="utf-8")
POOLS, CONNECTIONS = 3, 100 - 3  # of a worker; of PostgreSQL, less those that it reserves

in_production = pytest.mark.backends("production", quick=True)


def train(run_id: str | None, epochs: int, *extra: Any) -> str:
    with mlflow.start_run(run_id=run_id) as run:
        fit(mlp(), MlflowCheckpoint(keep=Keep(last=1, best=None)), *extra, epochs=epochs)
    return str(run.info.run_id)


def epochs(run_id: str) -> list[int]:
    return list(ckpt.list_checkpoints(run_id)["epoch"])


@in_production
def test_a_training_is_broken_off_resumed_pruned_verified_and_loaded(call: Cli) -> None:
    with mlflow.start_run() as run:
        run_id = run.info.run_id
    with pytest.raises(StopHere):
        train(run_id, 4, RaiseAt(3))
    train(run_id, 4)
    assert [step for step, _ in history(run_id)["loss"]] == [1, 2, 3, 4]
    assert epochs(run_id) == [4]
    assert call("verify", run_id).code == 0
    model = ckpt.load_model(run_id, "latest")
    assert same(mlflow.keras.load_model(ckpt.resolve(run_id).uri), model)


@in_production
def test_what_each_permission_allows(
    backend: Production,
    caplog: pytest.LogCaptureFixture,
    call: Cli,
    another_process: Callable[[], None],
) -> None:
    run_id = train(None, 2)
    another_process()
    reader, editor = (backend.permitted(run_id, each) for each in ("READ", "EDIT"))
    with as_user(reader):
        assert ckpt.load_model(run_id).count_params() == mlp().count_params()
        assert call("verify", run_id, "--no-mark").code == 0
        for forbidden in (
            lambda: ckpt.pin(run_id, "latest"),
            lambda: ckpt.fork(run_id, "epoch=2"),
            lambda: fit(mlp(), MlflowCheckpoint(run_id=run_id), epochs=3),
        ):
            with pytest.raises(StoreError, match="READ to load, EDIT to train"):
                forbidden()
    caplog.clear()
    another_process()
    with as_user(editor):
        train(run_id, 4)
        ckpt.pin(run_id, "epoch=3")
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [text.startswith("Old checkpoints stay:") for text in said] == [True], said
    assert epochs(run_id) == [2, 3, 4]
    ckpt.prune(run_id, Keep(last=1))
    assert epochs(run_id) == [3, 4], "pinned by somebody who may only edit"


@in_production
def test_a_deleted_run_leaves_nothing_in_the_bucket(backend: Production, call: Cli) -> None:
    run_id = train(None, 2)
    place = ckpt.resolve(run_id).artifact_uri.removeprefix("s3://checkpoints/")
    assert files_below(backend, place)
    mlflow.delete_run(run_id)
    found = call("gc", "--all", "--deleted-runs", "--json")
    assert found.code == 0
    assert {each["run_id"] for each in found.json() if each["gone"]} == {run_id}
    assert files_below(backend, place) == []


def files_below(backend: Production, place: str) -> list[str]:
    found = backend.s3.client().list_objects_v2(Bucket="checkpoints", Prefix=place)
    return [each["Key"] for each in found.get("Contents", ())]


# --- the server ---------------------------------------------------------------


def status(backend: Production, **headers: str) -> int:
    """What a search, which the UI sends as a POST, is answered with."""
    secret = b64encode(":".join(backend.admin.values()).encode()).decode()
    request = urllib.request.Request(
        f"{backend.uri}/ajax-api/2.0/mlflow/experiments/search",
        json.dumps({"max_results": 1}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Basic {secret}", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@in_production
def test_only_the_name_that_was_set_is_answered(backend: Production) -> None:
    port = backend.uri.rpartition(":")[2]
    origin = f"http://{NAME}:{port}"
    assert status(backend, Host=f"{NAME}:{port}", Origin=origin) == 200
    assert status(backend, Host=f"localhost:{port}") == 200
    assert status(backend, Host=f"elsewhere.example:{port}") == 403
    assert status(backend, Origin="http://elsewhere.example") == 403


@in_production
def test_the_page_makes_a_user(backend: Production) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    environment = os.environ | backend.admin | {"MLFLOW_TRACKING_URI": backend.uri}
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = "of the server"
    subprocess.run(
        [sys.executable, "-c", f"password = 'one that is long'\n{block}"],
        check=True,
        env=environment,
    )
    user = {"MLFLOW_TRACKING_USERNAME": "trainer", "MLFLOW_TRACKING_PASSWORD": "one that is long"}
    with as_user(user):
        mlflow.set_experiment("digits")
        run_id = train(None, 2)
        assert epochs(run_id) == [2]


@pytest.mark.pure
def test_the_workers_leave_connections_for_others() -> None:
    environment = services()["mlflow"]["environment"]
    size, more = (
        int(environment[f"MLFLOW_SQLALCHEMYSTORE_{name}"]) for name in ("POOL_SIZE", "MAX_OVERFLOW")
    )
    assert workers() * POOLS * (size + more) < CONNECTIONS


@pytest.mark.pure
def test_the_page_names_what_the_file_asks_for() -> None:
    text = (Path(__file__).parents[1] / "docs" / "compose.yaml").read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+):\?\}", text))
    (given,) = (b for b in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) if "SERVER_NAME=" in b)
    assert asked == {line.partition("=")[0] for line in given.splitlines()}


@pytest.mark.pure
@pytest.mark.parametrize(
    "command", re.findall(r"^mlflow-ckpt (.+?)(?: +#.*)?$", PAGE, re.MULTILINE)
)
def test_its_commands_are_ours(command: str) -> None:
    from mlflow_ckpt import cli

    name, *options = command.split()
    known = cli.main.commands[name].params if name in cli.main.commands else []
    flags = {flag for parameter in known for flag in parameter.opts}
    assert known
    assert {option for option in options if option.startswith("--")} <= flags
