"""What finding a place in the input leans on: an upgrade that moves it fails here by name."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import data, mlp

from mlflow_ckpt import keras_internals
from mlflow_ckpt.keras_internals import _feed_arrays, _training

pytestmark = pytest.mark.pure


def seen_by_a_callback(**arguments: Any) -> dict[str, Any]:
    """Local names of a running `fit`, as a callback finds them."""
    found: dict[str, Any] = {}

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            found.update(_training.running_fit())

    mlp().fit(epochs=1, verbose=0, callbacks=[Look()], **arguments)
    return found


def test_a_fit_has_the_names_that_a_feed_looks_for() -> None:
    x, y = data()
    found = seen_by_a_callback(x=x, y=y, validation_data=(x, y))
    assert {"epoch_iterator", "val_x", "initial_epoch", "epochs"} <= set(found)
    iterator = found["epoch_iterator"]
    for name in (
        "_enumerate_iterator", "_get_iterator", "_current_iterator", "_num_batches", "_steps_seen",
        "_distributed_dataset", "steps_per_epoch", "steps_per_execution", "data_adapter",
    ):  # fmt: skip
        assert hasattr(iterator, name), name
    for name in ("_shuffle", "_batch_size", "_num_samples"):
        assert hasattr(iterator.data_adapter, name), name


@pytest.mark.parametrize(("steps", "size"), [(None, 1), (None, 2), (3, 1), (4, 2)])
def test_the_rest_of_an_epoch_is_enumerated_as_keras_enumerates_it(
    steps: int | None, size: int
) -> None:
    """A feed repeats `EpochIterator._enumerate_iterator` from a batch on."""
    x, y = data()
    found = seen_by_a_callback(x=x, y=y, batch_size=8, steps_per_epoch=steps)
    iterator = found["epoch_iterator"]
    iterator.steps_per_execution = size
    whole = [(first, last) for first, last, _ in iterator._enumerate_iterator()]
    model = mlp()
    iterator.reset()
    feed = _feed_arrays.ArrayFeed(iterator, model, {})
    state = {"born": [], "made": [], "read": size, "own": {}, "num_batches": 8}
    iterator._enumerate_iterator = None
    rest = [(first, last) for first, last, _ in feed._rest_of_epoch(state, size)]
    assert rest == whole[1:]
    feed.release()


def test_the_rest_of_the_arrays_is_sliced_as_keras_slices_them() -> None:
    keras.utils.set_random_seed(1)
    x, y = data()
    whole = seen_by_a_callback(x=x, y=y, batch_size=8)["epoch_iterator"]._distributed_dataset
    batches = [[np.asarray(part) for part in batch] for batch in whole]
    rest = [[np.asarray(part) for part in batch] for batch in _feed_arrays._from_batch(whole, 3)]
    assert len(rest) == 5
    for one, other in zip(batches[3:], rest, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_py_dataset_adapter_has_what_a_feed_takes_over() -> None:
    class Batches(keras.utils.PyDataset):
        num_batches = 2

        def __getitem__(self, index: int) -> Any:
            x, y = data()
            return x[:8], y[:8]

    found = seen_by_a_callback(x=Batches(workers=2))
    adapter = found["epoch_iterator"].data_adapter
    for name in (
        "py_dataset", "shuffle", "enqueuer", "_standardize_batch", "_finite_generator",
        "_infinite_generator", "_finite_enqueuer_generator",
    ):  # fmt: skip
        assert hasattr(adapter, name), name
    for name in ("start", "stop", "get", "is_running", "py_dataset", "shuffle"):
        assert hasattr(adapter.enqueuer, name), name


def test_a_dataset_shows_what_the_scan_reads() -> None:
    shuffled = tf.data.Dataset.range(9).shuffle(4, seed=1)
    for name in ("_seed", "_seed2", "_buffer_size", "_reshuffle_each_iteration", "_inputs"):
        assert hasattr(shuffled, name), name
    mapped = shuffled.map(lambda n: n)
    assert callable(mapped._map_func._func)
    assert mapped._map_func.function.graph.get_operations()


def test_the_logs_of_an_epoch_come_from_the_method_that_is_taken_over() -> None:
    model = mlp()
    assert callable(model._get_metrics_result_or_logs)
    assert callable(model._symbolic_build)
    source = inspect.getsource(type(model).fit)
    assert "self._get_metrics_result_or_logs(logs)" in source


def test_metrics_can_be_built_without_a_batch() -> None:
    x, y = data()
    model = mlp()
    assert len(model.metrics_variables) == 2
    spec = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).element_spec
    keras_internals.build_metrics(model, spec)
    assert len(model.metrics_variables) == 4


def test_tensorflow_has_the_random_state_that_is_kept() -> None:
    keras.utils.set_random_seed(5)
    tf.random.set_global_generator(tf.random.Generator.from_seed(3))

    def draw() -> list[float]:
        eager = float(tf.random.uniform([]))
        return [eager, float(tf.random.get_global_generator().uniform([]))]

    state = keras_internals.tensorflow_random_state()
    assert state is not None
    assert state["seeds"] is not None
    first = draw()
    keras_internals.restore_tensorflow_random_state(state)
    assert draw() == first


def test_a_random_operation_in_the_train_step_is_found() -> None:
    class Noisy(keras.layers.Layer):
        def call(self, inputs: Any) -> Any:
            return inputs + tf.random.normal(tf.shape(inputs))

    x, _ = data()
    found = []
    for layers in ([Noisy()], [keras.layers.Dropout(0.5)]):
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(x, x[:, :1], verbose=0)
        found.append(keras_internals.uncountable_operation(model))
    assert found == ["RandomStandardNormal", None]
