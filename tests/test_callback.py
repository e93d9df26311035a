"""The callback inside a real `fit`: what it saves, logs, keeps and refuses."""

from __future__ import annotations

import math
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import data, fit, history, mlp, same
from doubles import FailingUpload, NaNFrom, RaiseAt, RefusingUpload, StopHere

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, Keep, MlflowCheckpoint, parcel
from mlflow_ckpt.errors import (
    ConfigError,
    ConflictingCallback,
    MonitorMissing,
    NoActiveRun,
    RunDeleted,
    RunNotFound,
    SaveFailed,
    SeriesInUse,
)
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store, _draft
from mlflow_ckpt.syncing import deliver_now
from mlflow_ckpt.worker import settle


def names(run_id: str, series: str | None = None) -> list[str]:
    return list(ckpt.list_checkpoints(run_id, series)["name"])


def test_every_epoch_is_saved_and_the_last_one_is_final() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(), epochs=3)
    table = ckpt.list_checkpoints(run.info.run_id)
    assert list(table["epoch"]) == [1, 2, 3]
    assert list(table["step"]) == [2, 4, 6]
    assert list(table["is_final"]) == [False, False, True]
    assert same(ckpt.load_model(run.info.run_id), model)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "middle", "last"])
def test_the_place_in_the_list_makes_no_difference(place: int, another_process: Any) -> None:
    def callbacks() -> list[Any]:
        found = [
            keras.callbacks.EarlyStopping(patience=50, min_delta=10.0),
            keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.5, min_delta=10.0),
        ]
        return [*found[:place], MlflowCheckpoint(), *found[place:]]

    with mlflow.start_run() as run:
        first = callbacks()
        fit(mlp(), *first, epochs=4)
    another_process()
    with mlflow.start_run(run_id=run.info.run_id):
        second, model = callbacks(), mlp()
        result = fit(model, *second, epochs=4)
    for kind, names_ in (
        ("EarlyStopping", ("wait", "best")),
        ("ReduceLROnPlateau", ("wait", "best")),
    ):
        a, b = (next(c for c in cs if type(c).__name__ == kind) for cs in (first, second))
        assert [getattr(a, n) for n in names_] == [getattr(b, n) for n in names_]
    assert float(model.optimizer.learning_rate) == pytest.approx(0.0005)
    assert len(result.history["loss"]) == 4
    assert result.history["learning_rate"] == pytest.approx([0.001, 0.001, 0.001, 0.0005])


@pytest.mark.parametrize(
    ("save_freq", "expected"),
    [
        pytest.param("epoch", [(1, 2), (2, 4), (3, 6)], id="epoch"),
        pytest.param(Every(epochs=2), [(2, 4), (3, 6)], id="every-second-epoch-and-the-last"),
        pytest.param(3, [(1, 3), (3, 6)], id="batches-that-end-an-epoch-wait-for-its-metrics"),
        pytest.param(Every(steps=2), [(1, 2), (2, 4), (3, 6)], id="steps-at-epoch-ends"),
        pytest.param(
            Every(seconds=1e-6), [(0, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6)], id="seconds"
        ),
        pytest.param(Every(seconds=3600), [(3, 6)], id="long-interval"),
    ],
)
def test_save_freq(save_freq: Any, expected: list[tuple[int, int]]) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(save_freq=save_freq, keep=None, monitor=None), epochs=3)
    table = ckpt.list_checkpoints(run.info.run_id)
    assert list(zip(table["epoch"], table["step"], strict=True)) == expected


def test_steps_per_execution_counts_batches() -> None:
    with mlflow.start_run() as run:
        model = mlp(steps_per_execution=2)
        fit(model, MlflowCheckpoint(save_freq=3, keep=None, monitor=None), epochs=3, batch_size=8)
    assert list(ckpt.list_checkpoints(run.info.run_id)["step"])[-1] == 24


def test_gradient_accumulation_counts_batches_not_updates() -> None:
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=4)
    with mlflow.start_run() as run:
        model = mlp(optimizer=optimizer)
        fit(model, MlflowCheckpoint(), epochs=2, batch_size=8)
    assert int(model.optimizer.iterations) == 4
    assert ckpt.resolve(run.info.run_id).step == 16
    assert same(ckpt.load_model(run.info.run_id), model)


