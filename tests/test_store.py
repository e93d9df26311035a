"""The commit protocol against a real database: what resolves after each kind of failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import mlflow
import pytest
from builders import fit, mlp
from doubles import CannotDelete, StopHere
from mlflow.exceptions import MlflowException

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import NoCheckpoints, SaveFailed, UnsupportedStore
from mlflow_ckpt.store import _commit

STEPS = [
    "create_logged_model",
    "log_batch",
    "log_outputs",
    "finalize_logged_model",
    "set_logged_model_tags",
]


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_any_request_of_the_commit_resolves_nowhere(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`StopHere` stands for the kill: nothing after it runs, no cleanup either."""

    def killed(*_: Any, **__: Any) -> None:
        raise StopHere(step)

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, step, killed)
            with pytest.raises(StopHere):
                ckpt.save(model, step=2)
        assert ckpt.resolve(run.info.run_id) == first
        assert ckpt.save(model, step=2) == ckpt.resolve(run.info.run_id)
    assert list(ckpt.list_checkpoints(run.info.run_id)["step"]) == [1, 2]


@pytest.mark.parametrize("step", STEPS)
def test_a_refused_request_fails_the_save_and_marks_the_model(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise MlflowException("the server is ill")

    with mlflow.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, step, refused)
            with pytest.raises(SaveFailed, match="the server is ill") as caught:
                ckpt.save(mlp())
        assert caught.value.__cause__ is caught.value.reason
        with pytest.raises(NoCheckpoints):
            ckpt.resolve(run.info.run_id)
    models = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    left = {m.status.value for m in models}
    expected: dict[str, set[str]] = {
        "create_logged_model": set(),
        "finalize_logged_model": {"PENDING"},
    }
    assert left == expected.get(step, {"FAILED"})
    if step == "finalize_logged_model":
        assert "could not be marked FAILED" in caught.value.__notes__[0]


def test_the_commit_tag_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for step in STEPS:
        real = getattr(mlflow.MlflowClient, step)

        def wrapped(*args: Any, _real: Any = real, _step: str = step, **kwargs: Any) -> Any:
            calls.append(_step)
            return _real(*args, **kwargs)

        monkeypatch.setattr(mlflow.MlflowClient, step, wrapped)
    with mlflow.start_run():
        ckpt.save(mlp())
    assert calls == STEPS


def test_a_pruned_checkpoint_leaves_no_files_and_no_record(tmp_path: Any) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=3)
    left = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    assert [m.name for m in left] == ["ckpt-0003-00000006"]
    assert len(list((tmp_path / "artifacts").rglob("model.keras"))) == 1


def test_a_store_that_cannot_delete_warns_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_commit, "get_artifact_repository", CannotDelete)
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=4)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [4]
    assert [r.message for r in caplog.records if r.name == "mlflow_ckpt"] == [
        m for m in caplog.messages if "cannot delete files" in m
    ]
    assert sum("cannot delete files" in m for m in caplog.messages) == 1


def test_the_experiment_opens_with_its_models_view_unless_somebody_chose() -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        ckpt.save(mlp())
    kind = client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
    chosen = client.create_experiment("chosen", tags={"mlflow.experimentKind": "genai"})
    with mlflow.start_run(experiment_id=chosen):
        ckpt.save(mlp())
    assert client.get_experiment(chosen).tags["mlflow.experimentKind"] == "genai"


def test_the_run_links_its_checkpoints_and_keeps_the_series_facts() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    found = mlflow.get_run(run.info.run_id)
    assert sorted(o.step for o in found.outputs.model_outputs) == [1, 2]
    document = mlflow.artifacts.load_dict(f"{found.info.artifact_uri}/checkpoints/ckpt.json")
    assert (document["monitor"], document["mode"]) == ("val_loss", "min")


def test_the_file_store_is_refused(tmp_path: Any) -> None:
    mlflow.set_tracking_uri(str(tmp_path / "mlruns"))
    with pytest.raises(UnsupportedStore, match=r"sqlite:///mlflow\.db"):
        ckpt.resolve("0" * 32, "latest")


@pytest.fixture
def old_server() -> Iterator[str]:
    """A server that knows runs and no logged models, as MLflow 2 does."""

    class Old(BaseHTTPRequestHandler):
        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if "runs/get" in self.path:
                info = b'"run_id": "%s", "experiment_id": "0", "lifecycle_stage": "active"' % (
                    b"a" * 32
                )
                tag = b'{"key": "ckpt.series.ckpt", "value": "{}"}'
                self.answer(200, b'{"run": {"info": {%s}, "data": {"tags": [%s]}}}' % (info, tag))
            else:
                self.answer(404, b"Not Found")

        def do_POST(self) -> None:
            self.answer(404, b"Not Found")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Old)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_tracking_server_without_logged_models_is_named(
    old_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(old_server)
    with pytest.raises(UnsupportedStore, match="MLflow 3 or later"):
        ckpt.resolve("a" * 32, "latest")
