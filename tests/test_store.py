"""The commit protocol against a real database: what resolves after each kind of failure."""

from __future__ import annotations

import errno
import math
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import mlflow
import numpy as np
import pytest
import stored
from backends import Backend
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
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

import mlflow_ckpt as ckpt
from mlflow_ckpt import (
    Keep,
    MlflowCheckpoint,
    contents,
    deliverer,
    links,
    parcel,
    parts,
    reporter,
    snapshot,
)
from mlflow_ckpt.errors import (
    NoCheckpoints,
    SaveFailed,
    ServerAway,
    StoreError,
    UnsupportedStore,
)
from mlflow_ckpt.ground import open_journal
from mlflow_ckpt.journal import Entry, Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.record import MetricRow, Position, Series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store, _commit, _delete, _draft
from mlflow_ckpt.store._connection import Connection
from mlflow_ckpt.syncing import deliver_now
from mlflow_ckpt.worker import settle
from mlflow_ckpt.writer import Writer

pytestmark = pytest.mark.backends

STEPS = {
    "create_logged_model": MlflowClient,
    "log_batch": MlflowClient,
    "log_outputs": MlflowClient,
    "finalize_logged_model": MlflowClient,
    "tag_model": Connection,
}


def journal_of(run: mlflow.ActiveRun, series: str = "manual") -> Journal:
    return Journal(Spool().folder() / run.info.run_id / series)


def names(entries: list[Entry]) -> list[str]:
    """The checkpoints among these entries."""
    found = [e for e in entries if e.kind == parcel.CHECKPOINT]
    return [parcel.unpack_position(e.data["position"]).name for e in found]


def left_in(journal: Journal) -> tuple[list[str], list[str], list[str]]:
    """What waits, what was refused, and what is half-made."""
    half_made = [path.name for path in (journal.path / "making").iterdir()]
    return names(journal.waiting()), names(journal.refused()), half_made


def models(run: mlflow.ActiveRun) -> dict[str, LoggedModel]:
    """Every LoggedModel of the run, committed or not, by its ID."""
    found = MlflowClient().search_logged_models([run.info.experiment_id])
    return {m.model_id: m for m in found if m.source_run_id == run.info.run_id}


def statuses(run: mlflow.ActiveRun) -> list[str]:
    return sorted(m.status.value for m in models(run).values())


def steps(run: mlflow.ActiveRun) -> list[int]:
    return list(ckpt.list_checkpoints(run.info.run_id)["step"])


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that happens on another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def ill(*_: Any, **__: Any) -> None:
    """MLflow's answer for a server that stumbles: INTERNAL_ERROR, which passes."""
    raise MlflowException("the server is ill")


def refuse(*_: Any, **__: Any) -> None:
    raise MlflowException("not like this", INVALID_PARAMETER_VALUE)


# --- killed -------------------------------------------------------------------


