"""Find checkpoints and bring them back, and refuse what is not what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pandas as pd
import pytest
import stored
from builders import Gan, NoConfig, Subclassed, data, fit, mlp, same

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, MlflowCheckpoint
from mlflow_ckpt.errors import (
    ArchitectureMissing,
    CheckpointNotFound,
    ConfigError,
    DigestMismatch,
    MetricNotFound,
    ModelMismatch,
    ModelNotBuilt,
    ModelNotLoadable,
    NoActiveRun,
    NoCheckpoints,
    RunDeleted,
    RunNotFound,
    SaveFailed,
    SelectorError,
    SeriesNotFound,
)
from mlflow_ckpt.fetched import Fetched
from mlflow_ckpt.listing import COLUMNS
from mlflow_ckpt.store import Store, _bounded

pytestmark = pytest.mark.backends


def trained(**checkpoint: Any) -> tuple[str, keras.Model]:
    """Train three epochs; return the run ID and the model."""
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(**checkpoint), epochs=3)
    return run.info.run_id, model


def test_every_selector_finds_its_checkpoint() -> None:
    run_id, _ = trained()
    table = ckpt.list_checkpoints(run_id)
    by_accuracy = table.sort_values(["metrics.accuracy", "step"]).iloc[-1]["epoch"]
    expected = {
        "latest": 3,
        "final": 3,
        "best": int(table.loc[table["metrics.val_loss"].idxmin(), "epoch"]),
        "best(accuracy)": by_accuracy,
        "best(val_loss,max)": int(table.loc[table["metrics.val_loss"].idxmax(), "epoch"]),
        "epoch=2": 2,
        "step=2": 1,
        "latest@ckpt": 3,
    }
    assert {which: ckpt.resolve(run_id, which).epoch for which in expected} == expected


def test_resolving_is_one_search(monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, _ = trained()
    calls: list[str] = []
    real = mlflow.MlflowClient.search_logged_models

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["filter_string"])
        assert kwargs["max_results"] <= 5
        return real(self, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "search_logged_models", counted)
    for which in ("latest", "best", "epoch=1", "step=4", "final"):
        calls.clear()
        ckpt.resolve(run_id, which)
        assert len(calls) == 1


def test_ties_go_to_the_later_step() -> None:
    with mlflow.start_run() as run:
        for step in (1, 2, 3):
            ckpt.save(mlp(), step=step, metrics={"score": 0.5 if step < 3 else 0.1})
    assert ckpt.resolve(run.info.run_id, "best(score,max)").step == 2


def test_ties_among_more_than_one_search_returns_go_to_the_later_step() -> None:
    with mlflow.start_run() as run:
        for step in (8, 1, 2, 3, 4, 5, 6, 7):
            ckpt.save(mlp(), step=step, metrics={"score": 0.5})
    assert ckpt.resolve(run.info.run_id, "best(score,max)").step == 8


def test_what_is_not_committed_does_not_hide_what_is() -> None:
    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        for step in (1, 2):
            ckpt.save(mlp(), step=step, metrics={"score": 1.0 / step})
        for step in range(10, 20):
            half = client.create_logged_model(
                run.info.experiment_id, name=f"manual-{step}", source_run_id=run.info.run_id
            )
            for key, value in (("manual/ckpt_step", float(step)), ("manual/score", 2.0)):
                client.log_metric(run.info.run_id, key, value, step=step, model_id=half.model_id)
    assert ckpt.resolve(run.info.run_id, "latest").step == 2
    assert ckpt.resolve(run.info.run_id, "best(score,max)").step == 1
    with pytest.raises(MetricNotFound):
        ckpt.resolve(run.info.run_id, "best(none,max)")


@pytest.mark.parametrize(
    ("which", "error", "text"),
    [
        pytest.param("newest", SelectorError, "Received: 'newest'", id="unknown"),
        pytest.param(
            "epoch=9", CheckpointNotFound, "nearest: epoch=1, epoch=2, epoch=3", id="epoch"
        ),
        pytest.param("step=5", CheckpointNotFound, "step=4, step=6", id="step"),
        pytest.param("best(val_los)", MetricNotFound, r"mean 'best\(val_loss\)'", id="typo"),
        pytest.param("best(val_los,min)", MetricNotFound, r"mean 'best\(val_loss\)'", id="metric"),
        pytest.param("latest@head", SeriesNotFound, "It has: ckpt", id="series"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(
    which: str, error: type[Exception], text: str
) -> None:
    run_id, _ = trained()
    with pytest.raises(error, match=text):
        ckpt.resolve(run_id, which)


def test_a_metric_of_unknown_direction_asks_for_one() -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp(), metrics={"score": 1.0})
    with pytest.raises(SelectorError, match=r"'best\(score,min\)' or 'best\(score,max\)'"):
        ckpt.resolve(run.info.run_id, "best(score)")


def test_runs_without_checkpoints_unknown_deleted_and_with_several_series() -> None:
    with mlflow.start_run() as run:
        pass
    with pytest.raises(NoCheckpoints, match=r"Add MlflowCheckpoint\(\)"):
        ckpt.resolve(run.info.run_id, "latest")
    with pytest.raises(RunNotFound, match="MLFLOW_TRACKING_URI"):
        ckpt.resolve("f" * 32, "latest")
    with mlflow.start_run(run_id=run.info.run_id):
        ckpt.save(mlp(), series="a")
        ckpt.save(mlp(), series="b")
    with pytest.raises(SeriesNotFound, match="several series: a, b.*'latest@a'"):
        ckpt.resolve(run.info.run_id, "latest")
    mlflow.delete_run(run.info.run_id)
    with pytest.raises(RunDeleted, match="mlflow runs restore"):
        ckpt.list_checkpoints(run.info.run_id)


# --- the table ----------------------------------------------------------------


def test_the_table_has_its_documented_columns_and_types() -> None:
    run_id, _ = trained()
    table = ckpt.list_checkpoints(run_id)
    assert list(table.columns) == [
        *COLUMNS,
        "metrics.accuracy",
        "metrics.loss",
        "metrics.val_accuracy",
        "metrics.val_loss",
    ]
    for column, kind in COLUMNS.items():
        assert table[column].dtype == pd.Series([], dtype=kind).dtype, column
    assert table.loc[table["is_latest"], "name"].item() == ckpt.resolve(run_id).name
    assert table.loc[table["is_best"], "name"].item() == ckpt.resolve(run_id, "best").name


def test_an_empty_table_has_the_same_columns_and_types() -> None:
    with mlflow.start_run() as run:
        pass
    table = ckpt.list_checkpoints(run.info.run_id)
    assert table.empty
    assert list(table.columns) == list(COLUMNS)
    assert table["bytes"].dtype == np.int64


# --- models and weights -------------------------------------------------------


def test_a_model_comes_back_with_its_optimizer() -> None:
    run_id, model = trained()
    assert same(ckpt.load_model(run_id, "final"), model)
    assert not ckpt.load_model(run_id, compile=False).compiled


def test_weights_load_into_ones_own_model_and_leave_its_optimizer_alone() -> None:
    run_id, model = trained()
    mine = mlp(optimizer="sgd")
    fit(mine, epochs=1)
    iterations = int(mine.optimizer.iterations)
    loaded = ckpt.load_weights(mine, run_id, "best")
    assert loaded == ckpt.resolve(run_id, "best")
    for a, b in zip(mine.get_weights(), ckpt.load_model(run_id, "best").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(mine.optimizer.iterations) == iterations


@pytest.mark.parametrize("weights_only", [False, True])
def test_a_model_that_does_not_fit_names_the_first_variable(weights_only: bool) -> None:
    run_id, _ = trained(save_weights_only=weights_only)
    wrong = mlp(units=5)
    before = [np.array(w) for w in wrong.get_weights()]
    with pytest.raises(
        ModelMismatch, match=r"kernel.*Expected: shape \(8, 8\). Received: shape \(8, 5\)"
    ):
        ckpt.load_weights(wrong, run_id)
    assert all(np.array_equal(a, b) for a, b in zip(before, wrong.get_weights(), strict=True))
    with pytest.raises(ModelMismatch, match="Expected: 4 variables. Received: 2"):
        ckpt.load_weights(keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)]), run_id)
    with pytest.raises(ModelNotBuilt, match="Call it once on a batch"):
        ckpt.load_weights(Subclassed(), run_id)


def test_weights_without_a_config_need_ones_own_architecture() -> None:
    x, _ = data()
    model = NoConfig(lambda: 3)
    model(x)
    with mlflow.start_run() as run:
        with pytest.raises(SaveFailed, match="save_weights_only=True|get_config"):
            ckpt.save(model)
        ckpt.save(model, weights_only=True)
    with pytest.raises(ArchitectureMissing, match="load_weights"):
        ckpt.load_model(run.info.run_id)
    other = NoConfig(lambda: 3)
    other(x)
    ckpt.load_weights(other, run.info.run_id)
    np.testing.assert_array_equal(other(x), model(x))


def test_a_lambda_layer_is_refused_unless_the_file_is_trusted() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda t: t * 2)])
    with mlflow.start_run() as run:
        ckpt.save(model)
    with pytest.raises(ModelNotLoadable, match="safe_mode=False"):
        ckpt.load_model(run.info.run_id)
    loaded = ckpt.load_model(run.info.run_id, safe_mode=False)
    np.testing.assert_array_equal(loaded(np.ones((1, 2))), [[2, 2]])


def test_an_unknown_class_goes_into_custom_objects() -> None:
    class Scale(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs * 3

    with mlflow.start_run() as run:
        ckpt.save(keras.Sequential([keras.Input((2,)), Scale()]))
    with pytest.raises(ModelNotLoadable, match="custom_objects"):
        ckpt.load_model(run.info.run_id)
    loaded = ckpt.load_model(run.info.run_id, custom_objects={"Scale": Scale})
    np.testing.assert_array_equal(loaded(np.ones((1, 2))), [[3, 3]])


# --- by hand ------------------------------------------------------------------


def test_a_model_that_was_never_compiled_is_saved_by_hand() -> None:
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    with mlflow.start_run() as run:
        saved = ckpt.save(model, metrics={"score": 0.25}, epoch=4)
        again = ckpt.save(model)
    assert (saved.kind, saved.epoch, saved.step, again.step) == ("manual", 4, 1, 2)
    assert ckpt.resolve(run.info.run_id, "best(score,max)") == saved
    np.testing.assert_array_equal(
        ckpt.load_model(run.info.run_id).get_weights()[0], model.get_weights()[0]
    )
    assert mlflow.get_run(run.info.run_id).data.metrics["manual/score"] == 0.25


def test_saving_by_hand_leaves_the_plain_metric_names_to_the_fit() -> None:
    with mlflow.start_run() as run:
        model = mlp()
        ckpt.save(model, metrics={"loss": 3.0})
        fit(model, MlflowCheckpoint(), epochs=1)
    names = set(mlflow.get_run(run.info.run_id).data.metrics)
    assert {"loss", "val_loss", "manual/loss"} <= names


def test_saving_by_hand_refuses_what_it_cannot_rank_or_place() -> None:
    with pytest.raises(NoActiveRun):
        ckpt.save(mlp())
    with mlflow.start_run():
        with pytest.raises(ConfigError, match="finite"):
            ckpt.save(mlp(), metrics={"score": float("nan")})
        with pytest.raises(ConfigError, match="step=-1"):
            ckpt.save(mlp(), step=-1)
        with pytest.raises(ModelNotBuilt):
            ckpt.save(Subclassed())


def test_a_gan_is_saved_and_loaded_with_both_optimizers() -> None:
    x, _ = data()
    model = Gan()
    model.compile(keras.optimizers.Adam(), keras.optimizers.SGD(momentum=0.9))
    model.fit(x, epochs=2, verbose=0)
    with mlflow.start_run() as run:
        ckpt.save(model)
    assert same(ckpt.load_model(run.info.run_id), model)


# --- files --------------------------------------------------------------------


def test_a_download_is_a_model_that_mlflow_reads(tmp_path: Path) -> None:
    run_id, model = trained()
    folder = ckpt.download(run_id, "latest", tmp_path / "out")
    assert folder == tmp_path / "out" / "ckpt-0003-00000006"
    assert same(mlflow.keras.load_model(str(folder)), model)
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    with pytest.raises(ConfigError, match="already exists"):
        ckpt.download(run_id, "latest", tmp_path / "out")


@pytest.mark.parametrize("damage", stored.DAMAGE)
@pytest.mark.parametrize("name", ["data/model.keras", "manifest.json"])
def test_a_damaged_file_is_named_and_nothing_appears(
    name: str, damage: str, tmp_path: Path
) -> None:
    run_id, _ = trained(save_freq=Every(epochs=3))
    stored.DAMAGE[damage](ckpt.resolve(run_id), name)
    mine = mlp()
    before = [np.array(w) for w in mine.get_weights()]
    for use in (
        lambda: ckpt.load_model(run_id, "epoch=3"),
        lambda: ckpt.load_weights(mine, run_id, "best"),
        lambda: ckpt.download(run_id, "step=6", tmp_path / "out"),
    ):
        with pytest.raises(DigestMismatch, match=name) as caught:
            use()
        assert caught.value.path == name
    assert all(np.array_equal(a, b) for a, b in zip(before, mine.get_weights(), strict=True))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.backends("local")
def test_a_local_store_is_read_in_place_and_a_download_leaves_it_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, model = trained(save_freq=Every(epochs=3))
    file = next((tmp_path / "artifacts").rglob("model.keras"))
    before = file.read_bytes()
    ckpt.download(run_id, "latest", tmp_path / "out")
    assert file.read_bytes() == before
    fetched: list[str] = []
    real = _bounded.download

    def counted(repository: Any, path: str, *arguments: Any, **named: Any) -> None:
        fetched.append(path)
        real(repository, path, *arguments, **named)

    monkeypatch.setattr(_bounded, "download", counted)
    assert same(ckpt.load_model(run_id), model)
    ckpt.load_weights(mlp(), run_id)
    assert set(fetched) == {"manifest.json"}
    assert file.read_bytes() == before


@pytest.mark.backends("local")
def test_a_file_swapped_after_the_verdict_is_not_read(tmp_path: Path) -> None:
    run_id, _ = trained(save_freq=Every(epochs=3))
    file = next((tmp_path / "artifacts").rglob("model.keras"))
    before = file.read_bytes()
    with Fetched(Store(), ckpt.resolve(run_id), ["data/model.keras"], in_place=True) as fetched:
        (tmp_path / "other").write_bytes(b"not a model")
        (tmp_path / "other").replace(file)
        assert fetched.files["data/model.keras"].read() == before


def test_a_compiled_model_that_was_never_trained_loads_without_a_warning() -> None:
    model = mlp()
    with mlflow.start_run() as run:
        ckpt.save(model)
    loaded = ckpt.load_model(run.info.run_id)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
