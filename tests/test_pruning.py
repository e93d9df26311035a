"""What retention keeps and deletes, by hand and in a fit; what a broken-off deletion leaves."""

from __future__ import annotations

import logging
from typing import Any

import mlflow
import pytest
import stored
from builders import fit, mlp
from calling import Cli
from doubles import CannotDelete
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint
from mlflow_ckpt.errors import CheckpointNotFound, StoreError
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import Store, _delete


def trained(epochs: int = 6, keep: Keep | None = None) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=keep), epochs=epochs)
    return str(run.info.run_id)


def epochs(run_id: str) -> list[int]:
    return [int(epoch) for epoch in ckpt.list_checkpoints(run_id)["epoch"]]


def best_epoch(run_id: str) -> int:
    return ckpt.resolve(run_id, "best").epoch


def logged(run_id: str) -> list[Any]:
    run = mlflow.get_run(run_id)
    return list(
        MlflowClient().search_logged_models(
            [run.info.experiment_id], filter_string=f"source_run_id = '{run_id}'"
        )
    )


def register(name: str, checkpoint: Checkpoint, source: str) -> None:
    """As a client does that knows nothing of logged models: no tag tells of it."""
    client = MlflowClient()
    client.create_registered_model(name)
    client.create_model_version(name, source=source, run_id=checkpoint.run_id)


# --- what stays ---------------------------------------------------------------


@pytest.mark.backends(quick=True)
def test_prune_deletes_files_and_records_of_what_no_rule_keeps() -> None:
    run_id = trained(5)
    before = {epoch: ckpt.resolve(run_id, f"epoch={epoch}") for epoch in range(1, 6)}
    expected = sorted({4, 5, best_epoch(run_id)})
    looked = ckpt.prune(run_id, Keep(last=2, best=1), dry_run=True)
    assert epochs(run_id) == [1, 2, 3, 4, 5]
    done = ckpt.prune(run_id, Keep(last=2, best=1))
    assert [(p.checkpoint.epoch, p.gone, p.why) for p in looked] == [
        (p.checkpoint.epoch, p.gone, p.why) for p in done
    ]
    assert [p.checkpoint.epoch for p in done if not p.gone] == expected
    assert epochs(run_id) == expected
    assert len(logged(run_id)) == len(expected)
    for epoch, checkpoint in before.items():
        assert bool(stored.listing(checkpoint)) == (epoch in expected)


def test_every_reason_to_stay_is_named() -> None:
    run_id = trained(8)
    best = best_epoch(run_id)
    spare = [epoch for epoch in range(1, 8) if epoch not in (best, 4)]
    pinned, registered, versioned, forked = (
        ckpt.resolve(run_id, f"epoch={epoch}") for epoch in spare[:4]
    )
    ckpt.pin(run_id, f"epoch={pinned.epoch}")
    mlflow.register_model(registered.uri, "tagged")
    register("untagged", versioned, versioned.artifact_uri)
    ckpt.fork(run_id, f"epoch={forked.epoch}")
    ckpt.save(mlp(), run_id=run_id, series="ckpt", epoch=0, step=1)
    found = {p.checkpoint.step: p for p in ckpt.prune(run_id, Keep(last=1, best=1, every=4))}
    why = {step // 2: set(p.why) for step, p in found.items() if not p.gone and step > 1}
    assert why[pinned.epoch] == {"pinned"}
    assert why[registered.epoch] == {"registered"}
    assert why[versioned.epoch] == {"registered"}
    assert why[forked.epoch] == {"forked"}
    assert "every" in why[4]
    assert "last" in why[8]
    assert "best" in why[best]
    assert found[1].why == ("saved by hand",)
    assert set(epochs(run_id)) == {0, *why}


@pytest.mark.parametrize("by_source", ["model", "files"])
def test_a_fit_keeps_what_was_registered_without_a_tag(by_source: str) -> None:
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=1)
        first = ckpt.resolve(run.info.run_id)
        source = first.uri if by_source == "model" else first.artifact_uri
        register(f"by-{by_source}", first, source)
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=2)
    assert epochs(run.info.run_id) == [1, 3]


def test_a_fit_keeps_the_parent_of_a_fork() -> None:
    model = mlp()
    with mlflow.start_run() as run:
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=1)
        ckpt.fork(run.info.run_id)
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=2)
    assert epochs(run.info.run_id) == [1, 3]


