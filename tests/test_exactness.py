"""What a run says about how exactly it was resumed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import CLASSES, FEATURES, data, fit, mlp
from doubles import RaiseAt, StopHere

from mlflow_ckpt import MlflowCheckpoint
from mlflow_ckpt.exactness import exact_tag
from mlflow_ckpt.store import Store

Forget = Callable[[], None]


@pytest.mark.pure
@pytest.mark.parametrize(
    ("before", "found", "expected"),
    [
        pytest.param(None, [], "true", id="nothing"),
        pytest.param(None, [("true", "")], "true", id="true"),
        pytest.param(None, [("unknown", "a")], "unknown: a", id="unknown"),
        pytest.param(None, [("unknown", "a"), ("unknown", "b")], "unknown: a; b", id="two-reasons"),
        pytest.param(None, [("unknown", "a"), ("unknown", "a")], "unknown: a", id="same-reason"),
        pytest.param(None, [("unknown", "a"), ("false", "b")], "false: b", id="worst-wins"),
        pytest.param("true", [("unknown", "a")], "unknown: a", id="worse-than-before"),
        pytest.param("unknown: a", [], "unknown: a", id="never-better"),
        pytest.param("unknown: a", [("true", "")], "unknown: a", id="true-does-not-heal"),
        pytest.param("unknown: a", [("unknown", "b")], "unknown: a; b", id="reasons-gather"),
        pytest.param("unknown: a", [("false", "b")], "false: b", id="false-after-unknown"),
        pytest.param("false: a; b", [("unknown", "c")], "false: a; b", id="false-stays"),
        pytest.param("false: a", [("false", "a")], "false: a", id="said-once"),
    ],
)
def test_the_worst_level_and_its_reasons(
    before: str | None, found: list[tuple[str, str]], expected: str
) -> None:
    assert exact_tag(found, before) == expected


def attempt(
    run_id: str | None, *callbacks: Any, stop: int = 0, model: Any = None, **arguments: Any
) -> str:
    """Fit; `stop` breaks it off in that epoch (from 1), by a callback that is always there."""
    keras.utils.set_random_seed(11)
    callbacks = (MlflowCheckpoint(), *callbacks, RaiseAt(stop))
    with mlflow.start_run(run_id=run_id) as run:
        try:
            fit(model or mlp(run_eagerly=True), *callbacks, **arguments)
        except StopHere:
            assert stop
    return str(run.info.run_id)


def tags(run_id: str) -> dict[str, str]:
    found = mlflow.get_run(run_id).data.tags
    return {key: found[key] for key in found if key.startswith("ckpt.resume")}


def test_two_resumes_count_two_and_a_repetition_counts_none(another_process: Forget) -> None:
    run_id = attempt(None, stop=2, epochs=4)
    assert tags(run_id) == {}
    another_process()
    attempt(run_id, stop=3, epochs=4)
    once = tags(run_id)
    assert once["ckpt.resume_count"] == "1"
    assert once["ckpt.resumed_from"].startswith("step=2 model=m-")
    another_process()
    attempt(run_id, epochs=4)
    twice = tags(run_id)
    assert twice["ckpt.resume_count"] == "2"
    assert twice["ckpt.resumed_from"].startswith("step=4 model=m-")
    assert twice["ckpt.resume_exact"] == "true"
    another_process()
    attempt(run_id, epochs=4)
    assert tags(run_id) == twice


class Noisy(keras.layers.Layer):
    """Noise from an operation of TensorFlow that nobody can count."""

    def call(self, inputs: Any) -> Any:
        import tensorflow as tf

        return inputs + tf.random.normal(tf.shape(inputs), stddev=0.01)


def test_a_random_operation_of_the_train_step_is_named(another_process: Forget) -> None:
    def noisy() -> keras.Model:
        model = keras.Sequential([keras.Input((FEATURES,)), Noisy(), keras.layers.Dense(CLASSES)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("adam", loss, jit_compile=False)
        return model

    run_id = attempt(None, stop=2, model=noisy(), epochs=2)
    another_process()
    attempt(run_id, model=noisy(), epochs=2)
    said = tags(run_id)["ckpt.resume_exact"]
    assert said == "unknown: the train step runs the operation RandomStandardNormal"


def test_another_version_of_keras_is_named(
    another_process: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = attempt(None, stop=2, epochs=2)
    another_process()
    present = Store.versions

    def other() -> Any:
        return {**present(), "keras": "3.99"}

    monkeypatch.setattr(Store, "versions", staticmethod(other))
    attempt(run_id, epochs=2)
    assert tags(run_id)["ckpt.resume_exact"] == (
        f"unknown: keras {keras.__version__} then, 3.99 now"
    )


def test_a_callback_that_is_gone_is_named(another_process: Forget) -> None:
    run_id = attempt(None, keras.callbacks.EarlyStopping(patience=9), stop=2, epochs=2)
    another_process()
    attempt(run_id, epochs=2)
    said = tags(run_id)["ckpt.resume_exact"]
    assert said.startswith("unknown: ")
    assert "EarlyStopping" in said


def test_metrics_that_are_not_repeated_are_false(another_process: Forget) -> None:
    run_id = attempt(None, stop=3, epochs=3)
    x, y = data()
    another_process()
    with mlflow.start_run(run_id=run_id):
        keras.utils.set_random_seed(11)
        callback = MlflowCheckpoint(resume="epoch=1")
        fit(mlp(jit_compile=False), callback, epochs=3, validation_data=(np.flip(x, 0)[:9], y[:9]))
    assert tags(run_id)["ckpt.resume_exact"].startswith("false: ")
