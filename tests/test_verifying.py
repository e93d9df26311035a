"""Verify reads every byte again, says what is wrong, and marks it for every resolver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
import stored
from builders import fit, mlp
from calling import Cli

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import NoCheckpoints, NotFound, SeriesNotFound, ServerAway, StoreError
from mlflow_ckpt.manifest import FILENAME
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import Store, Upkeep
from mlflow_ckpt.verifying import verify_experiment

MODEL = "data/model.keras"


def trained(epochs: int = 2, **arguments: Any) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None, **arguments), epochs=epochs)
    return str(run.info.run_id)


def states(found: ckpt.Verification) -> dict[str, str]:
    return {verdict.name: verdict.state for verdict in found.verdicts}


def complete(checkpoint: Checkpoint) -> str:
    return str(mlflow.get_logged_model(checkpoint.model_id).tags["ckpt.complete"])


def test_whole_checkpoints_are_read_to_the_last_byte() -> None:
    run_id = trained()
    found = ckpt.verify(run_id)
    assert found.ok
    assert [(v.state, v.epoch, v.step, v.marked) for v in found.verdicts] == [
        ("whole", 1, 2, False),
        ("whole", 2, 4, False),
    ]
    table = ckpt.list_checkpoints(run_id)
    assert [verdict.bytes for verdict in found.verdicts] == list(table["bytes"])
    files = stored.listing(ckpt.resolve(run_id))
    assert found.verdicts[0].files == len(files) - 1


@pytest.mark.backends(quick=("postgres-s3",))
def test_damage_is_found_named_and_marked_and_mended() -> None:
    run_id = trained(3)
    flipped, missing = ckpt.resolve(run_id, "epoch=3"), ckpt.resolve(run_id, "epoch=1")
    sound = stored.read(flipped, MODEL)
    stored.DAMAGE["flipped"](flipped, MODEL)
    stored.DAMAGE["missing"](missing, "state/training_state.h5")
    found = ckpt.verify(run_id)
    assert not found.ok
    assert states(found) == {
        missing.name: "corrupt",
        "ckpt-0002-00000004": "whole",
        flipped.name: "corrupt",
    }
    first, _, last = found.verdicts
    assert [fault.path for fault in first.faults] == ["state/training_state.h5"]
    assert first.faults[0].found.startswith("no file")
    assert [fault.path for fault in last.faults] == [MODEL]
    assert last.faults[0].expected.startswith("blake3:")
    assert first.marked
    assert last.marked
    assert (complete(flipped), complete(missing)) == ("corrupt", "corrupt")
    assert ckpt.resolve(run_id).epoch == 2
    assert list(ckpt.list_checkpoints(run_id)["epoch"]) == [2]

    stored.write(flipped, MODEL, sound)
    again = ckpt.verify(run_id)
    assert states(again)[flipped.name] == "mended"
    assert complete(flipped) == "true"
    assert ckpt.resolve(run_id).model_id == flipped.model_id
    assert mlflow.get_logged_model(flipped.model_id).tags["ckpt.corrupt_reason"] == ""


def test_every_fault_of_a_checkpoint_is_named() -> None:
    run_id = trained(1)
    found = ckpt.resolve(run_id)
    for path in (MODEL, "MLmodel", "state/training_state.h5"):
        stored.DAMAGE["truncated"](found, path)
    [verdict] = ckpt.verify(run_id).verdicts
    assert sorted(fault.path for fault in verdict.faults) == [
        "MLmodel",
        MODEL,
        "state/training_state.h5",
    ]
    assert all(fault.expected.endswith("bytes") for fault in verdict.faults)


@pytest.mark.parametrize("damage", stored.DAMAGE)
def test_a_wrong_manifest_is_a_fault_of_its_own(damage: str) -> None:
    run_id = trained(1)
    stored.DAMAGE[damage](ckpt.resolve(run_id), FILENAME)
    [verdict] = ckpt.verify(run_id).verdicts
    assert verdict.state == "corrupt"
    assert [fault.path for fault in verdict.faults] == [FILENAME]


def test_a_tag_that_contradicts_the_manifest_is_a_fault() -> None:
    run_id = trained(2)
    first = ckpt.resolve(run_id, "epoch=1")
    mlflow.MlflowClient().set_logged_model_tags(first.model_id, {"ckpt.step": "99"})
    found = {verdict.step: verdict for verdict in ckpt.verify(run_id).verdicts}
    [fault] = found[99].faults
    assert (fault.path, fault.expected, fault.found) == ("tag ckpt.step", "2", "99")


def test_no_mark_tells_nobody() -> None:
    run_id = trained(1)
    found = ckpt.resolve(run_id)
    stored.DAMAGE["flipped"](found, MODEL)
    [verdict] = ckpt.verify(run_id, mark=False).verdicts
    assert (verdict.state, verdict.marked, complete(found)) == ("corrupt", False, "true")


def test_who_may_only_read_is_told_that_nothing_was_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = trained(1)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), MODEL)

    def refuse(*_: object) -> None:
        raise StoreError("no permission")

    monkeypatch.setattr(Upkeep, "quarantine", refuse)
    [verdict] = ckpt.verify(run_id).verdicts
    assert (verdict.state, verdict.marked) == ("corrupt", False)
    assert "could not be marked on the server: no permission" in capsys.readouterr().out


def test_a_later_format_is_not_called_corrupt() -> None:
    run_id = trained(1)
    found = ckpt.resolve(run_id)
    data = stored.read(found, FILENAME).replace(b'"format": "1.0"', b'"format": "2.0"')
    stored.write(found, FILENAME, data)
    digest = {"ckpt.manifest_digest": digest_bytes(data)}
    mlflow.MlflowClient().set_logged_model_tags(found.model_id, digest)
    verification = ckpt.verify(run_id)
    assert not verification.ok
    assert [verdict.state for verdict in verification.verdicts] == ["unreadable"]
    assert complete(found) == "true"


def test_what_is_pruned_meanwhile_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(2)
    first, real = ckpt.resolve(run_id, "epoch=1"), Store.fetch

    def prune(self: Store, checkpoint: Checkpoint, *rest: Any, **options: Any) -> Any:
        if checkpoint.model_id == first.model_id:
            Store().delete([checkpoint])
        return real(self, checkpoint, *rest, **options)

    monkeypatch.setattr(Store, "fetch", prune)
    found = ckpt.verify(run_id)
    assert found.ok
    assert states(found)[first.name] == "gone"


def test_a_server_that_goes_away_makes_nothing_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(2)

    def away(*_: object, **__: object) -> None:
        raise ServerAway("it does not answer")

    monkeypatch.setattr(Store, "fetch", away)
    with pytest.raises(ServerAway):
        ckpt.verify(run_id)
    assert list(ckpt.list_checkpoints(run_id)["epoch"]) == [1, 2]


def test_one_file_at_a_time_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = trained(1)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    seen, real = [], Store.fetch

    def counted(self: Store, checkpoint: Checkpoint, manifest: Any, paths: Any, directory: Path,
                **_: Any) -> Any:  # fmt: skip
        files = real(self, checkpoint, manifest, paths, directory)
        seen.append(sum(path.is_file() for path in (tmp_path / "temporary").rglob("*")))
        return files

    monkeypatch.setattr(Store, "fetch", counted)
    assert ckpt.verify(run_id).ok
    assert max(seen) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_series_is_verified_alone() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None), MlflowCheckpoint(name="b", keep=None), epochs=2)
    found = ckpt.verify(run.info.run_id, series="b")
    assert {verdict.series for verdict in found.verdicts} == {"b"}
    with pytest.raises(SeriesNotFound, match="It has: b, ckpt"):
        ckpt.verify(run.info.run_id, series="c")


def test_an_experiment_is_verified_without_its_deleted_runs() -> None:
    first, second, deleted = trained(1), trained(1), trained(1)
    mlflow.MlflowClient().delete_run(deleted)
    with mlflow.start_run():
        pass
    name = mlflow.get_experiment(mlflow.get_run(first).info.experiment_id).name
    found = verify_experiment(name)
    assert [verdict.run_id for verdict in found.verdicts] == [first, second]
    with pytest.raises(NotFound, match="No experiment is called 'nothing'"):
        verify_experiment("nothing")


def test_the_command_reports_and_exits_with_1(call: Cli) -> None:
    run_id = trained(2)
    name = mlflow.get_experiment(mlflow.get_run(run_id).info.experiment_id).name
    done = call("verify", run_id)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].endswith("read: all whole.")
    newest = ckpt.resolve(run_id)
    stored.DAMAGE["flipped"](newest, MODEL)
    unmarked = call("verify", run_id, "--no-mark")
    assert unmarked.code == 1
    assert "it is not marked: selectors still return it" in unmarked.out
    for words in (["verify", run_id], ["verify", "--experiment", name]):
        done = call(*words)
        assert done.code == 1
        assert f"{MODEL}: expected blake3:" in done.out
        assert done.out.splitlines()[-1].endswith("read: 1 with faults.")
    report = call("verify", run_id, "--json")
    assert report.code == 1
    found = report.json()
    assert (found["ok"], found["checkpoints"], found["faulty"]) == (False, 2, 1)
    assert found["verdicts"][1]["faults"][0]["path"] == MODEL
    assert found["verdicts"][1]["model_id"] == newest.model_id


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["verify"], "Give RUN_ID or --experiment"),
        (["verify", "x", "--experiment", "y"], "Give RUN_ID or --experiment"),
        (["verify", "--experiment", "y", "--series", "z"], "--series is one of a run"),
    ],
)
def test_a_wrong_command_line_exits_with_2(words: list[str], text: str, call: Cli) -> None:
    done = call(*words)
    assert done.code == 2
    assert text in done.err


def test_a_run_without_checkpoints_is_whole() -> None:
    with mlflow.start_run() as run:
        pass
    assert ckpt.verify(run.info.run_id).verdicts == ()
    with pytest.raises(NoCheckpoints):
        ckpt.resolve(run.info.run_id)