def test_a_val_monitor_without_an_epoch_trigger_still_saves_each_improvement() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(save_freq=Every(seconds=3600), keep=None), epochs=3)
        improved = [e for e, _ in history(run.info.run_id)["val_loss"]]
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == improved == [1, 2, 3]


def test_save_best_only_keeps_the_best_and_one_resume_point() -> None:
    with mlflow.start_run() as run:
        callbacks = (MlflowCheckpoint(save_best_only=True), NaNFrom(4))
        fit(mlp(), *callbacks, epochs=6)
    table = ckpt.list_checkpoints(run.info.run_id)
    table = table[table["kind"] == "epoch"]
    assert len(table) == 2
    assert ckpt.resolve(run.info.run_id, "best").epoch == 3


def test_weights_only_stores_weights_and_config() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(save_weights_only=True), epochs=2)
    folder = ckpt.download(run.info.run_id, "latest", "out")
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == [
        "data/config.json",
        "data/model.weights.h5",
        "manifest.json",
        "state/training_state.h5",
    ]
    loaded = ckpt.load_model(run.info.run_id)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_keep_applies_per_series_after_each_commit() -> None:
    with mlflow.start_run() as run:
        keep = Keep(last=2, best=None, every=4)
        fit(mlp(), MlflowCheckpoint(keep=keep), epochs=7)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [4, 6, 7]


def test_pinned_and_registered_checkpoints_are_never_pruned() -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(keep=Keep(last=5)), epochs=2)
        pinned, registered = ckpt.list_checkpoints(run.info.run_id)["model_id"]
        client.set_logged_model_tags(pinned, {"ckpt.pinned": "true"})
        mlflow.register_model(f"models:/{registered}", "kept")
        fit(model, MlflowCheckpoint(keep=Keep(last=1, best=None)), epochs=3)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2, 5]


def test_a_diverged_epoch_is_never_best_and_its_nan_is_on_the_curve() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), NaNFrom(4), epochs=5)
    run_id = run.info.run_id
    assert ckpt.resolve(run_id, "best").epoch == 3
    assert ckpt.resolve(run_id, "latest").epoch == 5
    assert [math.isnan(v) for _, v in history(run_id)["loss"]] == [False] * 3 + [True] * 2
    assert (
        ckpt.list_checkpoints(run_id)["metrics.val_loss"].isna().tolist()
        == [False] * 3 + [True] * 2
    )


def test_terminate_on_nan_leaves_the_last_sound_state_as_latest() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(save_freq=Every(epochs=2)), NaNFrom(3),
            keras.callbacks.TerminateOnNaN(), epochs=9)  # fmt: skip
    assert ckpt.resolve(run.info.run_id, "latest").epoch == 2


def test_metrics_are_logged_once_per_epoch_under_keras_names() -> None:
    with mlflow.start_run() as run:
        result = fit(mlp(), MlflowCheckpoint(save_freq=Every(epochs=2)), epochs=4)
    curves = history(run.info.run_id)
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert curves[key] == list(enumerate(result.history[key], start=1))
    assert curves["ckpt_step"] == [(4, 4.0), (8, 8.0)]


def test_log_metrics_false_logs_only_what_checkpoints_carry() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(save_freq=Every(epochs=2), log_metrics=False), epochs=4)
    assert [step for step, _ in history(run.info.run_id)["loss"]] == [2, 4]


def test_beside_mlflows_own_callback_only_checkpoints_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with mlflow.start_run() as run:
        fit(
            mlp(),
            mlflow.keras.MlflowCallback(),
            MlflowCheckpoint(save_freq=Every(epochs=2)),
            epochs=4,
        )
    assert "counts epochs from 0" in capsys.readouterr().out
    assert {step for step, _ in history(run.info.run_id)["loss"]} == {0, 1, 2, 3}
    assert ckpt.resolve(run.info.run_id, "best").metrics["loss"] > 0


# --- several fits and series --------------------------------------------------


def test_a_second_fit_of_the_same_model_continues_its_series() -> None:
    with mlflow.start_run() as run:
        model, callback = mlp(), MlflowCheckpoint()
        fit(model, callback, epochs=2)
        fit(model, callback, epochs=3)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2, 3, 4, 5]
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5]
    assert ckpt.resolve(run.info.run_id).step == 10


