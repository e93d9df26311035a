"""What somebody does while a checkpoint is deleted, and what a deletion that stops leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
import stored
from backends import BasicAuth, as_user
from builders import fit, mlp
from calling import Cli
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import CheckpointNotFound, ResumeError
from mlflow_ckpt.orphans import Collector, Orphan
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import Store, Upkeep, _delete


def trained(epochs: int = 4, run_id: str | None = None, keep: Keep | None = None) -> str:
    with mlflow.start_run(run_id=run_id) as run:
        fit(mlp(), MlflowCheckpoint(keep=keep), epochs=epochs)
    return str(run.info.run_id)


def epochs(run_id: str) -> list[int]:
    return list(ckpt.list_checkpoints(run_id)["epoch"])


def state(checkpoint: Checkpoint) -> str:
    return str(MlflowClient().get_logged_model(checkpoint.model_id).tags["ckpt.complete"])


def register_files(checkpoint: Checkpoint, name: str) -> None:
    """By their address alone, which leaves no tag."""
    MlflowClient().create_registered_model(name)
    MlflowClient().create_model_version(name, source=checkpoint.artifact_uri)


class Refused(LocalArtifactRepository):
    def delete_artifacts(self, artifact_path: Any = None) -> None:
        raise PermissionError("no permission to delete")


def nothing_goes(monkeypatch: pytest.MonkeyPatch, *, asked: bool = True) -> None:
    """Files and records may not be deleted by this user, who is told so when asking."""

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("not for you", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", Refused.delete_artifacts)
    monkeypatch.setattr(MlflowClient, "delete_logged_model", refuse)
    if asked:
        monkeypatch.setattr(MlflowClient, "delete_logged_model_tag", refuse)


# --- two that meet ------------------------------------------------------------


def test_what_is_held_while_others_are_deleted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(7)
    best = ckpt.resolve(run_id, "best").epoch
    pinned, tagged, sourced, forked = [e for e in range(2, 7) if e != best][:4]
    versions = {e: ckpt.resolve(run_id, f"epoch={e}") for e in (tagged, sourced)}
    real, done = _delete.remove, []

    def hold_others(*arguments: Any, **named: Any) -> Any:
        if not done:
            done.append(True)
            ckpt.pin(run_id, f"epoch={pinned}")
            mlflow.register_model(versions[tagged].uri, "tagged")
            register_files(versions[sourced], "sourced")
            ckpt.fork(run_id, f"epoch={forked}")
        return real(*arguments, **named)

    monkeypatch.setattr(_delete, "remove", hold_others)
    ckpt.prune(run_id, Keep(last=1))
    assert epochs(run_id) == sorted({pinned, tagged, sourced, forked, best, 7})
    assert all("data/model.keras" in stored.listing(each) for each in versions.values())


def test_who_pins_what_is_being_deleted_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(2, keep=Keep(last=5))
    first, real, said = ckpt.resolve(run_id, "epoch=1"), _delete.remove, []

    def pin_late(*arguments: Any, **named: Any) -> Any:
        try:
            Store().upkeep.pin(first)
        except CheckpointNotFound as error:
            said.append(str(error))
        return real(*arguments, **named)

    monkeypatch.setattr(_delete, "remove", pin_late)
    Store().delete([first])
    assert "ckpt-0001-00000002" in said[0]
    assert "is being deleted at this moment" in said[0]


def test_a_fork_of_what_is_deleted_meanwhile_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as run:
        both = (MlflowCheckpoint(name=name, keep=None) for name in ("head", "tune"))
        fit(mlp(), *both, epochs=3)
    run_id, real = run.info.run_id, Store.new_run
    gone = [ckpt.resolve(run_id, which) for which in ("epoch=2@head", "epoch=2@tune")]

    def delete_first(self: Store, *arguments: Any) -> Any:
        self.delete(gone)
        return real(self, *arguments)

    monkeypatch.setattr(Store, "new_run", delete_first)
    fork = ckpt.fork(run_id, "epoch=2@tune")
    assert ckpt.resolve(fork, "latest@tune").digest == gone[1].digest
    assert ckpt.resolve(fork, "latest@head").epoch == 1
    assert "begins at a checkpoint that the parent has no more" in capsys.readouterr().out


def test_nothing_goes_in_favour_of_what_was_found_corrupt_meanwhile() -> None:
    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = [1.0, 2.0, 3.0, 4.0, 5.0][epoch]
            if epoch == 2:
                first = ckpt.resolve(run.info.run_id, "epoch=1")
                stored.DAMAGE["flipped"](first, "data/model.keras")
                ckpt.verify(run.info.run_id)

    keep = Keep(last=1, best=1)
    checkpoint = MlflowCheckpoint(monitor="score", mode="min", keep=keep)
    with mlflow.start_run() as run:
        fit(mlp(), Losses(), checkpoint, epochs=5)
    assert ckpt.resolve(run.info.run_id, "best").metrics["score"] == 2.0


def test_an_end_state_that_was_registered_by_its_files_stays() -> None:
    averaged = mlp(optimizer=keras.optimizers.Adam(use_ema=True))
    with mlflow.start_run() as run:
        fit(averaged, MlflowCheckpoint(), epochs=1)
        end = ckpt.resolve(run.info.run_id, "final")
        assert end.kind == "final"
        register_files(end, "served")
        fit(averaged, MlflowCheckpoint(), epochs=2)
    assert "data/model.keras" in stored.listing(end)
    assert ckpt.resolve(run.info.run_id, "final").epoch == 3


# --- who may not, and what stops half-way -------------------------------------


@pytest.mark.parametrize("asked", [True, False], ids=["denied-at-once", "denied-late"])
@pytest.mark.parametrize(
    ("was", "how"), [("deleting", ("--last", "1")), ("corrupt", ("--corrupt",))]
)
def test_what_may_not_be_deleted_is_not_brought_back(
    asked: bool, was: str, how: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, call: Cli
) -> None:
    run_id = trained(3)
    last = ckpt.resolve(run_id)
    stored.delete(last, "data/model.keras")
    nothing_goes(monkeypatch, asked=asked)
    MlflowClient().set_logged_model_tags(last.model_id, {"ckpt.complete": was})
    assert call("prune", run_id, *how).code == 0
    assert state(last) == was
    assert ckpt.load_weights(mlp(), run_id, "latest").epoch == 2


def test_a_hidden_one_that_is_held_and_whole_comes_back() -> None:
    run_id = trained(3)
    first, second = (ckpt.resolve(run_id, f"epoch={epoch}") for epoch in (1, 2))
    stored.delete(second, "MLmodel")
    for each in (first, second):
        tags = {"ckpt.complete": "deleting", "ckpt.pinned": "true"}
        MlflowClient().set_logged_model_tags(each.model_id, tags)
    ckpt.prune(run_id, Keep(last=1))
    assert (state(first), state(second)) == ("true", "deleting")
    assert "data/model.keras" in stored.listing(second)


def test_a_deletion_that_fails_says_what_has_gone(
    monkeypatch: pytest.MonkeyPatch, call: Cli
) -> None:
    run_id, real, calls = trained(5), LocalArtifactRepository.delete_artifacts, []

    def third(self: Any, *arguments: Any) -> None:
        calls.append(self)
        if len(calls) == 3:
            raise OSError("disk error")
        real(self, *arguments)

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", third)
    failed = call("prune", run_id, "--last", "1", "--json")
    assert failed.code == 1
    assert failed.err.count("ckpt-000") == 2
    assert "Run it again to go on from there" in failed.err
    assert call("prune", run_id, "--last", "1").code == 0
    assert epochs(run_id) == sorted({5, ckpt.resolve(run_id, "best").epoch})


def test_a_listing_that_only_proves_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote(LocalArtifactRepository):
        def list_artifacts(self, path: str | None = None) -> Any:
            raise RuntimeError("503 Server Error")

    monkeypatch.setattr(_delete, "get_artifact_repository", lambda uri, **_: Remote(uri))
    run_id = trained(4, keep=Keep(last=1, best=None))
    assert epochs(run_id) == [4]


def test_one_warning_for_all_series_of_a_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", Refused.delete_artifacts)
    keep = Keep(last=1, best=None)
    for _ in range(2):
        with mlflow.start_run():
            both = (MlflowCheckpoint(name=name, keep=keep) for name in ("a", "b"))
            fit(mlp(), *both, epochs=3)
    assert caplog.text.count("The artifact store cannot delete files") == 1


def test_no_empty_folder_is_left_in_a_local_store(tmp_path: Path) -> None:
    run_id = trained(4, keep=Keep(last=1, best=None))
    assert [p.name for p in (tmp_path / "artifacts" / "models").iterdir()] == [
        ckpt.resolve(run_id).model_id
    ]


_KILLED_FORK = """
import os, signal, sys
from mlflow_ckpt.store import Store
import mlflow_ckpt as ckpt

