"""What we lean on and Keras does not promise: an upgrade that moves it fails here by name."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from builders import Gan, Subclassed, data, fit, mlp, same
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt import keras_internals as ki
from mlflow_ckpt.keras_internals import _deferred, _loading

pytestmark = pytest.mark.pure

Callback = keras.callbacks.Callback
optimizers = keras.optimizers


def quick() -> keras.Model:
    """A small model whose first step needs no tracing."""
    return mlp(run_eagerly=True)


class Recorder(Callback):
    """Writes down what it sees, hook by hook."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.began: dict[str, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self.began = {"list": ki.calling_callback_list(), "arguments": ki.fit_arguments()}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.events.append(str(batch))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.events.append(f"epoch {len(self.model.history.epoch)} is in History")


class Appends(Callback):
    """Puts a recorder behind everybody, as our callback does."""

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder()

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callbacks = ki.calling_callback_list()
        assert self.callbacks is not None
        ki.append_callback(self.callbacks, self.recorder)


def starts_at(epoch: int, model: keras.Model, *, clear: bool) -> Callback:
    """Override `initial_epoch` from within the fit, and clear that again in its first epoch."""
    return keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: ki.set_initial_epoch(model, epoch),
        on_epoch_begin=lambda number, logs: clear and ki.clear_initial_epoch(model),
    )


def scaled_optimizer() -> Any:
    return optimizers.LossScaleOptimizer(optimizers.Adam())


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        pytest.param(keras.callbacks.CallbackList, "callbacks", id="CallbackList.callbacks"),
        pytest.param(keras.callbacks.CallbackList, "_async_train", id="CallbackList._async_train"),
        pytest.param(keras.Model, "_initial_epoch", id="Model._initial_epoch"),
        pytest.param(keras.Model, "_flatten_layers", id="Layer._flatten_layers"),
        pytest.param(keras.metrics.Accuracy, "_direction", id="Metric._direction"),
        pytest.param(optimizers.SGD, "_trainable_variables", id="Optimizer._trainable_variables"),
        pytest.param(scaled_optimizer, "inner_optimizer", id="LossScaleOptimizer.inner_optimizer"),
    ],
)
def test_the_attribute_is_still_there(owner: Any, name: str) -> None:
    assert hasattr(owner(), name), f"Keras {keras.__version__} moved it"


def test_the_list_that_calls_us_is_found_within_fit_and_nowhere_else() -> None:
    first, recorder = Appends(), Recorder()
    fit(quick(), first, recorder, epochs=1)
    assert first.callbacks.callbacks[:2] == [first, recorder]
    assert recorder.began["list"] is first.callbacks
    assert ki.calling_callback_list() is None


def test_an_appended_callback_comes_last_and_misses_nothing() -> None:
    first, model = Appends(), quick()
    fit(model, first, Callback(), epochs=2)
    tail = first.recorder
    ki.append_callback(first.callbacks, tail)  # A second time changes nothing.
    assert first.callbacks.callbacks.index(tail) == len(first.callbacks.callbacks) - 1
    assert first.callbacks._async_train is False
    assert (tail.model, tail.params["epochs"]) == (model, 2)
    assert tail.began["list"] is first.callbacks
    assert tail.events == ["0", "1", "epoch 1 is in History", "0", "1", "epoch 2 is in History"]


def test_the_arguments_of_the_running_fit_are_found() -> None:
    recorder, validation = Recorder(), data()
    options = {"initial_epoch": 2, "epochs": 4, "validation_freq": [3]}
    fit(quick(), recorder, validation_data=validation, **options)
    found = dict(recorder.began["arguments"])
    assert found.pop("validation_data") is validation
    assert found == options


def test_a_fit_of_somebody_else_is_not_mistaken_for_one() -> None:
    def fit(initial_epoch: int = 3) -> Any:
        return ki.fit_arguments()

    assert fit() == {}


def test_the_overridden_initial_epoch_is_honoured_and_gone_once_cleared() -> None:
    model = quick()
    assert fit(model, starts_at(2, model, clear=True), epochs=4).epoch == [2, 3]
    assert fit(model, epochs=2).epoch == [0, 1]


def test_keras_itself_never_clears_it() -> None:
    model = quick()
    fit(model, starts_at(2, model, clear=False), epochs=3)
    assert fit(model, epochs=3).epoch == [2], "if Keras resets it now, our clearing may go"


def test_metrics_tell_their_directions() -> None:
    undirected = keras.metrics.MeanMetricWrapper(lambda y, p: p, name="plain")
    metrics = ["accuracy", "auc", undirected]
    weighted = [keras.metrics.MeanSquaredError(name="mse")]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, activation="softmax")])
    model.compile("sgd", "mae", metrics=metrics, weighted_metrics=weighted, run_eagerly=True)
    assert ki.metric_directions(model)["loss"] == "min", "known before anything is built"
    model.fit(np.ones((4, 3)), np.eye(4, 3), verbose=0)
    expected = {"loss": "min", "accuracy": "max", "auc": "max", "mse": "min"}
    assert ki.metric_directions(model) == expected, "and a plain wrapper has none"


def test_an_optimizer_knows_its_variables_in_its_own_order() -> None:
    one, two = keras.Variable(np.zeros(2), name="one"), keras.Variable(np.zeros(3), name="two")
    for optimizer in (optimizers.Adam(), scaled_optimizer()):
        assert ki.trained_variables(optimizer) == []
        optimizer.build([two, one])
        assert [id(v) for v in ki.trained_variables(optimizer)] == [id(two), id(one)]