def test_keras_initial_epoch_idiom_does_not_count_twice() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(), epochs=2)
        fit(model, MlflowCheckpoint(), epochs=5, initial_epoch=2)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2, 3, 4, 5]


def test_a_rebuilt_model_without_a_name_is_refused() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
        with pytest.raises(SeriesInUse, match="pass name='ckpt2'"):
            fit(mlp(), MlflowCheckpoint(), epochs=2)
    assert names(run.info.run_id) == ["ckpt-0001-00000002", "ckpt-0002-00000004"]


def test_an_interrupted_fit_resumes_in_a_rebuilt_model() -> None:
    with mlflow.start_run() as run:
        with pytest.raises(StopHere):
            fit(mlp(), MlflowCheckpoint(), RaiseAt(3), epochs=5)
        result = fit(mlp(), MlflowCheckpoint(), epochs=5)
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5]
    assert len(result.history["loss"]) == 5


def test_two_series_never_share_a_curve() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(name="head"), epochs=2)
        fit(model, MlflowCheckpoint(name="finetune"), epochs=3)
    curves = history(run.info.run_id)
    assert [s for s, _ in curves["val_loss"]] == [1, 2]
    assert [s for s, _ in curves["finetune/val_loss"]] == [1, 2, 3]
    assert [s for s, _ in curves["finetune/ckpt_step"]] == [2, 4, 6]
    assert ckpt.resolve(run.info.run_id, "best@finetune").series == "finetune"
    assert set(ckpt.list_checkpoints(run.info.run_id, "finetune").columns) >= {"metrics.val_loss"}


def test_two_callbacks_in_one_fit_write_two_series() -> None:
    with mlflow.start_run() as run:
        callbacks = (
            MlflowCheckpoint(name="full", save_freq=Every(epochs=2)),
            MlflowCheckpoint(name="light", save_weights_only=True),
        )
        fit(mlp(), *callbacks, epochs=2)
    assert len(names(run.info.run_id, "full")) == 1
    assert len(names(run.info.run_id, "light")) == 2


def test_a_plain_fit_afterwards_starts_at_its_own_first_epoch(another_process: Any) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    another_process()
    model = mlp()
    with mlflow.start_run(run_id=run.info.run_id):
        fit(model, MlflowCheckpoint(), epochs=3)
    assert fit(model, epochs=2).epoch == [0, 1]


def test_a_restored_fit_that_raises_at_once_leaves_no_initial_epoch(another_process: Any) -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=2)
    another_process()
    model = mlp()
    with mlflow.start_run(run_id=run.info.run_id), pytest.raises(StopHere):
        fit(model, MlflowCheckpoint(), RaiseAt(3), epochs=3)
    assert fit(model, epochs=2).epoch == [0, 1]


# --- the end state ------------------------------------------------------------


def test_restored_best_weights_become_a_final_of_their_own() -> None:
    stop = keras.callbacks.EarlyStopping(patience=2, min_delta=10.0, restore_best_weights=True)
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, stop, MlflowCheckpoint(), epochs=9)
    run_id = run.info.run_id
    final, latest = ckpt.resolve(run_id, "final"), ckpt.resolve(run_id, "latest")
    assert (final.kind, final.epoch) == ("final", 3)
    assert (latest.kind, latest.epoch) == ("epoch", 3)
    assert same(ckpt.load_model(run_id, "final"), model)
    assert not same(ckpt.load_model(run_id, "latest"), model)


def test_an_ema_optimizer_makes_a_final_of_its_own() -> None:
    with mlflow.start_run() as run:
        model = mlp(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.5))
        fit(model, MlflowCheckpoint(), epochs=2)
    assert ckpt.resolve(run.info.run_id, "final").kind == "final"
    assert same(ckpt.load_model(run.info.run_id, "final"), model)


