"""The commit protocol against a real database: what resolves after each kind of failure."""

from __future__ import annotations

import errno
import math
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from builders import fit, mlp, same
from doubles import (
    CannotDelete,
    FailingUpload,
    HandedOver,
    Killed,
    TrackingServer,
    tracking_server,
)
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, contents, links, snapshot
from mlflow_ckpt.errors import NoCheckpoints, SaveFailed, StoreError, UnsupportedStore
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.record import MetricRow, Position, Series
from mlflow_ckpt.store import Store, _commit, _draft
from mlflow_ckpt.store._connection import Connection
from mlflow_ckpt.writer import Writer

STEPS = {
    "create_logged_model": MlflowClient,
    "log_batch": MlflowClient,
    "log_outputs": MlflowClient,
    "finalize_logged_model": MlflowClient,
    "tag_model": Connection,
}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_before_any_request_of_the_commit_resolves_nowhere(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Killed` stands for the kill: nothing after it runs, no cleanup of the record either."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed(step)

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(STEPS[step], step, killed)
            with pytest.raises(Killed):
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
            patch.setattr(STEPS[step], step, refused)
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


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_commit_whose_answer_is_lost_never_resolves_to_missing_files(
    comes_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag, lost = Connection.tag_model, []

    def answer_lost(self: Connection, model_id: str, tags: dict[str, str]) -> None:
        if not lost or comes_back:
            tag(self, model_id, tags)
        if not lost or not comes_back:
            lost.append(model_id)
            raise MlflowException("connection reset")

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "tag_model", answer_lost)
            with pytest.raises(SaveFailed, match="connection reset"):
                ckpt.save(model, step=2)
        newest = ckpt.resolve(run.info.run_id)
    assert (newest == first) is comes_back
    ckpt.load_weights(model, run.info.run_id, "latest")
    files = Path(mlflow.MlflowClient().get_logged_model(lost[0]).artifact_location[7:])
    assert files.exists() is not comes_back


def test_the_commit_tag_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for step, owner in STEPS.items():
        real = getattr(owner, step)

        def wrapped(*args: Any, _real: Any = real, _step: str = step, **kwargs: Any) -> Any:
            calls.append(_step)
            return _real(*args, **kwargs)

        monkeypatch.setattr(owner, step, wrapped)
    with mlflow.start_run():
        ckpt.save(mlp())
    assert calls == list(STEPS)


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


def test_a_long_run_links_what_a_page_can_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "ALWAYS", 2)
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(keep=Keep(last=2)), epochs=6)
        ids = [o.model_id for o in mlflow.get_run(run.info.run_id).outputs.model_outputs]
        there = ckpt.list_checkpoints(run.info.run_id)["model_id"]
        assert len(ids) == 4
        assert set(there) < set(ids)
        fit(model, MlflowCheckpoint(keep=Keep(last=2)), epochs=1)
    again = mlflow.get_run(run.info.run_id).outputs.model_outputs
    assert [o.step for o in again if o.model_id not in ids] == [7]


def test_links_that_the_server_refuses_at_the_end_cost_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, asked = MlflowClient.log_outputs, []

    def refused(*args: Any) -> None:
        asked.append(args)
        if len(asked) > 1:
            raise MlflowException("no room for links")
        real(*args)

    monkeypatch.setattr(links, "ALWAYS", 1)
    monkeypatch.setattr(MlflowClient, "log_outputs", refused)
    with mlflow.start_run() as run:
        with pytest.raises(StoreError, match="link checkpoints"):
            fit(mlp(), MlflowCheckpoint(), epochs=2)
        assert "ckpt/stall_ms" in mlflow.get_run(run.info.run_id).data.metrics
        assert ckpt.resolve(run.info.run_id, "final").epoch == 2


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


# --- where the files are written ----------------------------------------------


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def no_temporary_folders(monkeypatch: pytest.MonkeyPatch, root: Path) -> Path:
    """Send temporary folders to a place of their own; returns it."""
    root.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root))
    return root


def test_a_local_store_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp()
    with mlflow.start_run():
        ckpt.save(model)  # The card is made once, in a temporary folder.
        spare = no_temporary_folders(monkeypatch, tmp_path / "spare")
        spare.chmod(0o500)
        saved = ckpt.save(model)
    folder = Path(saved.artifact_uri.removeprefix("file://"))
    assert [n for n in files(folder) if "/" not in n or n.endswith(".keras")] == [
        "MLmodel", "conda.yaml", "data/model.keras", "manifest.json", "python_env.yaml",
        "requirements.txt",
    ]  # fmt: skip


def test_another_store_gets_the_files_handed_over_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare = no_temporary_folders(monkeypatch, tmp_path / "spare")
    monkeypatch.setattr(_draft, "get_artifact_repository", HandedOver)
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(), epochs=1)
        assert same(ckpt.load_model(run.info.run_id), model)
    assert files(spare) == []
    FailingUpload.uploads, FailingUpload.fail_at = 0, 1
    monkeypatch.setattr(_draft, "get_artifact_repository", FailingUpload)
    with mlflow.start_run(), pytest.raises(SaveFailed, match="No space left on device"):
        ckpt.save(model)
    assert list(spare.iterdir()) == []


def test_a_full_disk_names_the_path_and_gives_the_space_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(directory: Path, spec: Any) -> None:
        (directory / "MLmodel").write_text("half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(directory / "MLmodel"))

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model)
        monkeypatch.setattr(contents, "write_card", full)
        with pytest.raises(SaveFailed, match=r"MLmodel: No space left on device. Free") as caught:
            ckpt.save(model)
        assert ckpt.resolve(run.info.run_id) == first
    assert isinstance(caught.value.reason, OSError)
    assert len(list((tmp_path / "artifacts").rglob("model.keras"))) == 1
    found = MlflowClient().search_logged_models([run.info.experiment_id])
    assert sorted(m.status.value for m in found) == ["FAILED", "READY"]


def test_a_folder_that_cannot_be_made_fails_the_save(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "artifacts" / "models").write_text("in the way")
    with mlflow.start_run() as run, pytest.raises(SaveFailed, match="artifacts/models"):
        ckpt.save(mlp())
    found = MlflowClient().search_logged_models([run.info.experiment_id])
    assert [m.status.value for m in found] == ["FAILED"]


# --- how much is asked of a server --------------------------------------------


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[TrackingServer]:
    database = tmp_path / "server.db"
    shutil.copy(empty_database, database)
    with tracking_server(database, tmp_path / "served") as running:
        mlflow.set_tracking_uri(running.uri)
        mlflow.set_experiment("served")
        yield running


def without_ids(request: str) -> str:
    """The request as the docstring of `_commit` writes it."""
    method, path = request.split(" /", 1)
    path = re.sub(
        "^.*/artifacts/", ".../artifacts/", re.sub(r"\bm-[0-9a-f]{32}", "{model_id}", path)
    )
    return f"{method} {path}"


def test_the_requests_of_one_checkpoint_are_those_of_the_docstring(server: TrackingServer) -> None:
    assert _commit.__doc__ is not None
    listed = re.findall(r"^    (POST|PUT|PATCH) +(\S+)", _commit.__doc__, re.MULTILINE)
    with mlflow.start_run() as run:
        ckpt.save(mlp())
        store = Store()
        writing = Writer(store, store.run(run.info.run_id))
        request = SaveRequest(
            series=Series(name="ckpt"),
            position=Position(series="ckpt", kind="epoch", epoch=1, step=2),
            snapshot=snapshot.capture(mlp()),
            state={"kind": "epoch"},
            rows=[MetricRow(key="loss", value=1.0, timestamp=1, step=1)],
            curve=[MetricRow(key="nan", value=math.nan, timestamp=1, step=1)],
            metrics={"loss": 1.0},
        )
        server.requests.clear()
        writing.submit(request).wait()
        assert writing.join()
        found = [without_ids(r) for r in server.requests]
    assert found == [f"{method} {path}" for method, path in listed]
    assert {"loss", "nan"} <= set(mlflow.get_run(run.info.run_id).data.metrics)


def test_a_longer_fit_asks_nothing_more_than_its_checkpoints_do(server: TrackingServer) -> None:
    def requests(keep: Keep | None, epochs: int) -> Counter[str]:
        with mlflow.start_run():
            server.requests.clear()
            fit(mlp(), MlflowCheckpoint(keep=keep), epochs=epochs)
            return Counter(without_ids(r) for r in server.requests)

    requests(None, 1)
    assert _commit.__doc__ is not None
    listed = re.findall(r"^    (POST|PUT|PATCH) +(\S+)", _commit.__doc__, re.MULTILINE)
    one = Counter(f"{method} {path}" for method, path in listed)
    assert requests(None, 4) - requests(None, 3) == one
    assert requests(Keep(last=5), 4) - requests(Keep(last=5), 3) == one
    pruned = requests(Keep(last=1, best=None), 4) - requests(Keep(last=1, best=None), 3)
    assert pruned - one == Counter(
        {
            "GET api/2.0/mlflow/logged-models/{model_id}": 1,
            "PATCH api/2.0/mlflow/logged-models/{model_id}/tags": 1,
            "DELETE .../artifacts/": 1,
            "DELETE api/2.0/mlflow/logged-models/{model_id}": 1,
        }
    )


def test_a_server_keeps_exactly_what_a_local_store_keeps(server: TrackingServer) -> None:
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=4)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [4]
    assert same(ckpt.load_model(run.info.run_id), model)
    assert "ckpt.resume_divergence" not in mlflow.get_run(run.info.run_id).data.tags