real = Store.commit
def kill(self, *arguments, **named):
    done = real(self, *arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
Store.commit = kill
ckpt.fork(sys.argv[1], "epoch=1@tune")
"""


def test_a_fork_that_was_killed_is_refused_and_can_be_removed(tracking: str) -> None:
    with mlflow.start_run() as run:
        both = (MlflowCheckpoint(name=name, keep=None) for name in ("head", "tune"))
        fit(mlp(), *both, epochs=2)
    parent = run.info.run_id
    environment = os.environ | {"MLFLOW_TRACKING_URI": tracking}
    command = [sys.executable, "-c", _KILLED_FORK, parent]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    (fork,) = MlflowClient().search_runs(
        [run.info.experiment_id], f"tags.`ckpt.forked_from` = '{parent}'"
    )
    for use in (
        lambda: ckpt.resolve(fork.info.run_id),
        lambda: trained(3, fork.info.run_id),
        lambda: ckpt.verify(fork.info.run_id),
    ):
        with pytest.raises(ResumeError, match="broken off and is not whole"):
            use()
    mlflow.end_run()
    mlflow.delete_run(fork.info.run_id)
    kinds = [(each.kind, each.gone) for each in Collector(deleted_runs=True).collect("tests")]
    assert sorted(kinds) == [("checkpoint", True), ("hold", True)]
    assert ckpt.resolve(parent, "epoch=1@tune").held == ()


# --- gc -----------------------------------------------------------------------


def gone(found: Iterable[Orphan]) -> dict[str, bool]:
    return {orphan.name: orphan.gone for orphan in found}


def test_gc_brings_back_what_is_held_and_was_only_hidden() -> None:
    run_id = trained(3)
    held, free = (ckpt.resolve(run_id, f"epoch={epoch}") for epoch in (1, 2))
    ckpt.pin(run_id, "epoch=1")
    for each in (held, free):
        MlflowClient().set_logged_model_tags(each.model_id, {"ckpt.complete": "deleting"})
    assert gone(Collector().collect("tests")) == {held.name: False, free.name: True}
    assert epochs(run_id) == [1, 3]


def test_gc_deletes_nothing_that_was_given_back_since_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = trained(2)
    first = ckpt.resolve(run_id, "epoch=1")
    MlflowClient().set_logged_model_tags(first.model_id, {"ckpt.complete": "deleting"})
    real = Upkeep.of_experiments

    def then_given_back(self: Upkeep, *arguments: Any) -> Any:
        found = real(self, *arguments)
        MlflowClient().set_logged_model_tags(first.model_id, {"ckpt.complete": "true"})
        return found

    monkeypatch.setattr(Upkeep, "of_experiments", then_given_back)
    assert gone(Collector().collect("tests")) == {first.name: False}
    assert epochs(run_id) == [1, 2]


def test_gc_by_who_may_not_delete_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(2)
    mlflow.delete_run(run_id)
    with monkeypatch.context() as patch:
        nothing_goes(patch)
        found = list(Collector(deleted_runs=True).collect("tests"))
    assert [orphan.gone for orphan in found] == [False, False]
    MlflowClient().restore_run(run_id)
    assert epochs(run_id) == [1, 2]


def test_a_hidden_one_of_which_nothing_is_there_holds_no_delivery_up(tmp_path: Path) -> None:
    run_id = trained(2)
    first = ckpt.resolve(run_id, "epoch=1")
    for path in stored.listing(first):
        stored.delete(first, path)
    tags = {"ckpt.complete": "deleting", "ckpt.pinned": "true"}
    MlflowClient().set_logged_model_tags(first.model_id, tags)
    shutil.rmtree(tmp_path / "artifacts" / run_id)
    ckpt.prune(run_id, Keep(last=1))
    assert state(first) == "deleting"


@pytest.mark.backends("basic-auth", quick=True)
def test_a_user_collects_after_mlflow_gc(backend: BasicAuth, call: Cli) -> None:
    run_id = trained(2)
    experiment = mlflow.get_run(run_id).info.experiment_id
    name = MlflowClient().get_experiment(experiment).name
    reader = backend.permitted(run_id, "READ")
    mlflow.delete_run(run_id)
    with as_user(reader):
        found = call("gc", "--experiment", name, "--deleted-runs", "--json")
        assert (found.code, [each["gone"] for each in found.json()]) == (0, [False, False])
    database = f"sqlite:///{backend.folder / 'mlflow.db'}"
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", database]
    command += ["--run-ids", run_id, "--artifacts-destination", str(backend.folder / "served")]
    user = os.environ | backend.admin | {"MLFLOW_TRACKING_URI": backend.uri}
    subprocess.run(command, check=True, capture_output=True, env=user)
    assert len(MlflowClient().search_logged_models([experiment])) == 2
    done = call("gc", "--experiment", name, "--json")
    assert (done.code, [each["gone"] for each in done.json()]) == (0, [True, True])
    assert MlflowClient().search_logged_models([experiment]) == []
