"""Fork a run and warm-start one: the new run goes on exactly, the old one never changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import keras
import mlflow
import numpy as np
import pytest
from builders import fit, history, mlp, same
from doubles import FailingUpload, tracking_server
from leash import until
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, cli
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import (
    DigestMismatch,
    ModelMismatch,
    NoCheckpoints,
    ResumeError,
    RunNotFound,
    SaveFailed,
    StoreError,
)
from mlflow_ckpt.store import Store

Forget = Callable[[], None]
ROOT = Path(__file__).parents[1]


class Probe(keras.callbacks.Callback):
    """Log a metric of one's own, two values a step."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for value in (1.0, float("nan")):
            mlflow.log_metric("probe", value + epoch, step=0)


class CountEpochs(keras.callbacks.Callback):
    """Count the epochs that were really trained."""

    trained = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.trained += 1


def train(run_id: str | None, epochs: int, *extra: Any, **arguments: Any) -> tuple[str, Any]:
    """What a script does: seed, build, fit."""
    keras.utils.set_random_seed(11)
    model = mlp()
    callback = MlflowCheckpoint(**{"keep": None, **arguments.pop("checkpoint", {})})
    with mlflow.start_run(run_id=run_id) as run:
        fit(model, callback, *extra, epochs=epochs, **arguments)
    until_given_back()
    return run.info.run_id, model


def two_phases(run_id: str | None, *extra: Any) -> tuple[str, Any]:
    """A script with two series in one run."""
    keras.utils.set_random_seed(11)
    model = mlp()
    with mlflow.start_run(run_id=run_id) as run:
        for name in ("head", "tune"):
            callback = MlflowCheckpoint(name=name, keep=None)
            fit(model, callback, *(extra if name == "tune" else ()), epochs=3)
    until_given_back()
    return run.info.run_id, model


def until_given_back() -> None:
    """Wait for the thread that clears the lease's tag, for which a fit waits only a moment."""
    assert until(lambda: all(t.name != "mlflow-ckpt-lease" for t in threading.enumerate()), 60)