@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_around_any_request_is_made_good_by_the_next_start(
    step: str,
    carried_out: bool,
    another_process: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Killed` stands for the kill: nothing after it runs, no cleanup of the record either."""
    real = getattr(STEPS[step], step)

    def killed(*args: Any, **kwargs: Any) -> None:
        if carried_out:
            real(*args, **kwargs)
        raise Killed(step)

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(STEPS[step], step, killed)
            with pytest.raises(Killed):
                ckpt.save(model, step=2)
        another_process()
        journal, begun = journal_of(run), models(run)
        assert left_in(journal) == (["manual-0000-00000002"], [], [])
        committed = carried_out and step == "tag_model"
        assert (ckpt.resolve(run.info.run_id) == first) is not committed
        assert len(begun) == (1 if (step, carried_out) == ("create_logged_model", False) else 2)
        third = ckpt.save(model, step=3)
        assert ckpt.resolve(run.info.run_id) == third
    assert steps(run) == [1, 2, 3]
    assert set(begun) < set(models(run)), "what had been begun was finished"
    assert statuses(run) == ["READY"] * 3, "nothing was made twice"
    assert left_in(journal) == ([], [], [])
    ckpt.download(run.info.run_id, "step=2", tmp_path / "verified")


# --- refused ------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_refused_request_fails_the_save_and_marks_the_model(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(STEPS[step], step, refuse)
            with pytest.raises(SaveFailed, match="not like this") as caught:
                ckpt.save(mlp(), step=1)
        assert caught.value.__cause__ is caught.value.reason
        assert type(caught.value.reason) is StoreError
        with pytest.raises(NoCheckpoints):
            ckpt.resolve(run.info.run_id)
        expected = {"create_logged_model": [], "finalize_logged_model": ["PENDING"]}
        assert statuses(run) == expected.get(step, ["FAILED"])
        if step == "finalize_logged_model":
            assert "could not be marked FAILED" in caught.value.__notes__[0]
        journal = journal_of(run)
        assert left_in(journal) == ([], ["manual-0000-00000001"], [])
        assert "not like this" in journal.refused()[0].progress["refused"]
        assert ckpt.save(mlp(), step=2) == ckpt.resolve(run.info.run_id), "it holds up nobody"
        assert deliver_now(Store(), journal, again=True) == []
    assert steps(run) == [1, 2]
    assert left_in(journal) == ([], [], [])
    assert ckpt.load_model(run.info.run_id, "step=1").count_params() == mlp().count_params()


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_commit_that_was_refused_and_made_never_resolves_to_missing_files(
    comes_back: bool, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may refuse in the name of a server that has carried the request out."""
    tag, lost = Connection.tag_model, []

    def answer_lost(self: Connection, model_id: str, tags: dict[str, str]) -> None:
        if not lost or comes_back:
            tag(self, model_id, tags)
        if not lost or not comes_back:
            lost.append(model_id)
            refuse()

    model = mlp()
    with mlflow.start_run() as run:
        first = ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "tag_model", answer_lost)
            with pytest.raises(SaveFailed, match="not like this") as caught:
                ckpt.save(model, step=2)
        newest = ckpt.resolve(run.info.run_id)
    assert (newest == first) is comes_back
    notes = getattr(caught.value, "__notes__", [])
    assert any("may have been committed all the same" in note for note in notes) is not comes_back
    ckpt.load_weights(model, run.info.run_id, "latest")
    files = stored.listing(MlflowClient().get_logged_model(lost[0]).artifact_location)
    # What was uploaded is taken away with the record.
    assert bool(files) is (not comes_back or backend.name != "local")
    assert left_in(journal_of(run)) == ([], ["manual-0000-00000002"], [])


# --- away ---------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_is_away_gets_the_checkpoint_as_soon_as_it_is_back(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp()
    with mlflow.start_run() as run:
        first, journal = ckpt.save(model, step=1), journal_of(run)
        with monkeypatch.context() as patch:
            patch.setattr(STEPS[step], step, ill)
            with pytest.raises(SaveFailed, match="not committed yet.*the server is ill") as caught:
                ckpt.save(model, step=2)
            assert isinstance(caught.value.reason, ServerAway)
            assert f"mlflow-ckpt sync {run.info.run_id}" in str(caught.value)
            assert str(journal.path) in str(caught.value)
            assert ckpt.resolve(run.info.run_id) == first
            assert left_in(journal) == (["manual-0000-00000002"], [], [])
            begun = models(run)
        states = {"create_logged_model": ["READY"], "tag_model": ["READY", "READY"]}
        found = sorted(m.status.value for m in begun.values())
        assert found == states.get(step, ["PENDING", "READY"])
        until(lambda: not journal.waiting())
        assert ckpt.resolve(run.info.run_id).step == 2
        ckpt.save(model, step=3)  # What has passed is raised no more.
    assert steps(run) == [1, 2, 3]
    assert set(begun) < set(models(run)), "what had been begun was finished"
    assert statuses(run) == ["READY"] * 3
    assert left_in(journal) == ([], [], [])


@pytest.mark.parametrize("step", STEPS)
def test_a_request_whose_answer_is_lost_is_not_made_twice(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, lost = getattr(STEPS[step], step), []

    def answer_lost(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        if not lost:
            lost.append(args)
            ill()
        return found

    with mlflow.start_run() as run:
        monkeypatch.setattr(STEPS[step], step, answer_lost)
        saved = ckpt.save_async(mlp(), step=1, metrics={"loss": 0.5}).wait(60)
        assert ckpt.resolve(run.info.run_id) == saved
    assert len(lost) == 1
    assert list(models(run)) == [saved.model_id]
    outputs = mlflow.get_run(run.info.run_id).outputs.model_outputs
    assert [o.model_id for o in outputs] == [saved.model_id]
    curves = MlflowClient().get_metric_history(run.info.run_id, "manual/loss")
    assert [(m.step, m.value) for m in curves] == [(1, 0.5)]
    assert left_in(journal_of(run)) == ([], [], [])


def test_a_commit_whose_answer_is_lost_is_there_although_nobody_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tag = Connection.tag_model

    def answer_lost(self: Connection, model_id: str, tags: dict[str, str]) -> None:
        tag(self, model_id, tags)
        ill()

    model = mlp()
    with mlflow.start_run() as run:
        ckpt.save(model, step=1)
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "tag_model", answer_lost)
            patch.setattr(MlflowClient, "get_logged_model", ill)
            with pytest.raises(SaveFailed, match="not committed yet"):
                ckpt.save(model, step=2)
        second = ckpt.resolve(run.info.run_id)
        assert second.step == 2
        ckpt.load_weights(model, run.info.run_id, "step=2")
        until(lambda: not journal_of(run).waiting())
    assert steps(run) == [1, 2]
    assert ckpt.resolve(run.info.run_id) == second
    assert statuses(run) == ["READY"] * 2


def test_a_save_asks_a_server_that_is_back_however_long_it_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deliverer, "_PAUSES", (3.0,))
    with mlflow.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, "create_logged_model", ill)
            with pytest.raises(SaveFailed, match="not committed yet"):
                ckpt.save(mlp(), step=1)
        try:
            assert ckpt.save(mlp(), step=2) == ckpt.resolve(run.info.run_id)
        finally:
            until(lambda: not journal_of(run).waiting())
    assert steps(run) == [1, 2]


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


def test_a_pruned_checkpoint_leaves_no_files_and_no_record() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=3)
    client = mlflow.MlflowClient()
    left = client.search_logged_models([run.info.experiment_id])
    assert [m.name for m in left] == ["ckpt-0003-00000006"]
    place = client.get_experiment(run.info.experiment_id).artifact_location
    models_left = [path for path in stored.listing(place) if path.endswith("model.keras")]
    assert models_left == [f"models/{left[0].model_id}/artifacts/data/model.keras"]


@pytest.mark.backends("local")
def test_a_store_that_cannot_delete_warns_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_delete, "get_artifact_repository", CannotDelete)
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


@pytest.mark.parametrize("error", [refuse, ill])
def test_links_that_the_server_does_not_take_at_the_end_cost_nothing_else(
    error: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = MlflowClient.log_outputs, []

    def first_only(*args: Any) -> None:
        asked.append(args)
        if len(asked) > 1:
            error()
        real(*args)

    callback = MlflowCheckpoint(spool=Spool(drain_timeout=2.0))
    monkeypatch.setattr(links, "ALWAYS", 1)
    with mlflow.start_run() as run, monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", first_only)
        if error is refuse:
            with pytest.raises(StoreError, match="link checkpoints"):
                fit(mlp(), callback, epochs=2)
        else:
            fit(mlp(), callback, epochs=2)
        assert "ckpt/stall_ms" in mlflow.get_run(run.info.run_id).data.metrics
        assert ckpt.resolve(run.info.run_id, "final").epoch == 2
        journal = journal_of(run, "ckpt")
        entries = journal.refused() if error is refuse else journal.waiting()
        assert [entry.kind for entry in entries] == [parcel.END]
        assert len(linked(run)) == 1
    assert deliver_now(Store(), journal, again=True) == []
    assert journal.refused() == journal.waiting() == []
    assert len(linked(run)) == 2


def linked(run: mlflow.ActiveRun) -> list[str]:
    outputs = mlflow.get_run(run.info.run_id).outputs
    return [output.model_id for output in outputs.model_outputs]


@pytest.mark.backends("local")
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


@pytest.mark.backends("local")
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


@pytest.mark.backends("local")
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


@pytest.mark.backends("local")
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
    assert left_in(journal_of(run, "ckpt")) == ([], [], [])


@pytest.mark.backends("local")
def test_an_artifact_store_without_room_leaves_the_files_in_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingUpload.uploads, FailingUpload.fail_at = 0, 1
    model = mlp()
    with mlflow.start_run() as run:
        with monkeypatch.context() as patch:
            patch.setattr(_draft, "get_artifact_repository", FailingUpload)
            with pytest.raises(SaveFailed, match="No space left on device. Free some") as caught:
                ckpt.save(model)
        assert isinstance(caught.value.reason, OSError)
        assert f"mlflow-ckpt sync {run.info.run_id}" in str(caught.value)
        assert statuses(run) == ["FAILED"]
        journal = journal_of(run)
        assert left_in(journal) == ([], ["manual-0000-00000001"], [])
        (left,) = journal.refused()
        assert "data/model.keras" in files(left.files)
        assert deliver_now(Store(), journal, again=True) == []
        loaded = ckpt.load_model(run.info.run_id).get_weights()
    assert all(map(np.array_equal, loaded, model.get_weights()))
    assert left_in(journal) == ([], [], [])


@pytest.mark.backends("local")
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
        text = (
            r"manual-0000-00000002 \([\d,]+ bytes\) could not be written to \S*MLmodel: "
            r"No space left on device\. Free .*Spool\(dir=\.\.\.\) or MLFLOW_CKPT_SPOOL"
        )
        with pytest.raises(SaveFailed, match=text) as caught:
            ckpt.save(model)
        assert ckpt.resolve(run.info.run_id) == first
    assert isinstance(caught.value.reason, OSError)
    assert len(list(tmp_path.rglob("model.keras"))) == 1, "neither the store nor the spool has it"
    assert left_in(journal_of(run)) == ([], [], [])
    assert statuses(run) == ["READY"], "the server was not asked for anything"


@pytest.mark.backends("local")
def test_a_folder_that_cannot_be_made_fails_the_save(tmp_path: Path) -> None:
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "artifacts" / "models").write_text("in the way")
    with mlflow.start_run() as run:
        with pytest.raises(SaveFailed, match="artifacts/models"):
            ckpt.save(mlp())
        assert statuses(run) == ["FAILED"]
        journal = journal_of(run)
        assert left_in(journal) == ([], ["manual-0000-00000001"], [])
        (tmp_path / "artifacts" / "models").unlink()
        assert deliver_now(Store(), journal, again=True) == []
        assert ckpt.resolve(run.info.run_id).step == 1


@pytest.mark.backends("local")
def test_the_local_copy_takes_no_room_beside_a_local_store() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    copy = journal_of(run, "ckpt").copy()
    assert copy is not None
    assert names([copy]) == ["ckpt-0002-00000004"]
    stored = Path(ckpt.resolve(run.info.run_id).artifact_uri.removeprefix("file://"))
    assert files(copy.files) == files(stored)
    assert all((copy.files / name).samefile(stored / name) for name in files(stored))


@pytest.mark.backends("local")
def test_files_that_a_dead_process_laid_are_laid_again_without_a_trace(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    paths = ("MLmodel", "data/model.keras")
    for path in paths:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(path)
    for _ in range(2):
        _draft._lay(source, target, paths)
        assert files(target) == [*paths]
    (target / ".MLmodel-part").hardlink_to(source / "MLmodel")
    _draft._lay(source, target, paths)
    assert files(target) == [*paths]


def test_what_dead_processes_left_half_made_is_gone_after_the_next_fit() -> None:
    client = mlflow.MlflowClient()

    def half_made(run: mlflow.ActiveRun, series: str, entry: str) -> LoggedModel:
        tags = {"ckpt.complete": "pending", "ckpt.series": series, "ckpt.entry": entry}
        run_id, experiment_id = run.info.run_id, run.info.experiment_id
        model = client.create_logged_model(experiment_id, "m", source_run_id=run_id, tags=tags)
        stored.write(model.artifact_location, "MLmodel", b"half of it")
        return model

    with mlflow.start_run() as run:
        ours, other = half_made(run, "ckpt", "a"), half_made(run, "other", "b")
        refused = half_made(run, "ckpt", "c")
        client.finalize_logged_model(refused.model_id, "FAILED")
        fit(mlp(), MlflowCheckpoint(), epochs=1)
    found = client.search_logged_models([run.info.experiment_id])
    kept = ckpt.resolve(run.info.run_id).model_id
    assert {m.model_id for m in found} == {other.model_id, refused.model_id, kept}
    assert stored.listing(ours.artifact_location) == []
    assert stored.listing(other.artifact_location) == ["MLmodel"]


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
    method, path = unquote(request).split(" /", 1)
    path, _, query = re.sub(r"\bm-[0-9a-f]{32}", "{model_id}", path).partition("?")
    path = re.sub("^.*/artifacts/", ".../artifacts/", path)
    if folder := re.search(r"path=\d+/models/{model_id}/artifacts/?([^&]*)", query):
        path = f".../artifacts?path={folder[1]}"
    return f"{method} {path}"


def listed() -> list[str]:
    """The requests of one checkpoint, by the docstring of `_commit`."""
    assert _commit.__doc__ is not None
    found = re.findall(r"^    (GET|POST|PUT|PATCH) +(\S+)", _commit.__doc__, re.MULTILINE)
    return [f"{method} {path}" for method, path in found]


@pytest.mark.backends("local")
def test_the_requests_of_one_checkpoint_are_those_of_the_docstring(server: TrackingServer) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp())
        store, spool = Store(), Spool()
        found = store.run(run.info.run_id)
        writing = Writer(store, found, open_journal(store, found, "ckpt", spool), spool=spool)
        writing.log([MetricRow(key="other", value=1.0, timestamp=1, step=1)])
        assert writing.join()  # It has met the run.
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
        asked = [without_ids(r) for r in server.requests]
    assert asked == listed()
    assert {"loss", "nan"} <= set(mlflow.get_run(run.info.run_id).data.metrics)


def requests_of_a_fit(server: TrackingServer, *, epochs: int, **options: Any) -> Counter[str]:
    """What a fit asks of a server, with the report that ends it."""
    with mlflow.start_run() as run:
        server.requests.clear()
        fit(mlp(), MlflowCheckpoint(**options), epochs=epochs)
        settle((server.uri, run.info.run_id))
        # Its lease is given back by a thread, for which a fit waits no longer than a moment.
        until(lambda: all(t.name != "mlflow-ckpt-lease" for t in threading.enumerate()))
        return Counter(without_ids(r) for r in server.requests)


@pytest.fixture
def by_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beat of the lease, and a report in the middle of a fit, fall where the clock says."""
    monkeypatch.setattr(parts, "Lease", partial(Lease, ttl_s=7_200, beat_s=3_600))
    monkeypatch.setattr(reporter, "_FIRST_S", 3_600.0)
    monkeypatch.delenv(reporter.SWITCH, raising=False)


@pytest.mark.backends("local")
@pytest.mark.usefixtures("by_no_clock")
def test_a_report_costs_a_few_requests(server: TrackingServer) -> None:
    requests_of_a_fit(server, epochs=1)
    without = requests_of_a_fit(server, epochs=1, report=False)
    assert requests_of_a_fit(server, epochs=1) - without == Counter(
        {
            "GET api/2.0/mlflow/runs/get": 1,
            "GET api/2.0/mlflow-artifacts/artifacts": 1,  # histories
            "POST api/2.0/mlflow/logged-models/search": 1,
            "GET api/2.0/mlflow/metrics/get-history": 5,  # one for each curve
            "PUT .../artifacts/checkpoints/ckpt.history.json": 1,
            "PUT .../artifacts/checkpoints/checkpoints.json": 1,
            "PUT .../artifacts/checkpoints/report.html": 1,
            "POST api/2.0/mlflow/runs/log-batch": 1,  # description, and the table's name
        }
    )


@pytest.mark.backends("local")
@pytest.mark.usefixtures("by_no_clock")
def test_a_longer_fit_asks_nothing_more_than_its_checkpoints_do(server: TrackingServer) -> None:
    def requests(keep: Keep | None, epochs: int) -> Counter[str]:
        return requests_of_a_fit(server, epochs=epochs, keep=keep)

    requests(None, 1)
    one = Counter(listed()) + Counter({"GET api/2.0/mlflow/runs/get": 1})  # the lease
    assert requests(None, 4) - requests(None, 3) == one
    assert requests(Keep(last=5), 4) - requests(Keep(last=5), 3) == one
    pruned = requests(Keep(last=1, best=None), 4) - requests(Keep(last=1, best=None), 3)
    assert pruned - one == Counter(
        {
            "POST api/2.0/mlflow/logged-models/search": 1,  # what is corrupt
            "GET api/2.0/mlflow/logged-models/{model_id}": 2,  # before it is hidden, and behind
            "PATCH api/2.0/mlflow/logged-models/{model_id}/tags": 1,
            "DELETE .../artifacts/": 1,
            "DELETE api/2.0/mlflow/logged-models/{model_id}": 1,
        }
    )


@pytest.mark.backends("local")
def test_a_server_keeps_exactly_what_a_local_store_keeps(server: TrackingServer) -> None:
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=4)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [4]
    assert same(ckpt.load_model(run.info.run_id), model)
    assert "ckpt.resume_divergence" not in mlflow.get_run(run.info.run_id).data.tags