def test_prune_never_deletes_the_newest_or_the_best() -> None:
    run_id = trained(6)
    ckpt.prune(run_id, Keep(last=None, best=None, every=100))
    assert epochs(run_id) == sorted({6, best_epoch(run_id)})


def test_prune_leaves_end_states_and_other_series_alone() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), MlflowCheckpoint(name="b", keep=None), epochs=3)
    run_id = run.info.run_id
    ckpt.prune(run_id, Keep(last=1), series="b")
    table = ckpt.list_checkpoints(run_id)
    assert list(table.loc[table["series"] == "ckpt", "epoch"]) == [1, 2, 3]
    assert len(table.loc[table["series"] == "b"]) <= 2
    assert ckpt.resolve(run_id, "final@b").epoch == 3


def test_what_is_pinned_between_look_and_deletion_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(4)
    oldest, real = ckpt.resolve(run_id, "epoch=1"), Store.checkpoints

    def pin_late(self: Store, *arguments: Any) -> Any:
        found = real(self, *arguments)
        MlflowClient().set_logged_model_tags(oldest.model_id, {"ckpt.pinned": "true"})
        return found

    monkeypatch.setattr(Store, "checkpoints", pin_late)
    ckpt.prune(run_id, Keep(last=1, best=1))
    monkeypatch.undo()
    assert 1 in epochs(run_id)


def test_a_registry_that_refuses_keeps_everything_with_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = trained(4)

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("not for you", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "search_model_versions", refuse)
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert epochs(run_id) == [1, 2, 3, 4]
    assert caplog.text.count("Old checkpoints stay") == 1


# --- pins ---------------------------------------------------------------------


@pytest.mark.backends(quick=("basic-auth",))
def test_a_pin_holds_until_it_is_removed() -> None:
    run_id = trained(3)
    free = next(epoch for epoch in (1, 2) if epoch != best_epoch(run_id))
    assert ckpt.pin(run_id, f"epoch={free}").epoch == free
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert free in epochs(run_id)
    table = ckpt.list_checkpoints(run_id)
    assert list(table.loc[table["pinned"], "epoch"]) == [free]
    ckpt.unpin(run_id, f"epoch={free}")
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert free not in epochs(run_id)
    with pytest.raises(CheckpointNotFound):
        ckpt.pin(run_id, f"epoch={free}")


# --- deletions that break off -------------------------------------------------

STEPS = {
    "files": (LocalArtifactRepository, "delete_artifacts"),
    "record": (MlflowClient, "delete_logged_model"),
}