# --- refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        pytest.param(
            {"save_freq": "hour"}, ConfigError, "Received: save_freq='hour'", id="save_freq"
        ),
        pytest.param({"save_freq": 0}, ConfigError, "at least 1", id="no-batches"),
        pytest.param({"save_freq": True}, ConfigError, "save_freq=True", id="a-bool"),
        pytest.param({"mode": "up"}, ConfigError, "'auto', 'min' or 'max'", id="mode"),
        pytest.param({"monitor": ""}, ConfigError, "name of a metric", id="monitor"),
        pytest.param({"name": "a/b"}, ConfigError, "Received: name='a/b'", id="name"),
        pytest.param({"keep": 5}, ConfigError, "Received: keep=5", id="keep"),
        pytest.param(
            {"keep": None, "save_best_only": True}, ConfigError, "save_best_only", id="best-only"
        ),
        pytest.param({"resume": 3}, ConfigError, "Received: resume=3", id="resume"),
        pytest.param({"resume": "newest"}, ValueError, "Received: 'newest'", id="selector"),
        pytest.param({"spool": 3}, ConfigError, r"Spool\(\.\.\.\).*spool=3", id="spool"),
        pytest.param({"spool": ""}, ConfigError, "dir=''", id="spool-folder"),
        pytest.param({"interrupt": True}, ConfigError, "interrupt=True", id="interrupt"),
        pytest.param(
            {"when_busy": "drop"},
            ConfigError,
            "'wait' or 'skip'. Received: when_busy='drop'",
            id="when_busy",
        ),
    ],
)
def test_arguments_that_cannot_be_used(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        MlflowCheckpoint(**arguments)


def test_a_monitor_that_never_appears_is_an_error_at_the_first_epoch_end() -> None:
    with (
        mlflow.start_run() as run,
        pytest.raises(MonitorMissing, match="They hold: accuracy, loss") as caught,
    ):
        fit(mlp(), MlflowCheckpoint(), epochs=3, validation_data=None)
    assert caught.value.available == ("accuracy", "loss")
    assert ckpt.list_checkpoints(run.info.run_id).empty


def test_a_monitor_may_wait_for_validation_freq() -> None:
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), epochs=4, validation_freq=2)
    assert ckpt.resolve(run.info.run_id, "best").epoch in (2, 4)


def test_a_metric_of_unknown_direction_needs_a_mode() -> None:
    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = float(-epoch)

    with mlflow.start_run(), pytest.raises(ConfigError, match="Pass mode='min' or mode='max'"):
        fit(mlp(), Score(), MlflowCheckpoint(monitor="score"))
    with mlflow.start_run() as run:
        fit(mlp(), Score(), MlflowCheckpoint(monitor="score", mode="max"), epochs=2)
    assert ckpt.resolve(run.info.run_id, "best").epoch == 1


def test_without_a_run_the_next_line_to_type_is_named() -> None:
    with pytest.raises(NoActiveRun, match="with mlflow.start_run"):
        fit(mlp(), MlflowCheckpoint())


def test_the_run_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    run = mlflow.MlflowClient().create_run(mlflow.set_experiment("env").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    fit(mlp(), MlflowCheckpoint(), epochs=1)
    assert len(ckpt.list_checkpoints(run.info.run_id)) == 1


def test_unknown_and_deleted_runs() -> None:
    with pytest.raises(RunNotFound, match="Check the ID"):
        fit(mlp(), MlflowCheckpoint(run_id="0" * 32))
    run = mlflow.MlflowClient().create_run("0")
    mlflow.delete_run(run.info.run_id)
    with pytest.raises(RunDeleted, match="mlflow runs restore"):
        fit(mlp(), MlflowCheckpoint(run_id=run.info.run_id))


def test_legacy_h5_savers_are_refused() -> None:
    with mlflow.start_run(), pytest.raises(ConflictingCallback, match=r"ending in \.keras"):
        fit(mlp(), keras.callbacks.ModelCheckpoint("x.h5"), MlflowCheckpoint())


def test_two_callbacks_of_one_name_are_refused() -> None:
    with mlflow.start_run(), pytest.raises(ConfigError, match="another name="):
        fit(mlp(), MlflowCheckpoint(), MlflowCheckpoint())


class Settle(keras.callbacks.Callback):
    """Let every epoch begin with everything delivered, or refused; count the epochs."""

    epochs = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        settle((mlflow.get_tracking_uri(), mlflow.active_run().info.run_id))
        self.epochs += 1


def journal_of(run: mlflow.ActiveRun) -> Journal:
    return Journal(Spool().folder() / run.info.run_id / "ckpt")


def put_aside(journal: Journal) -> list[str]:
    """The checkpoints that the server refused."""
    found = [e for e in journal.refused() if e.kind == parcel.CHECKPOINT]
    return [parcel.unpack_position(e.data["position"]).name for e in found]


def statuses(run: mlflow.ActiveRun) -> list[str]:
    found = mlflow.MlflowClient().search_logged_models([run.info.experiment_id])
    return sorted(m.status.value for m in found)


def test_a_refused_upload_ends_the_fit_at_the_next_save_and_leaves_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    RefusingUpload.uploads, RefusingUpload.fail_at = 0, 3
    monkeypatch.setattr(_draft, "get_artifact_repository", RefusingUpload)
    counted = Settle()
    with (
        mlflow.start_run() as run,
        pytest.raises(SaveFailed, match="ckpt-0003-00000006.*may not be written to"),
    ):
        fit(mlp(), counted, MlflowCheckpoint(), epochs=6)
    assert counted.epochs == 4
    assert ckpt.resolve(run.info.run_id, "latest").epoch == 2
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4]
    assert statuses(run) == ["FAILED", "READY", "READY"]
    assert put_aside(journal_of(run)) == ["ckpt-0003-00000006"]
    assert journal_of(run).waiting() == []