@dataclass(frozen=True)
class Parents:
    """Two completed runs in a store of their own. Forks leave them as they are.

    Attributes:
        run_id, model: Four epochs, with params, tags and metrics of the user's.
        phases, phases_model: Two series.
        empty, manual: Not to be forked: without checkpoints, and saved by hand.
    """

    uri: str
    run_id: str
    model: keras.Model
    phases: str
    phases_model: keras.Model
    empty: str
    manual: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Parents:
    folder = tmp_path_factory.mktemp("parents")
    shutil.copy(empty_database, folder / "runs.db")
    uri = f"sqlite:///{folder / 'runs.db'}"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("parents", (folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    with mlflow.start_run() as run:
        mlflow.log_params({"epochs": "4", "rate": 0.1, **{f"p{i:03}": i for i in range(150)}})
        mlflow.set_tags({"epochs": "4", "team": "vision", "mlflow.note.content": "the parent's"})
        mlflow.set_tags({"mlflow.project.entryPoint": "main", "mlflow.parentRunId": "x"})
    _, model = train(run.info.run_id, 4, Probe())
    client().log_metric(run.info.run_id, "test_accuracy", 0.5)
    client().set_tag(run.info.run_id, "ckpt.resume_divergence", "loss@1")
    phases, phases_model = two_phases(None)
    with mlflow.start_run() as empty:
        pass
    with mlflow.start_run() as manual:
        ckpt.save(mlp())
    ids = {"empty": empty.info.run_id, "manual": manual.info.run_id}
    return Parents(uri, run.info.run_id, model, phases, phases_model, **ids)


@pytest.fixture
def parents(tracking: str, made: Parents, another_process: Forget) -> Parents:
    """The same ones for every test: they only ever get new runs beside them."""
    another_process()
    mlflow.set_tracking_uri(made.uri)
    mlflow.set_experiment("parents")
    return made


def client() -> mlflow.MlflowClient:
    return mlflow.MlflowClient()


def tags_of(run_id: str) -> dict[str, str]:
    return dict(client().get_run(run_id).data.tags)


def models_of(run_id: str) -> list[Any]:
    """Every LoggedModel that is not deleted, half-made ones included."""
    experiment = client().get_run(run_id).info.experiment_id
    return list(
        client().search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    )


def place(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def files_below(uri: str) -> dict[str, str]:
    root = place(uri)
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def everything(run_id: str) -> dict[str, Any]:
    """All that the store has of a run, down to timestamps and bytes.

    What a fork leaves at its beginning is left out: the tag that keeps it.
    """
    run = client().get_run(run_id)
    return {
        "info": dict(run.info),
        "tags": run.data.tags,
        "params": run.data.params,
        "curves": {key: rows(run_id, key) for key in run.data.metrics},
        "inputs": [m.model_id for m in run.inputs.model_inputs],
        "outputs": [(m.model_id, m.step) for m in run.outputs.model_outputs],
        "files": files_below(run.info.artifact_uri),
        "models": {
            m.model_id: (facts_of(m), files_below(m.artifact_location)) for m in models_of(run_id)
        },
    }


def facts_of(model: Any) -> dict[str, Any]:
    facts = model.to_dictionary()
    facts["tags"] = {k: v for k, v in model.tags.items() if not k.startswith("ckpt.fork.")}
    return {k: v for k, v in facts.items() if k != "last_updated_timestamp"}


def rows(run_id: str, key: str) -> list[tuple[int, str, int]]:
    """A curve with its times; values as text, because NaN equals nothing."""
    found = client().get_metric_history(run_id, key)
    return [(m.step, repr(m.value), m.timestamp) for m in found]


def newest_fork_of(run_id: str) -> Any:
    experiment = client().get_run(run_id).info.experiment_id
    text = f"tags.`ckpt.forked_from` = '{run_id}'"
    return client().search_runs([experiment], filter_string=text)[0]


# --- the new run --------------------------------------------------------------


def test_a_fork_ends_like_its_parent_and_the_parent_is_untouched(parents: Parents) -> None:
    before = everything(parents.run_id)
    fork = ckpt.fork(parents.run_id, "epoch=2")
    _, model = train(fork, 4, Probe())
    assert same(model, parents.model)
    assert ckpt.resolve(fork).position == ckpt.resolve(parents.run_id).position
    curves, expected = (history(run) for run in (fork, parents.run_id))
    for key in ("loss", "val_loss", "accuracy", "val_accuracy", "ckpt_step"):
        assert curves[key] == expected[key]
    assert "ckpt.resume_divergence" not in tags_of(fork)
    assert client().get_run(fork).info.status == "FINISHED"
    assert everything(parents.run_id) == before


def test_a_fork_inside_an_epoch_ends_like_the_parents_own_continuation(
    another_process: Forget,
) -> None:
    options = {"save_freq": 3, "monitor": None, "save_weights_only": True}
    run_id, _ = train(None, 2, checkpoint=options, batch_size=16)
    another_process()
    fork = ckpt.fork(run_id, "step=6")
    _, model = train(fork, 3, checkpoint=options, batch_size=16)
    resumed = {**options, "resume": "step=6"}
    _, reference = train(run_id, 3, checkpoint=resumed, batch_size=16)
    assert same(model, reference)
    assert ckpt.resolve(fork).position == ckpt.resolve(run_id).position


def test_the_copy_is_a_checkpoint_like_any_other(parents: Parents) -> None:
    parent = ckpt.resolve(parents.run_id, "epoch=2")
    fork = ckpt.fork(parents.run_id, "epoch=2")
    copied = ckpt.resolve(fork, "latest")
    assert (copied.run_id, copied.position) == (fork, parent.position)
    assert (copied.metrics, copied.bytes, copied.digest) == (
        parent.metrics, parent.bytes, parent.digest,
    )  # fmt: skip
    assert files_below(copied.artifact_uri) == files_below(parent.artifact_uri)
    assert ckpt.resolve(fork, "best") == copied == ckpt.resolve(fork, "epoch=2")
    assert same(ckpt.load_model(fork), ckpt.load_model(parents.run_id, "epoch=2"))
    capture = (Store().logged(c).capture for c in (copied, parent))
    assert len({*capture}) == 1
    (model,) = models_of(fork)
    assert (model.status, model.name) == ("READY", parent.name)


def test_a_manifest_of_a_newer_minor_format_stays_as_it_was_written(parents: Parents) -> None:
    parent = ckpt.fork(parents.run_id)
    found = ckpt.resolve(parent)
    path = place(found.artifact_uri) / "manifest.json"
    data = json.dumps({**json.loads(path.read_bytes()), "format": "1.7", "later": [1]}).encode()
    path.write_bytes(data)
    client().set_logged_model_tags(found.model_id, {"ckpt.manifest_digest": digest_bytes(data)})
    copied = ckpt.resolve(ckpt.fork(parent))
    assert (place(copied.artifact_uri) / "manifest.json").read_bytes() == data
    assert copied.digest == digest_bytes(data)
    assert same(ckpt.load_model(copied.run_id), parents.model)


def test_the_run_page_tells_where_it_came_from(parents: Parents) -> None:
    run_id = parents.run_id
    parent, run = ckpt.resolve(run_id, "epoch=2"), client().get_run(run_id)
    fork = client().get_run(ckpt.fork(run_id, "epoch=2"))
    tags = fork.data.tags
    assert fork.info.experiment_id == run.info.experiment_id
    assert fork.info.run_name == f"{run.info.run_name}-fork-4"
    assert fork.info.status == "SCHEDULED"
    assert tags["ckpt.forked_from"] == run_id
    assert (tags["ckpt.forked_step"], tags["ckpt.forked_model"]) == ("4", parent.model_id)
    assert f"[{run_id}](#/experiments/{run.info.experiment_id}/" in tags["mlflow.note.content"]
    assert "epoch 2, step 4" in tags["mlflow.note.content"]
    assert [m.model_id for m in fork.inputs.model_inputs] == [parent.model_id]
    (copied,) = models_of(fork.info.run_id)
    assert [m.model_id for m in fork.outputs.model_outputs] == [copied.model_id]


def test_params_and_tags_of_the_user_come_along(parents: Parents) -> None:
    changed = {"epochs": 9, "new": "x"}
    fork = client().get_run(ckpt.fork(parents.run_id, params=changed, name="longer"))
    old = client().get_run(parents.run_id).data
    assert fork.info.run_name == "longer"
    assert fork.data.params == {**old.params, "epochs": "9", "new": "x"}
    assert len(old.params) > 150
    tags = fork.data.tags
    assert (tags["epochs"], tags["team"]) == ("9", "vision")
    assert tags["mlflow.project.entryPoint"] == "main"
    assert tags["mlflow.source.name"] == old.tags["mlflow.source.name"]
    assert tags["mlflow.user"] == old.tags["mlflow.user"]
    assert "Changed: `epochs=9`, `new=x`." in tags["mlflow.note.content"]
    assert not {"new", "mlflow.parentRunId", "ckpt.resume_divergence"} & tags.keys()


# --- curves -------------------------------------------------------------------


def test_the_curves_are_the_parents_up_to_there(parents: Parents) -> None:
    run_id = parents.run_id
    fork = ckpt.fork(run_id, "epoch=3")
    for key in ("loss", "val_loss", "accuracy", "val_accuracy", "ckpt_step"):
        assert rows(fork, key) == rows(run_id, key)[:3]
    probes, created = rows(run_id, "probe"), ckpt.resolve(run_id, "epoch=3").created_at
    assert sorted(rows(fork, "probe")) == sorted(row for row in probes if row[2] <= created)
    assert 4 <= len(rows(fork, "probe")) < len(probes) == 8
    assert not {k for k in client().get_run(fork).data.metrics if k.startswith(("ckpt/", "test"))}


def test_a_key_ends_where_the_checkpoint_stands_though_later_ones_are_older(
    another_process: Forget,
) -> None:
    """Epochs that were trained again keep their first rows, which are older than the copy."""
    run_id, _ = train(None, 3)
    another_process()
    train(run_id, 2, checkpoint={"resume": "epoch=1"})
    assert [step for step, _ in history(run_id)["loss"]] == [1, 2, 3]
    fork = ckpt.fork(run_id, "epoch=2")
    assert [step for step, _ in history(fork)["loss"]] == [1, 2]
    assert [step for step, _ in history(fork)["ckpt_step"]] == [2, 4]


# --- several series -----------------------------------------------------------


def test_a_fork_in_the_second_phase_does_not_train_the_first_again(parents: Parents) -> None:
    run_id = parents.phases
    before = everything(run_id)
    fork = ckpt.fork(run_id, "epoch=2@tune")
    assert list(ckpt.list_checkpoints(fork)["name"]) == [
        "head-0003-00000006", "tune-0002-00000004",
    ]  # fmt: skip
    assert rows(fork, "loss") == rows(run_id, "loss")
    assert rows(fork, "tune/loss") == rows(run_id, "tune/loss")[:2]
    counter = CountEpochs()
    _, model = two_phases(fork, counter)
    assert counter.trained == 1
    assert same(model, parents.phases_model)
    assert history(fork) == history(run_id)
    assert everything(run_id) == before


def test_a_fork_in_the_first_phase_knows_no_second(parents: Parents) -> None:
    run_id = parents.phases
    fork = ckpt.fork(run_id, "epoch=1@head")
    assert "ckpt.series.tune" not in tags_of(fork)
    assert ckpt.resolve(fork).name == "head-0001-00000002"
    assert not [k for k in client().get_run(fork).data.metrics if k.startswith("tune/")]
    _, model = two_phases(fork)
    assert same(model, parents.phases_model)
    assert history(fork) == history(run_id)


# --- again and again ----------------------------------------------------------


def test_the_parents_original_may_go(parents: Parents, another_process: Forget) -> None:
    run_id, _ = train(None, 2)
    fork = ckpt.fork(run_id, "epoch=1")
    Store().delete([ckpt.resolve(run_id, "epoch=1")])
    client().delete_run(run_id)
    _, model = train(fork, 4)
    assert same(model, parents.model)


def test_two_forks_of_one_step_and_a_fork_of_a_fork(parents: Parents) -> None:
    first, second = (ckpt.fork(parents.run_id, "epoch=3") for _ in range(2))
    assert first != second
    third = ckpt.fork(first)
    assert tags_of(third)["ckpt.forked_from"] == first
    assert tags_of(third)["ckpt.forked_model"] == ckpt.resolve(first).model_id
    own = [everything(run) for run in (first, second)]
    assert own[0]["curves"] == own[1]["curves"]
    _, model = train(third, 4)
    assert same(model, parents.model)
    assert [everything(run) for run in (first, second)] == own


def test_a_fork_of_a_completed_run_is_complete(parents: Parents) -> None:
    fork, counter = ckpt.fork(parents.run_id), CountEpochs()
    _, model = train(fork, 4, counter)
    assert counter.trained == 0
    assert same(model, parents.model)
    assert ckpt.resolve(fork, "final").epoch == 4


def test_the_active_run_stays_the_active_one(parents: Parents) -> None:
    with mlflow.start_run() as active:
        fork = ckpt.fork(parents.run_id)
        assert mlflow.active_run().info.run_id == active.info.run_id
    assert fork not in (parents.run_id, active.info.run_id)
    assert not client().get_run(active.info.run_id).data.metrics


def test_over_a_tracking_server(
    parents: Parents, tmp_path: Path, empty_database: Path, another_process: Forget
) -> None:
    database = tmp_path / "served.db"
    shutil.copy(empty_database, database)
    with tracking_server(database, tmp_path / "served") as running:
        mlflow.set_tracking_uri(running.uri)
        mlflow.set_experiment("remote")
        run_id, _ = train(None, 2)
        another_process()
        before, stored = everything(run_id), files_below((tmp_path / "served").as_uri())
        running.requests.clear()
        fork = ckpt.fork(run_id, "epoch=1")
        changing = [r for r in running.requests if not r.startswith("GET") and "search" not in r]
        assert changing[0].endswith("runs/create")
        assert changing[-1].endswith("runs/set-tag")
        assert everything(run_id) == before
        now = files_below((tmp_path / "served").as_uri())
        assert {path: now[path] for path in stored} == stored
        assert ckpt.resolve(fork).digest == ckpt.resolve(run_id, "epoch=1").digest
        assert len(client().get_run(fork).inputs.model_inputs) == 1
        _, model = train(fork, 4)
        assert same(model, parents.model)


@pytest.mark.slow
def test_a_project_resumes_a_fork_with_its_own_settings(tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    clean |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONDONTWRITEBYTECODE": "1"}

    def mlflow_run(*arguments: str) -> str:
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    mlflow_run("--experiment-name", "tests", "-P", "epochs=1")
    experiment = client().get_experiment_by_name("tests").experiment_id
    (run,) = client().search_runs([experiment])
    fork = ckpt.fork(run.info.run_id, params={"epochs": 2})
    assert "continues after epoch 1" in mlflow_run("-e", "resume", "-P", f"run_id={fork}")
    assert [step for step, _ in history(fork)["val_loss"]] == [1, 2]
    assert [step for step, _ in history(run.info.run_id)["val_loss"]] == [1]


# --- what is refused, and what fails ------------------------------------------


def test_only_what_a_fit_wrote_can_be_forked(parents: Parents) -> None:
    experiment = client().get_run(parents.empty).info.experiment_id
    before = len(client().search_runs([experiment]))
    with pytest.raises(ResumeError, match=r"Received: which='latest', which is manual-0000-.*warm"):
        ckpt.fork(parents.manual)
    with pytest.raises(NoCheckpoints):
        ckpt.fork(parents.empty)
    with pytest.raises(RunNotFound):
        ckpt.fork("nobody")
    assert len(client().search_runs([experiment])) == before


def test_an_end_state_cannot_be_forked(another_process: Forget) -> None:
    keras.utils.set_random_seed(11)
    averaged = mlp(optimizer=keras.optimizers.Adam(use_ema=True))
    with mlflow.start_run() as run:
        fit(averaged, MlflowCheckpoint(), epochs=2)
    another_process()
    with pytest.raises(ResumeError, match=r"ckpt-0002-00000004-final \(final\)"):
        ckpt.fork(run.info.run_id, "final")
    assert ckpt.resolve(ckpt.fork(run.info.run_id), "latest").epoch == 2


def assert_failed(run_id: str) -> None:
    """The run that was begun ended, holds nothing and resolves nowhere."""
    found = newest_fork_of(run_id)
    assert found.info.status == "FAILED"
    assert found.info.end_time
    assert not [m for m in models_of(found.info.run_id) if m.tags.get("ckpt.complete") == "true"]
    with pytest.raises(ResumeError, match="broken off and is not whole"):
        ckpt.resolve(found.info.run_id)
    assert not [m for m in models_of(found.info.run_id) if place(m.artifact_location).exists()]


def test_a_rotten_original_is_found_and_nothing_is_committed(parents: Parents) -> None:
    before = everything(parents.run_id)
    runs = len(client().search_runs([client().get_run(parents.run_id).info.experiment_id]))
    path = place(ckpt.resolve(parents.run_id).artifact_uri) / "data" / "model.keras"
    sound = path.read_bytes()
    rotten = bytearray(sound)
    rotten[len(rotten) // 2] ^= 1
    path.write_bytes(rotten)
    try:
        with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
            ckpt.fork(parents.run_id, "epoch=4")
    finally:
        path.write_bytes(sound)
    assert everything(parents.run_id) == before
    assert len(client().search_runs([client().get_run(parents.run_id).info.experiment_id])) == runs


class Refusing:
    """Lets the server refuse the n-th request of one kind."""

    def __init__(self, patch: pytest.MonkeyPatch, method: str, at: int, error: Any) -> None:
        real = getattr(SqlAlchemyStore, method)
        self.calls = 0

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == at:
                raise error
            return real(*args, **kwargs)

        patch.setattr(SqlAlchemyStore, method, call)


@pytest.mark.parametrize(
    ("method", "at"),
    [
        ("log_inputs", 1),
        ("log_batch", 1),
        ("log_batch", 3),
        ("log_batch", 4),
        ("set_tag", 1),
        ("update_run_info", 1),
        ("create_logged_model", 1),
        ("log_outputs", 1),
        ("finalize_logged_model", 1),
        ("set_logged_model_tags", 2),
    ],
)
@pytest.mark.parametrize("error", [mlflow.MlflowException("no"), KeyboardInterrupt()], ids=type)
def test_whatever_fails_leaves_a_failed_run(
    method: str, at: int, error: Any, parents: Parents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(parents.run_id)
    with monkeypatch.context() as patch:
        refusing = Refusing(patch, method, at, error)
        expected = StoreError if isinstance(error, Exception) else KeyboardInterrupt
        with pytest.raises(expected):
            ckpt.fork(parents.run_id)
        assert refusing.calls >= at
    assert_failed(parents.run_id)
    assert everything(parents.run_id) == before


def test_a_full_artifact_store_takes_the_other_series_back(
    parents: Parents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = everything(parents.phases)
    with monkeypatch.context() as patch:
        patch.setattr(FailingUpload, "fail_at", 2)
        patch.setattr(FailingUpload, "uploads", 0)
        for module in ("_draft", "_files"):
            patch.setattr(
                f"mlflow_ckpt.store.{module}.get_artifact_repository",
                lambda uri, **_: FailingUpload(uri),
            )
        with pytest.raises(SaveFailed, match="No space left"):
            ckpt.fork(parents.phases, "epoch=2@tune")
        assert FailingUpload.uploads == 2
    found = newest_fork_of(parents.phases)
    assert found.info.status == "FAILED"
    assert not [m for m in models_of(found.info.run_id) if m.tags.get("ckpt.complete") == "true"]
    assert everything(parents.phases) == before


def test_a_server_that_cannot_even_take_the_failure_is_said(
    parents: Parents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise mlflow.MlflowException("gone")

    for method in ("log_inputs", "update_run_info"):
        monkeypatch.setattr(SqlAlchemyStore, method, refuse)
    with pytest.raises(StoreError, match="log a model input") as caught:
        ckpt.fork(parents.run_id)
    assert "could not be marked FAILED" in caught.value.__notes__[0]


# --- warm start ---------------------------------------------------------------


def test_a_warm_start_takes_the_weights_and_is_recorded_once(parents: Parents) -> None:
    source = ckpt.resolve(parents.run_id, "best")
    with mlflow.start_run() as run:
        pass
    for _ in range(2):
        model = mlp(optimizer="sgd")
        with mlflow.start_run(run_id=run.info.run_id):
            assert ckpt.warm_start(model, parents.run_id) == source
        expected = ckpt.load_model(parents.run_id, "best").get_weights()
        assert all(map(np.array_equal, model.get_weights(), expected))
        assert model.optimizer.iterations == 0
    found = client().get_run(run.info.run_id)
    assert found.data.tags["ckpt.warm_started_from"] == source.model_id
    assert [m.model_id for m in found.inputs.model_inputs] == [source.model_id]
    assert not found.outputs.model_outputs


def test_without_an_active_run_only_the_weights_are_loaded(
    parents: Parents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, model = everything(parents.run_id), mlp()
    assert ckpt.warm_start(model, parents.run_id, "epoch=1").epoch == 1
    assert everything(parents.run_id) == before
    with mlflow.start_run() as other:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", other.info.run_id)
    found = ckpt.warm_start(model, parents.run_id, "epoch=1")
    assert tags_of(other.info.run_id)["ckpt.warm_started_from"] == found.model_id
    monkeypatch.setenv("MLFLOW_RUN_ID", "nobody")
    untouched = mlp()
    weights = [np.array(w) for w in untouched.get_weights()]
    with pytest.raises(RunNotFound):
        ckpt.warm_start(untouched, parents.run_id)
    assert all(map(np.array_equal, untouched.get_weights(), weights))


def test_a_restarted_script_keeps_what_its_run_really_began_from(
    parents: Parents, another_process: Forget
) -> None:
    def script(which: str, own: str | None) -> tuple[str, Any]:
        model = mlp()
        with mlflow.start_run(run_id=own) as run:
            ckpt.warm_start(model, parents.run_id, which)
            fit(model, MlflowCheckpoint(), epochs=1)
        return run.info.run_id, model

    own, reference = script("epoch=1", None)
    recorded = tags_of(own)["ckpt.warm_started_from"]
    another_process()
    _, model = script("epoch=2", own)  # by now another checkpoint is the best
    assert same(model, reference)
    assert tags_of(own)["ckpt.warm_started_from"] == recorded
    assert len(client().get_run(own).inputs.model_inputs) == 1


def test_another_architecture_is_refused_and_nothing_recorded(parents: Parents) -> None:
    with mlflow.start_run() as run, pytest.raises(ModelMismatch):
        ckpt.warm_start(mlp(units=9), parents.run_id)
    assert "ckpt.warm_started_from" not in tags_of(run.info.run_id)


# --- the command --------------------------------------------------------------


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        cli.main(["fork", *words], prog_name="mlflow-ckpt")
    return (int(caught.value.code or 0), *capsys.readouterr())


def test_the_command_prints_an_id_that_can_be_piped(
    parents: Parents, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (parents.run_id, "epoch=1", "-P", "epochs=9", "-P", "note=a=b", "--name", "longer")
    code, out, err = call(capsys, *words)
    fork = newest_fork_of(parents.run_id)
    assert (code, out) == (0, f"{fork.info.run_id}\n")
    assert err.startswith("Continue it with:\n")
    assert f"MLFLOW_RUN_ID={fork.info.run_id} python " in err
    assert fork.info.run_name == "longer"
    assert (fork.data.params["epochs"], fork.data.params["note"]) == ("9", "a=b")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        pytest.param(["-P", "epochs"], "Expected NAME=VALUE. Received: 'epochs'", id="no-value"),
        pytest.param(["-P", "=3"], "Expected NAME=VALUE. Received: '=3'", id="no-name"),
        pytest.param(["-P", "a=1", "-P", "a=2"], "'a' is given twice", id="twice"),
    ],
)
def test_a_wrong_parameter_is_a_wrong_command_line(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "some-run", *words)
    assert (code, out) == (2, "")
    assert text in err


@pytest.mark.slow
def test_the_command_needs_no_keras(parents: Parents) -> None:
    code = f"""
import sys
from mlflow_ckpt.cli import main
words = ["fork", "{parents.run_id}", "--tracking-uri", "{parents.uri}"]
main(words, standalone_mode=False)
print(sorted({{"keras", "tensorflow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{newest_fork_of(parents.run_id).info.run_id}\n[]\n"