@pytest.mark.parametrize(
    ("make", "built", "complete"),
    [(mlp, True, True), (Gan, False, True), (Subclassed, False, False)],
)
def test_a_model_may_be_complete_without_a_call(make: Any, built: bool, complete: bool) -> None:
    model = make()
    assert (model.built, ki.has_variables(model)) == (built, complete)
    with contextlib.suppress(KeyError), ki.regarded_as_built(model):
        assert model.built is complete
        raise KeyError
    assert model.built is built


@pytest.mark.parametrize("name", ["m.keras", "m.weights.h5"])
def test_weights_and_optimizer_load_together(name: str, tmp_path: Path) -> None:
    old, new = quick(), quick()
    fit(old, epochs=1)
    (old.save if name == "m.keras" else old.save_weights)(tmp_path / name)
    new.optimizer.build(new.trainable_variables)
    assert not same(old, new)
    ki.load_whole_state(new, str(tmp_path / name))
    assert same(old, new)


def test_the_global_seed_generator_goes_on_where_it_was() -> None:
    keras.utils.set_random_seed(3)
    assert ki.global_seed_state() is None
    keras.random.normal((2,))
    state = ki.global_seed_state()
    assert state is not None
    drawn = np.asarray(keras.random.normal((2,)))
    ki.restore_global_seed_state(state)
    assert np.array_equal(keras.random.normal((2,)), drawn)


@given(st.integers(), st.booleans())
def test_pythons_generator_stays_still_whatever_happens_inside(seed: int, fails: bool) -> None:
    random.seed(seed)
    before = random.getstate()
    with contextlib.suppress(ZeroDivisionError), ki.untouched_python_rng():
        keras.random.SeedGenerator()
        assert random.random() / (not fails)
    assert random.getstate() == before


# --- loading from a map -------------------------------------------------------


def test_keras_loader_has_every_part_that_the_mapped_read_leans_on() -> None:
    assert ki.missing_seams() is None


def test_keras_variables_take_over_a_buffer_and_an_update_leaves_it_alone() -> None:
    array, tensor = _deferred.owned((64, 64), np.dtype("float32"), filled=True)
    array[:] = 1
    variable = keras.Variable(np.zeros((64, 64), np.float32))
    variable.assign(tensor)
    [held] = ki.borrow([variable])
    assert ki.share_memory(held, tensor)
    del held
    variable.assign_add(np.ones((64, 64), np.float32))
    assert np.all(array == 1)
    assert np.all(np.asarray(variable) == 2)


def test_a_variable_asks_a_view_for_its_tensor() -> None:
    data = np.arange(1 << 15, dtype=np.float32)
    variable = keras.Variable(np.zeros(1 << 15, np.float32))
    variable.assign(data.view(_loading._View))
    [value] = ki.borrow([variable])
    assert ki.view(value).ctypes.data % 4096 == 0
    assert np.array_equal(ki.view(value), data)


@pytest.mark.parametrize("custom", [False, True], ids=["keras", "layer-of-the-users"])
def test_every_variable_of_a_layer_counts_against_the_budget(custom: bool) -> None:
    class Mine(keras.layers.Dense):
        pass

    layer = (Mine if custom else keras.layers.Dense)(100)
    with (
        ki.bounded_variables(50_000) as budget,
        pytest.raises(ValueError, match="shape .1000, 100.*400000 bytes of variables.* 50000"),
    ):
        layer.build((None, 1000))
    assert budget.exceeded
    with ki.bounded_variables(500_000) as budget:
        model = keras.Sequential([keras.Input((1000,)), keras.layers.Dense(100)])
        assert budget.exceeded is None
        with pytest.raises(ValueError, match="bytes of variables"):
            keras.optimizers.Adam().build(model.trainable_variables)
    keras.layers.Dense(1000).build((None, 1000))


def test_what_a_config_may_name_is_found_wherever_it_was_said() -> None:
    with keras.saving.custom_object_scope({"Scoped": int}):
        found = ki.known_objects({"Given": float})
    assert {"Scoped", "Given"} <= set(found)
    assert "Scoped" not in ki.known_objects(None)


def test_keras_finds_by_a_bare_name_what_it_says_it_does() -> None:
    from keras.src.saving import serialization_lib

    from mlflow_ckpt.keras_internals import _names

    assert set(serialization_lib.BUILTIN_MODULES) == _names.BUILTIN
    own = ("Dense", "TFSMLayer", "ADAM", "glorot_uniform", "CosineDecay", "Functional", "my dog")
    assert [ki.is_own_name(name) for name in own] == [True, False, True, True, True, True, False]
    functions = ("relu", "mse", "mean_squared_error", "double")
    assert [ki.is_own_function(name, {}) for name in functions] == [True, True, True, False]
    assert ki.is_own_function("double", {"zoo>double": abs})


def test_what_keras_describes_and_tries_out_counts_as_steps() -> None:
    class Tried(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x

    x = keras.Input((4,))
    init = keras.KerasTensor.__init__
    with ki.bounded_variables(0, steps=3) as budget:
        keras.ops.unstack(keras.Input((2,)), axis=1)
        with pytest.raises(ValueError, match="over 3 tensors"):
            keras.ops.relu(x)
    assert budget.exceeded
    with ki.bounded_variables(0, steps=9), pytest.raises(ValueError, match="over 9 tensors"):
        Tried()(x)
    assert keras.KerasTensor.__init__ is init
    assert Tried()(x).shape == (None, 4)
