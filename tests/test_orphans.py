"""What runs that are gone leave behind, before and after `mlflow gc`, and its removal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import pytest
import stored
from builders import fit, mlp
from calling import Cli
from mlflow import MlflowClient

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import NotFound
from mlflow_ckpt.orphans import Collector, Orphan


def trained(epochs: int = 2) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=epochs)
    return str(run.info.run_id)


def collect(experiment: str | None = None, **options: bool) -> list[Orphan]:
    return list(Collector(**options).collect(experiment))


def checkpoints_of(found: list[Orphan]) -> set[str]:
    return {orphan.name for orphan in found if orphan.kind == "checkpoint" and orphan.gone}


def mlflow_gc(tracking: str) -> None:
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", tracking]
    subprocess.run([*command, "--tracking-uri", tracking], check=True, capture_output=True)


def models(experiment: str) -> list[Any]:
    return list(MlflowClient().search_logged_models([experiment]))


def test_what_mlflow_gc_leaves_of_a_run_is_removed(tracking: str, tmp_path: Path) -> None:
    """The trap is MLflow's: if this fails at its first half, `gc` has learned to do it."""
    gone, stays = trained(), trained()
    experiment = mlflow.get_run(gone).info.experiment_id
    first = ckpt.resolve(gone)
    MlflowClient().delete_run(gone)
    mlflow_gc(tracking)
    assert len(models(experiment)) == 4
    assert stored.listing(first)

    looked = collect(dry_run=True)
    assert len(models(experiment)) == 4
    found = collect()
    assert found == looked
    assert checkpoints_of(found) == {"ckpt-0001-00000002", "ckpt-0002-00000004"}
    assert {model.source_run_id for model in models(experiment)} == {stays}
    assert len(list((tmp_path / "artifacts").rglob("model.keras"))) == 2
    assert not list((tmp_path / "spool" / gone).rglob("*"))
    assert [orphan.name for orphan in found if orphan.kind == "journal"] == ["ckpt"]
    assert collect() == []
    assert ckpt.verify(stays).ok


def test_a_run_that_could_be_restored_is_left_alone_unless_asked_for() -> None:
    run_id = trained()
    MlflowClient().delete_run(run_id)
    assert collect() == []
    MlflowClient().restore_run(run_id)
    assert ckpt.verify(run_id).ok
    MlflowClient().delete_run(run_id)
    assert len(checkpoints_of(collect(deleted_runs=True))) == 2


def test_what_is_pinned_or_registered_stays_and_is_named() -> None:
    run_id = trained(3)
    ckpt.pin(run_id, "epoch=1")
    mlflow.register_model(ckpt.resolve(run_id, "epoch=2").uri, "kept")
    MlflowClient().delete_run(run_id)
    found = {o.name: o.why for o in collect(deleted_runs=True) if o.kind == "checkpoint"}
    assert found == {
        "ckpt-0001-00000002": "pinned",
        "ckpt-0002-00000004": "registered",
        "ckpt-0003-00000006": "",
    }


def test_half_made_and_half_deleted_checkpoints_go_too() -> None:
    gone, stays = trained(1), trained(2)
    run, client = mlflow.get_run(gone), MlflowClient()
    client.create_logged_model(
        run.info.experiment_id,
        name="ckpt-0002-00000004",
        source_run_id=gone,
        model_type="keras-checkpoint",
        tags={"ckpt.series": "ckpt", "ckpt.complete": "pending"},
    )
    half = ckpt.resolve(stays, "epoch=1")
    client.set_logged_model_tags(half.model_id, {"ckpt.complete": "deleting"})
    client.delete_run(gone)
    assert len(collect(deleted_runs=True)) == 4  # With the journal.
    assert [m.source_run_id for m in models(run.info.experiment_id)] == [stays]
    assert stored.listing(half) == []


def test_a_fork_that_is_gone_holds_its_parent_no_longer() -> None:
    parent = trained(2)
    fork = ckpt.fork(parent, "epoch=1")
    assert ckpt.resolve(parent, "epoch=1").held == ("forked",)
    MlflowClient().delete_run(fork)
    assert ckpt.resolve(parent, "epoch=1").held == ("forked",)
    found = [orphan for orphan in collect(deleted_runs=True) if orphan.kind == "hold"]
    assert [(orphan.run_id, orphan.name) for orphan in found] == [(fork, "ckpt-0001-00000002")]
    assert ckpt.resolve(parent, "epoch=1").held == ()


def test_one_experiment_is_searched_alone_and_a_deleted_one_too() -> None:
    run_id = trained()
    client = MlflowClient()
    experiment = mlflow.get_experiment(mlflow.get_run(run_id).info.experiment_id)
    other = client.create_experiment("other")
    with mlflow.start_run(experiment_id=other) as run:
        ckpt.save(mlp())
    for each in (run_id, run.info.run_id):
        client.delete_run(each)
    assert len(checkpoints_of(collect("other", deleted_runs=True))) == 1
    client.delete_experiment(experiment.experiment_id)
    assert len(checkpoints_of(collect(experiment.name, deleted_runs=True))) == 2
    with pytest.raises(NotFound, match="No experiment is called 'nothing'"):
        collect("nothing")


def test_models_of_others_are_never_touched(tracking: str) -> None:
    with mlflow.start_run() as run:
        MlflowClient().create_logged_model(
            run.info.experiment_id, name="theirs", source_run_id=run.info.run_id
        )
    MlflowClient().delete_run(run.info.run_id)
    mlflow_gc(tracking)
    assert collect(deleted_runs=True) == []
    assert [model.name for model in models(run.info.experiment_id)] == ["theirs"]


def test_the_command_collects(call: Cli) -> None:
    run_id = trained(2)
    MlflowClient().delete_run(run_id)
    assert call("gc", "--all").out == "Nothing was left behind.\n"
    looked = call("gc", "--all", "--deleted-runs", "--dry-run")
    assert looked.code == 0
    assert looked.out.splitlines()[-1].endswith("would go.")
    done = call("gc", "--all", "--deleted-runs", "--json").json()
    assert [orphan["kind"] for orphan in done] == ["checkpoint", "checkpoint", "journal"]
    assert call("gc", "--all", "--deleted-runs").out == "Nothing was left behind.\n"
    assert call("gc").code == 2