def test_an_artifact_store_without_room_lets_training_go_on_and_is_raised_at_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FailingUpload.uploads, FailingUpload.fail_at = 0, 3
    callback, counted = MlflowCheckpoint(), Settle()
    with mlflow.start_run() as run, monkeypatch.context() as patch:
        patch.setattr(_draft, "get_artifact_repository", FailingUpload)
        with pytest.raises(SaveFailed, match="ckpt-0003.*No space left on device") as caught:
            fit(mlp(), counted, callback, epochs=5)
    assert isinstance(caught.value.reason, OSError)
    assert [note[:26] for note in caught.value.__notes__] == [
        "After it: The checkpoint c",
        "After it: The checkpoint c",
        "After it: The end state of",
    ]
    said = capsys.readouterr().out
    assert all(f"{name} could not be written" in said for name in missing_names())
    assert counted.epochs == 5
    assert ckpt.resolve(run.info.run_id, "latest").epoch == 2
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5]
    assert statuses(run) == ["FAILED"] * 3 + ["READY"] * 2
    assert (callback.stats().saves, callback.stats().failed) == (2, 3)
    journal = journal_of(run)
    assert (journal.waiting(), put_aside(journal)) == ([], missing_names())
    assert deliver_now(Store(), journal, again=True) == []
    assert names(run.info.run_id)[2:] == missing_names()
    assert ckpt.resolve(run.info.run_id, "final").epoch == 5
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5]


def missing_names() -> list[str]:
    return [f"ckpt-{epoch:04d}-{2 * epoch:08d}" for epoch in (3, 4, 5)]


@pytest.mark.parametrize("upload", [FailingUpload, RefusingUpload])
def test_a_failed_last_save_surfaces_at_the_end_of_fit(
    upload: type[FailingUpload], monkeypatch: pytest.MonkeyPatch
) -> None:
    upload.uploads, upload.fail_at = 0, 3
    monkeypatch.setattr(_draft, "get_artifact_repository", upload)
    callback = MlflowCheckpoint()
    with mlflow.start_run() as run, pytest.raises(SaveFailed, match="ckpt-0003-00000006"):
        fit(mlp(), callback, epochs=3)
    assert ckpt.resolve(run.info.run_id, "latest").epoch == 2
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3]
    assert (callback.stats().saves, callback.stats().failed) == (2, 1)
    assert put_aside(journal_of(run)) == ["ckpt-0003-00000006"]


# --- ways to drive a fit ------------------------------------------------------


def test_a_users_history_and_callback_list_are_fine() -> None:
    x, y = data()
    with mlflow.start_run() as run:
        model = mlp()
        listed = keras.callbacks.CallbackList(
            [MlflowCheckpoint(), keras.callbacks.History()], model=model, epochs=2, steps=2
        )
        model.fit(x, y, validation_data=(x, y), epochs=2, verbose=0, callbacks=listed)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2]


def test_a_single_callback_outside_a_list_is_called_in_order() -> None:
    x, y = data()
    with mlflow.start_run() as run:
        callback = MlflowCheckpoint(monitor="loss", save_freq=1, keep=None)
        mlp().fit(x, y, epochs=2, verbose=0, callbacks=callback)
    assert list(ckpt.list_checkpoints(run.info.run_id)["step"]) == [1, 2, 3, 4]


def test_outside_a_callback_list_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.fit\(callbacks="):
        MlflowCheckpoint().set_model(mlp())