@pytest.mark.parametrize("carried_out", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    "resolved", ["latest", "best", pytest.param("epoch=1", marks=pytest.mark.slow)]
)
def test_a_prune_that_is_killed_leaves_nothing_that_resolves(
    step: str, carried_out: bool, resolved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = trained(3)
    doomed = ckpt.resolve(run_id, resolved)
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def killed(self: Any, *arguments: Any, **options: Any) -> None:
        if carried_out:
            real(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            Store().delete([doomed])
    assert doomed.model_id not in set(ckpt.list_checkpoints(run_id)["model_id"])
    for which in ("latest", "best", "final"):
        try:
            found = ckpt.load_weights(mlp(), run_id, which)
        except CheckpointNotFound:
            assert which == "final"  # It was the one that is half gone.
        else:
            assert found.model_id != doomed.model_id
    assert ckpt.verify(run_id).ok
    ckpt.prune(run_id, Keep(last=5, best=1))
    assert doomed.model_id not in {model.model_id for model in logged(run_id)}
    assert stored.listing(doomed) == []


def test_more_deletions_than_a_page_that_broke_off_are_finished() -> None:
    run_id = trained(1)
    run, client = mlflow.get_run(run_id), MlflowClient()
    newest = ckpt.resolve(run_id)
    tags = {**client.get_logged_model(newest.model_id).tags, "ckpt.complete": "deleting"}
    for _ in range(120):
        client.create_logged_model(
            run.info.experiment_id, name=newest.name, source_run_id=run_id, tags=tags
        )
    ckpt.prune(run_id, Keep(last=1))
    assert [model.model_id for model in logged(run_id)] == [newest.model_id]


def test_a_dry_run_finishes_nothing() -> None:
    run_id = trained(2)
    first = ckpt.resolve(run_id, "epoch=1")
    MlflowClient().set_logged_model_tags(first.model_id, {"ckpt.complete": "deleting"})
    ckpt.prune(run_id, Keep(last=1), dry_run=True)
    assert stored.listing(first)
    assert len(logged(run_id)) == 2


# --- stores that cannot, or may not -------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "mlflow_ckpt"]


def test_a_store_that_denies_deletion_warns_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError("the bucket's policy")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", denied)
    run_id = trained(4, Keep(last=1, best=None))
    assert epochs(run_id) == [4]
    [warning] = warnings_of(caplog)
    assert "cannot delete files (the bucket's policy)" in warning


def test_a_server_that_denies_deletion_keeps_what_it_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def denied(self: MlflowClient, model_id: str) -> None:
        calls.append(model_id)
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(_delete, "get_artifact_repository", CannotDelete)
    monkeypatch.setattr(MlflowClient, "delete_logged_model", denied)
    run_id = trained(4, Keep(last=1, best=None))
    assert epochs(run_id) == [1, 2, 3, 4]
    assert ckpt.verify(run_id).ok
    assert len(calls) == 1
    [warning] = warnings_of(caplog)
    assert "does not let this user delete them" in warning


def test_a_store_that_only_says_that_it_deletes_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Liar(CannotDelete):
        def delete_artifacts(self, artifact_path: str | None = None) -> None:
            pass

    monkeypatch.setattr(_delete, "get_artifact_repository", Liar)
    trained(4, Keep(last=1, best=None))
    [warning] = warnings_of(caplog)
    assert "still lists them" in warning


def test_another_failure_of_the_artifact_store_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(2)

    def broken(*_: object, **__: object) -> None:
        raise OSError("a disk error")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", broken)
    with pytest.raises(StoreError, match="a disk error"):
        Store().delete([ckpt.resolve(run_id, "epoch=1")])


# --- what is corrupt ----------------------------------------------------------


def test_what_is_corrupt_stays_until_it_is_asked_for() -> None:
    run_id = trained(4)
    for epoch in (3, 4):
        stored.DAMAGE["flipped"](ckpt.resolve(run_id, f"epoch={epoch}"), "data/model.keras")
    ckpt.pin(run_id, "epoch=3")
    ckpt.verify(run_id)
    ckpt.prune(run_id, Keep(last=1, best=1))
    assert {m.tags["ckpt.epoch"] for m in logged(run_id)} >= {"3", "4"}
    done = ckpt.prune(run_id, None, corrupt=True)
    assert [(p.checkpoint.epoch, p.gone, p.why) for p in done if p.checkpoint.epoch > 2] == [
        (3, False, ("pinned",)),
        (4, True, ("corrupt",)),
    ]
    assert "4" not in {model.tags["ckpt.epoch"] for model in logged(run_id)}


# --- the commands -------------------------------------------------------------


def test_the_commands_pin_and_prune(call: Cli) -> None:
    run_id = trained(5)
    best = best_epoch(run_id)
    pinned = next(epoch for epoch in (1, 2, 3) if epoch != best)
    name = ckpt.resolve(run_id, f"epoch={pinned}").name
    assert call("pin", run_id, f"epoch={pinned}").out == f"{name}\n"
    looked = call("prune", run_id, "--last", 1, "--dry-run")
    assert looked.code == 0
    assert looked.out.count("would go") == 5 - len({best, pinned, 5}) + 1
    assert epochs(run_id) == [1, 2, 3, 4, 5]
    done = call("prune", run_id, "--last", 1, "--json").json()
    assert sorted(each["epoch"] for each in done if not each["gone"]) == sorted({best, pinned, 5})
    assert epochs(run_id) == sorted({best, pinned, 5})
    assert call("pin", run_id, f"epoch={pinned}", "--remove").out == f"{name}\n"
    again = call("prune", run_id, "--last", 1)
    assert "1 of " in again.out.splitlines()[-1]
    assert epochs(run_id) == sorted({best, 5})
    wrong = call("prune", run_id)
    assert wrong.code == 2
    assert "what is to stay?" in wrong.err
    assert call("prune", run_id, "--last", 0).code == 2


def test_pruning_says_nothing_on_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlflow_ckpt")
    ckpt.prune(trained(3), Keep(last=1))
    assert warnings_of(caplog) == []
