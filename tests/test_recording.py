"""The private seams of saving and of variables: each moves here first, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from keras.src.saving import saving_lib

from mlflow_ckpt import keras_internals as ki

pytestmark = pytest.mark.pure


class Squares(keras.layers.Layer):
    """A layer that stores something it computes."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(3,), initializer="ones")

    def call(self, x: Any) -> Any:
        return x

    def save_own_variables(self, store: Any) -> None:
        store["scale"] = self.scale
        store["square"] = self.scale.numpy() ** 2

    def load_own_variables(self, store: Any) -> None:
        self.scale.assign(store["scale"])


def model_with(*layers: keras.layers.Layer) -> keras.Model:
    model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize(
    "name",
    [
        "H5IOStore",
        "_save_state",
        "_serialize_model_as_json",
        "_VARS_FNAME_H5",
        "_ASSETS_DIRNAME",
    ],
)
def test_the_saving_code_has_what_the_recorder_needs(name: str) -> None:
    assert hasattr(saving_lib, name)


def test_the_walk_tells_the_recorder_whose_variables_it_stores(tmp_path: Path) -> None:
    model = model_with()
    recording = ki.record_state(model, tmp_path / "a.weights.h5")
    assert [type(owner).__name__ for owner in recording.owners] == ["Sequential", "Dense", "SGD"]
    assert [t.variable.path for t in recording.tensors] == [
        v.path for v in [*model.weights, *model.optimizer.variables]
    ]


def test_another_caller_than_the_walk_is_refused(tmp_path: Path) -> None:
    from mlflow_ckpt.keras_internals._saving import _Recorder

    store = _Recorder(tmp_path / "a.weights.h5")
    with pytest.raises(ki.CannotRecord, match="Expected keras.src.saving.saving_lib._save_state"):
        store.make("layers/dense")
    store.close()


def test_the_recorded_file_has_every_dataset_and_attribute_and_no_data(tmp_path: Path) -> None:
    model = model_with(keras.layers.BatchNormalization())
    model.save_weights(tmp_path / "keras.weights.h5")
    recording = ki.record_state(model, tmp_path / "a.weights.h5")

    def shape_of(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item: found.update(
                    {name: (dict(item.attrs), getattr(item, "shape", 0), getattr(item, "dtype", 0))}
                )
            )
        return found

    assert shape_of(tmp_path / "a.weights.h5") == shape_of(tmp_path / "keras.weights.h5")
    assert all(t.offset is not None for t in recording.tensors)


def test_what_a_layer_computes_has_no_variable_behind_it(tmp_path: Path) -> None:
    model = model_with(Squares())
    recording = ki.record_state(model, tmp_path / "a.weights.h5")
    own = {t.key: t for t in recording.tensors if type(t.owner) is Squares}
    assert own["scale"].variable is None, "a layer of the user's may store what it likes"
    assert own["square"].variable is None
    values = ki.own_variables(model.layers[0])
    assert isinstance(values["scale"], keras.Variable)
    assert np.array_equal(values["square"], np.ones(3))
    assert ki.is_like(values["scale"], own["scale"])
    assert not ki.is_like(np.ones(2), own["square"])


def test_the_config_is_what_keras_writes(tmp_path: Path) -> None:
    model = model_with()
    config, metadata = ki.serialize(model)
    assert config["compile_config"]["optimizer"]["class_name"] == "SGD"
    assert set(metadata) == {"keras_version", "date_saved"}


def test_an_optimizer_config_reads_this_variable() -> None:
    optimizer = keras.optimizers.Adam(0.25)
    rate = ki.learning_rate_variable(optimizer)
    assert rate is not None
    rate.assign(0.5)
    assert optimizer.get_config()["learning_rate"] == 0.5
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    assert ki.learning_rate_variable(keras.optimizers.SGD(schedule)) is None


def test_the_attributes_that_a_fit_changes_are_the_listed_ones() -> None:
    model = model_with()
    x, y = np.ones((8, 4), "float32"), np.ones((8, 2), "float32")
    model.fit(x, y, validation_data=(x, y), verbose=0)
    before = dict(vars(model))
    model.fit(x, y, validation_data=(x, y), verbose=0)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    after = vars(model)
    changed = {n for n in before | after if before.get(n) is not after.get(n)}
    assert changed <= ki.CHANGED_BY_FIT
    assert {"history"} <= changed


# --- variables ----------------------------------------------------------------


def test_variables_made_inside_a_compiled_step_can_be_borrowed_too() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("adam", "mse", jit_compile=False)
    model.fit(np.ones((4, 4), "float32"), np.ones((4, 2), "float32"), verbose=0)
    assert all(ki.can_borrow(v) for v in [*model.weights, *model.optimizer.variables])


def test_a_distributed_variable_cannot_be_borrowed() -> None:
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        variable = keras.Variable([1.0, 2.0])
    assert not ki.can_borrow(variable)


def test_borrowing_shares_memory_until_the_variable_is_updated() -> None:
    variable = keras.Variable(np.arange(100, dtype="float32"))
    (first,), (second,) = ki.borrow([variable]), ki.borrow([variable])
    assert ki.share_memory(first, second)
    variable.assign_add(np.ones(100, "float32"))
    assert np.array_equal(ki.view(first), np.arange(100, dtype="float32"))
    assert not ki.share_memory(first, ki.borrow([variable])[0])


def test_scalars_never_count_as_shared() -> None:
    variable = keras.Variable(3)
    (first,), (second,) = ki.borrow([variable]), ki.borrow([variable])
    assert not ki.share_memory(first, second)
    assert ki.view(first) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8", "bool", "int64"])
def test_a_view_has_the_variables_type(dtype: str) -> None:
    variable = keras.Variable(np.ones(4), dtype=dtype)
    assert ki.dtype_of(variable) == np.dtype(getattr(ml_dtypes, dtype, dtype))
    assert ki.view(ki.borrow([variable])[0]).dtype == ki.dtype_of(variable)


def test_a_tensor_is_told_from_other_values() -> None:
    assert ki.is_tensor_type(type(tf.constant(1.0)))
    assert not ki.is_tensor_type(type(keras.Variable(1.0)))
    assert not ki.is_tensor_type(str)


@pytest.mark.parametrize("update", ["an eager update", "a compiled update", "a sparse update"])
def test_the_self_test_notices_a_tensorflow_that_writes_through(
    update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_ckpt.keras_internals import _variables

    seen: list[str] = []

    def view(tensor: Any) -> np.ndarray:
        array = np.array(tensor.__array__())
        seen.append("look")
        # Two looks belong to each update that leaves the buffer alone.
        wanted = {"an eager update": 1, "a compiled update": 3, "a sparse update": 5}[update]
        return array + 1 if len(seen) == wanted else array

    monkeypatch.setattr(_variables, "share_memory", lambda *_: True)
    monkeypatch.setattr(_variables, "view", view)
    assert _variables._first_violation(tf) == f"{update} wrote into a borrowed buffer"
