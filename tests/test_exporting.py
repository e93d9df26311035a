"""Each export format, read back by its own tool."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from builders import data, fit, mlp, same

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.errors import ConfigError

X, _ = data()


@pytest.fixture
def trained() -> tuple[str, keras.Model]:
    with mlflow.start_run() as run:
        model = mlp()
        fit(model, MlflowCheckpoint(monitor=None), epochs=2)
    return run.info.run_id, model


def with_weights(path: Path) -> keras.Model:
    model = mlp()
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    return model


def with_tensorflow(path: Path) -> keras.Model:
    model = mlp()
    tf.train.Checkpoint(model=model).restore(str(path)).expect_partial()
    return model


@pytest.mark.parametrize(
    ("format", "name", "read", "whole"),
    [
        pytest.param("keras", "m.keras", keras.saving.load_model, True, id="keras"),
        pytest.param("weights", "m.weights.h5", with_weights, True, id="weights"),
        pytest.param("h5", "m.h5", keras.saving.load_model, False, id="h5"),
        pytest.param("tf", "m", with_tensorflow, False, id="tf"),
    ],
)
def test_a_format_read_by_its_own_tool_predicts_the_same(
    format: Any,
    name: str,
    read: Callable[[Path], keras.Model],
    whole: bool,
    trained: tuple[str, keras.Model],
    tmp_path: Path,
) -> None:
    run_id, model = trained
    path = ckpt.export(run_id, "latest", tmp_path / "out" / name, format=format)
    assert path == tmp_path / "out" / name
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]
    loaded = read(path)
    np.testing.assert_array_equal(loaded(X), model(X))
    if whole:
        assert same(loaded, model)


def test_a_saved_model_serves_the_same(trained: tuple[str, keras.Model], tmp_path: Path) -> None:
    run_id, model = trained
    path = ckpt.export(run_id, "best(loss)", tmp_path / "served", format="saved_model")
    loaded = tf.saved_model.load(str(path))
    np.testing.assert_allclose(loaded.serve(X), ckpt.load_model(run_id, "best(loss)")(X), atol=1e-6)


def test_exporting_h5_leaves_later_checkpoints_whole(trained: tuple[str, keras.Model]) -> None:
    run_id, model = trained
    ckpt.export(run_id, "latest", "m.h5", format="h5")
    with mlflow.start_run(run_id=run_id):
        ckpt.save(model)
    assert same(ckpt.load_model(run_id, "latest@manual"), model)


@pytest.mark.parametrize(
    ("format", "name", "text"),
    [
        pytest.param("onnx", "m.onnx", "Expected one of keras, weights", id="unknown-format"),
        pytest.param("h5", "m.weights.h5", r"ending in '\.h5'", id="weights-as-h5"),
        pytest.param("keras", "m.h5", r"ending in '\.keras'", id="suffix"),
        pytest.param("keras", "taken.keras", "already exists", id="taken"),
    ],
)
def test_targets_that_cannot_be_written(
    format: Any, name: str, text: str, trained: tuple[str, keras.Model], tmp_path: Path
) -> None:
    (tmp_path / "taken.keras").touch()
    with pytest.raises(ConfigError, match=text):
        ckpt.export(trained[0], "latest", tmp_path / name, format=format)
