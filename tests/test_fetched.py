"""`latest` goes back past damage and says so; every other selector raises; a deletion is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
from builders import fit, mlp, same

import mlflow_ckpt as ckpt
from mlflow_ckpt import Keep, MlflowCheckpoint, fetched, report
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import (
    CheckpointNotFound,
    DigestMismatch,
    FormatTooNew,
    IntegrityError,
    ManifestError,
    StoreError,
)
from mlflow_ckpt.manifest import FILENAME, Manifest
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.store import Store, Upkeep

MODEL = "data/model.keras"
STATE = "state/training_state.h5"

Forget = Callable[[], None]


def trained(epochs: int = 3, **arguments: Any) -> str:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(keep=None, **arguments), epochs=epochs)
    return str(run.info.run_id)


def tags_of(checkpoint: Checkpoint) -> dict[str, str]:
    return dict(mlflow.MlflowClient().get_logged_model(checkpoint.model_id).tags)


USES: dict[str, Callable[[str, str, Path], Any]] = {
    "load_model": lambda run_id, which, _: ckpt.load_model(run_id, which),
    "load_weights": lambda run_id, which, _: ckpt.load_weights(mlp(), run_id, which),
    "warm_start": lambda run_id, which, _: ckpt.warm_start(mlp(), run_id, which),
    "download": lambda run_id, which, dst: ckpt.download(run_id, which, dst / "out"),
    "export": lambda run_id, which, dst: ckpt.export(run_id, which, dst / "x.keras"),
    "fork": lambda run_id, which, _: ckpt.fork(run_id, which),
}


@pytest.mark.parametrize("damage", stored.DAMAGE)
def test_latest_goes_back_and_marks_what_it_skipped(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_latest_goes_back(damage, capsys)


@pytest.mark.backends(quick=("postgres-s3",))
def test_latest_goes_back_past_a_file_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    check_latest_goes_back("missing", capsys)


def check_latest_goes_back(damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = trained()
    newest, before = ckpt.resolve(run_id), ckpt.resolve(run_id, "epoch=2")
    stored.DAMAGE[damage](newest, MODEL)
    capsys.readouterr()
    found = ckpt.load_weights(mlp(), run_id)
    assert found.model_id == before.model_id
    [skipped] = found.skipped
    assert (skipped.name, skipped.model_id) == (newest.name, newest.model_id)
    assert MODEL in skipped.reason
    assert f"series 'ckpt': skipped {newest.name} ({MODEL}: expected " in capsys.readouterr().out
    tags = tags_of(newest)
    assert tags["ckpt.complete"] == "corrupt"
    assert MODEL in tags["ckpt.corrupt_reason"]
    again = ckpt.load_weights(mlp(), run_id)
    assert (again.model_id, again.skipped) == (before.model_id, ())
    assert ckpt.resolve(run_id).model_id == before.model_id


@pytest.mark.parametrize("use", USES)
def test_everything_that_reads_latest_goes_back(use: str, tmp_path: Path) -> None:
    run_id = trained(2)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), MODEL)
    with mlflow.start_run():
        USES[use](run_id, "latest", tmp_path)
    assert ckpt.resolve(run_id).epoch == 1


@pytest.mark.parametrize(
    "which",
    [
        "epoch=2",
        *(
            pytest.param(w, marks=pytest.mark.slow)
            for w in ("best", "final", "step=4", "best(accuracy,max)")
        ),
    ],
)
@pytest.mark.parametrize("use", USES)
def test_any_other_selector_raises_and_marks_nothing(which: str, use: str, tmp_path: Path) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp(), series="ckpt", epoch=1, step=2, metrics={"val_loss": 2.0, "accuracy": 0.0})
        fit(mlp(), MlflowCheckpoint(keep=None), epochs=2)
    run_id = run.info.run_id
    for checkpoint in {ckpt.resolve(run_id, each).model_id for each in (which, "latest")}:
        stored.DAMAGE["flipped"](mlflow.get_logged_model(checkpoint).artifact_location, MODEL)
    named = ckpt.resolve(run_id, which)
    with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
        USES[use](run_id, which, tmp_path)
    assert tags_of(named)["ckpt.complete"] == "true"
    assert ckpt.resolve(run_id, which).model_id == named.model_id


def test_showing_latest_goes_back_past_a_manifest_that_is_wrong() -> None:
    run_id = trained(2)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), FILENAME)
    assert report.describe(run_id, "latest")["epoch"] == 1


def test_where_every_checkpoint_is_damaged_each_is_named() -> None:
    run_id = trained(2)
    names = [ckpt.resolve(run_id, f"epoch={n}").name for n in (1, 2)]
    for epoch in (1, 2):
        stored.DAMAGE["flipped"](ckpt.resolve(run_id, f"epoch={epoch}"), MODEL)
    with pytest.raises(IntegrityError, match="Every checkpoint of the series 'ckpt'") as caught:
        ckpt.load_model(run_id)
    assert all(name in str(caught.value) for name in names)


def test_a_download_that_broke_off_is_repeated_and_nothing_is_marked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = trained(2)
    newest, real, calls = ckpt.resolve(run_id), Store.fetch, []

    def broken_once(self: Store, checkpoint: Checkpoint, *rest: Any, **options: Any) -> Any:
        calls.append(checkpoint.name)
        if len(calls) == 1:
            raise DigestMismatch("it broke off", path=MODEL, expected="9 bytes", found="4 bytes")
        return real(self, checkpoint, *rest, **options)

    monkeypatch.setattr(Store, "fetch", broken_once)
    assert ckpt.load_weights(mlp(), run_id).model_id == newest.model_id
    assert calls == [newest.name, newest.name]
    assert tags_of(newest)["ckpt.complete"] == "true"


def test_who_may_only_read_goes_back_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = trained(3)
    for epoch in (2, 3):
        stored.DAMAGE["flipped"](ckpt.resolve(run_id, f"epoch={epoch}"), MODEL)

    def refuse(*_: object) -> None:
        raise StoreError("no permission")

    monkeypatch.setattr(Upkeep, "quarantine", refuse)
    found = ckpt.load_weights(mlp(), run_id)
    assert found.epoch == 1
    assert [skipped.name[:9] for skipped in found.skipped] == ["ckpt-0003", "ckpt-0002"]
    assert "could not be marked as corrupt: no permission" in capsys.readouterr().out


def test_a_later_format_is_no_damage() -> None:
    run_id = trained(2)
    newest = ckpt.resolve(run_id)
    data = stored.read(newest, FILENAME).replace(b'"format": "1.0"', b'"format": "2.0"')
    stored.write(newest, FILENAME, data)
    digest = {"ckpt.manifest_digest": digest_bytes(data)}
    mlflow.MlflowClient().set_logged_model_tags(newest.model_id, digest)
    with pytest.raises(FormatTooNew, match=r"format 2\.0"):
        ckpt.load_model(run_id)
    assert tags_of(newest)["ckpt.complete"] == "true"


def test_a_digest_of_a_later_algorithm_is_no_damage() -> None:
    run_id = trained(2)
    newest = ckpt.resolve(run_id)
    client = mlflow.MlflowClient()
    client.set_logged_model_tags(newest.model_id, {"ckpt.manifest_digest": "blake4:00ff"})
    with pytest.raises(FormatTooNew, match="'blake4'.*upgrade with"):
        ckpt.load_model(run_id)
    found = ckpt.verify(run_id)
    assert [verdict.state for verdict in found.verdicts] == ["whole", "unreadable"]
    assert tags_of(newest)["ckpt.complete"] == "true"
    assert "ckpt.corrupt_reason" not in tags_of(newest)


@pytest.mark.parametrize("path", ["./manifest.json", "./data/model.keras", "DATA/model.keras"])
def test_a_manifest_with_a_second_spelling_of_a_path_is_never_laid_down(
    path: str, tmp_path: Path
) -> None:
    run_id = trained(1)
    newest = ckpt.resolve(run_id)
    tree = json.loads(stored.read(newest, FILENAME))
    forged = stored.read(newest, "MLmodel")
    tree["files"].append({"path": path, "size": len(forged), "digest": digest_bytes(forged)})
    data = json.dumps(tree).encode()
    stored.write(newest, FILENAME, data)
    digest = {"ckpt.manifest_digest": digest_bytes(data)}
    mlflow.MlflowClient().set_logged_model_tags(newest.model_id, digest)
    with pytest.raises(ManifestError):
        ckpt.download(run_id, "epoch=1", tmp_path / "here")
    assert not (tmp_path / "here" / FILENAME).exists()


class Pruning:
    """Deletes checkpoints at the moment in which their files are asked for, the first `count`."""

    def __init__(self, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._store, self._count, self._gone = Store(), count, set[str]()
        self._real = Store.manifest
        monkeypatch.setattr(Store, "manifest", lambda *arguments: self(*arguments))

    def __call__(self, store: Store, checkpoint: Checkpoint, directory: Path) -> Manifest:
        if len(self._gone) < self._count:
            self._gone.add(checkpoint.model_id)
            self._store.delete([checkpoint])
        return self._real(store, checkpoint, directory)


@pytest.mark.backends
@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_checkpoint_that_is_pruned_under_the_reader_is_looked_up_again(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = trained(3)
    Pruning(2, monkeypatch)
    found = ckpt.load_weights(mlp(), run_id, which)
    assert found.skipped == ()
    assert list(ckpt.list_checkpoints(run_id)["model_id"]) == [found.model_id]


def test_a_step_that_is_pruned_under_the_reader_is_not_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = trained(3)
    Pruning(1, monkeypatch)
    with pytest.raises(CheckpointNotFound, match=r"no checkpoint at step=6"):
        ckpt.load_model(run_id, "step=6")


# --- resume -------------------------------------------------------------------


def resumed(run_id: str, epochs: int, **arguments: Any) -> keras.Model:
    keras.utils.set_random_seed(11)
    model = mlp()
    with mlflow.start_run(run_id=run_id):
        fit(model, MlflowCheckpoint(keep=None, **arguments), epochs=epochs)
    return model


def whole(epochs: int) -> keras.Model:
    keras.utils.set_random_seed(11)
    model = mlp()
    fit(model, epochs=epochs)
    return model


@pytest.mark.backends
@pytest.mark.parametrize("path", [MODEL, STATE, FILENAME])
def test_a_resume_goes_back_and_ends_as_if_nothing_had_happened(
    path: str, another_process: Forget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 3)
    newest = ckpt.resolve(run_id)
    another_process()
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another machine"))
    stored.DAMAGE["flipped"](newest, path)
    model = resumed(run_id, 4)
    assert same(model, whole(4))
    tags = mlflow.get_run(run_id).data.tags
    assert tags["ckpt.resumed_from"].startswith("step=4 ")
    assert tags["ckpt.resume_skipped"].startswith(f"{newest.name} ({path}: expected ")
    assert "ckpt.resume_divergence" not in tags
    assert tags_of(newest)["ckpt.complete"] == "corrupt"
    table = ckpt.list_checkpoints(run_id)
    assert list(table["epoch"]) == [1, 2, 3, 4]
    assert newest.model_id not in set(table["model_id"])


def test_what_is_damaged_on_this_machine_is_read_from_the_server(
    another_process: Forget, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 2)
    another_process()
    [local] = (tmp_path / "spool").rglob("copy/files/data/model.keras")
    data = bytearray(local.read_bytes())
    local.unlink()  # It may be one file with the store's.
    data[len(data) // 2] ^= 1
    local.write_bytes(data)
    assert same(resumed(run_id, 3), whole(3))
    assert "on this machine, data/model.keras" in capsys.readouterr().out
    assert mlflow.get_run(run_id).data.tags["ckpt.resumed_from"].startswith("step=4 ")


def test_what_is_damaged_on_the_server_is_read_on_this_machine(
    another_process: Forget, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 2)
    newest = ckpt.resolve(run_id)
    another_process()
    place = Path(newest.artifact_uri.removeprefix("file://")) / MODEL
    data = place.read_bytes()
    place.unlink()
    place.write_bytes(data[:-1])
    assert ckpt.load_weights(mlp(), run_id).epoch == 1
    assert same(resumed(run_id, 3), whole(3))
    assert mlflow.get_run(run_id).data.tags["ckpt.resumed_from"].startswith("step=4 ")


def test_a_resume_without_a_whole_checkpoint_begins_nothing(
    another_process: Forget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 2)
    another_process()
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another machine"))
    for epoch in (1, 2):
        stored.DAMAGE["flipped"](ckpt.resolve(run_id, f"epoch={epoch}"), STATE)
    with pytest.raises(IntegrityError, match="Every checkpoint of the series 'ckpt'"):
        resumed(run_id, 3)
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss")
    assert [row.step for row in history] == [1, 2]


@pytest.mark.parametrize(("which", "goes_back"), [("latest", True), ("epoch=2", False)])
def test_a_resume_from_a_named_checkpoint_goes_back_for_latest_alone(
    which: str, goes_back: bool, another_process: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 2)
    another_process()
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), STATE)
    if goes_back:
        assert same(resumed(run_id, 3, resume=which), whole(3))
    else:
        with pytest.raises(DigestMismatch, match=r"training_state\.h5"):
            resumed(run_id, 3, resume=which)


def test_a_damaged_end_state_is_made_up_again(another_process: Forget) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id

    def averaged() -> keras.Model:
        keras.utils.set_random_seed(11)
        model = mlp(optimizer=keras.optimizers.Adam(use_ema=True))
        with mlflow.start_run(run_id=run_id):
            fit(model, MlflowCheckpoint(keep=None), epochs=2)
        return model

    first = averaged()
    end = ckpt.resolve(run_id, "final")
    assert end.kind == "final"
    another_process()
    stored.DAMAGE["flipped"](end, MODEL)
    assert same(averaged(), first)
    again = ckpt.resolve(run_id, "final")
    assert again.model_id != end.model_id
    assert same(ckpt.load_model(run_id, "final"), first)


def test_files_are_fetched_once_for_a_resume(
    another_process: Forget, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    resumed(run_id, 2)
    another_process()
    monkeypatch.setenv("MLFLOW_CKPT_SPOOL", str(tmp_path / "another machine"))
    real, calls = Store.fetch, []

    def counted(self: Store, checkpoint: Checkpoint, *rest: Any, **options: Any) -> Any:
        calls.append(checkpoint.name)
        return real(self, checkpoint, *rest, **options)

    monkeypatch.setattr(Store, "fetch", counted)
    resumed(run_id, 3)
    assert len(calls) == 1


def test_no_copy_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    run_id = trained(2)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), MODEL)
    ckpt.load_model(run_id)
    ckpt.fork(run_id)
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), MODEL)
    with pytest.raises(DigestMismatch):
        fetched.Fetched(Store(), ckpt.resolve(run_id), [MODEL])
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_corrupt_checkpoint_is_not_counted_by_keep() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(keep=Keep(last=2)), epochs=2)
        stored.DAMAGE["flipped"](ckpt.resolve(run.info.run_id), MODEL)
        ckpt.load_weights(mlp(), run.info.run_id)
        fit(model, MlflowCheckpoint(keep=Keep(last=2, best=None)), epochs=2)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [3, 4]
    assert np.isfinite(ckpt.resolve(run.info.run_id).metrics["val_loss"])
