"""An input whose order is a pure function of (seed, epoch), as fits read it."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import FEATURES, data, same
from builders import mlp as traced_mlp
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt import EpochData
from mlflow_ckpt.errors import ConfigError

pytestmark = pytest.mark.pure

Callback = keras.callbacks.Callback
SAMPLES = 50


def numbered(samples: int = SAMPLES, **options: Any) -> EpochData:
    """Samples that are their own numbers, so that a batch says which it holds."""
    options.setdefault("batch_size", 8)
    return EpochData(np.arange(samples), **options)


def made(epoch: int, *, batches: int = 6) -> tf.data.Dataset:
    """What a user's factory may look like: shuffled and augmented by the epoch alone."""
    rows = tf.data.Dataset.range(batches * 8).shuffle(64, seed=epoch + 1).batch(8)
    return rows.enumerate().map(
        lambda n, row: row + tf.random.stateless_uniform([8], [epoch, n], 0, 9, tf.int64) * 100
    )


def from_factory() -> EpochData:
    return EpochData.from_factory(made, batches=6, batch_size=8)


def read(source: EpochData) -> list[np.ndarray[Any, Any]]:
    """Read the next epoch as Keras does."""
    dataset = source.get_tf_dataset()
    source.on_epoch_begin()
    batches = [np.asarray(batch) for batch in dataset]
    source.on_epoch_end()
    return batches


def equal(left: list[Any], right: list[Any]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


def mlp() -> keras.Model:
    """A small model whose first step needs no tracing."""
    return traced_mlp(optimizer="sgd", run_eagerly=True)


class Seen(Callback):
    """Notes the data epoch in every epoch and validation of a fit."""

    def __init__(self, source: EpochData) -> None:
        super().__init__()
        self.source, self.epochs, self.tested = source, [], []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(self.source.epoch)

    def on_test_end(self, logs: Any = None) -> None:
        self.tested.append(self.source.epoch)


def weighted() -> tuple[Any, Any, Any]:
    x, y = data()
    return x, y, np.linspace(0, 2, len(x))


# --- the order ------------------------------------------------------------------


def philox(seed: int, epoch: int) -> Any:
    return np.random.Philox(key=np.array([seed, epoch], np.uint64))


def documented(samples: int, seed: int, epoch: int, index: int = 0, count: int = 1) -> list[int]:
    """The formula of the docstring, word by word."""
    words = [int(w) for w in philox(seed, epoch).random_raw(samples)]
    bits = (samples - 1).bit_length()
    order = sorted(range(samples), key=lambda i: (words[i] >> bits, i))
    return order[index::count][: samples // count]


@pytest.mark.parametrize(("samples", "seed"), [(1, 0), (2, 1), (50, 7), (1000, 2**64 - 1)])
def test_the_order_is_the_documented_one(samples: int, seed: int) -> None:
    source = numbered(samples, seed=seed)
    for epoch in (0, 1, 999):
        assert source.order(epoch).tolist() == documented(samples, seed, epoch)
        found = np.concatenate([np.asarray(batch) for batch in source.dataset_of(epoch)])
        assert found.tolist() == documented(samples, seed, epoch)


def test_the_order_of_today_is_the_order_of_tomorrow() -> None:
    orders = [numbered(10, seed=3).order(epoch).tolist() for epoch in (0, 1)]
    assert orders == [[6, 1, 8, 5, 2, 7, 9, 4, 3, 0], [9, 7, 8, 3, 5, 6, 4, 0, 2, 1]]


@given(
    samples=st.integers(1, 300),
    count=st.integers(1, 7),
    batch_size=st.integers(1, 40),
    epoch=st.integers(0, 2**64 - 1),
    drop=st.booleans(),
)
def test_shards_are_disjoint_and_have_as_many_batches(
    samples: int, count: int, batch_size: int, epoch: int, drop: bool
) -> None:
    each = samples // count
    if each == 0 or (drop and each < batch_size):
        return
    options = {"batch_size": batch_size, "seed": 5, "drop_remainder": drop}
    shards = [numbered(samples, shard=(i, count), **options) for i in range(count)]
    orders = [shard.order(epoch) for shard in shards]
    used = each // batch_size * batch_size if drop else each
    assert [len(order) for order in orders] == [used] * count
    assert {shard.num_batches for shard in shards} == {-(-used // batch_size)}
    assert len(set(np.concatenate(orders).tolist())) == used * count
    if used * count == samples:
        assert sorted(np.concatenate(orders).tolist()) == list(range(samples))
    assert orders[0].tolist() == documented(samples, 5, epoch, 0, count)[:used]


def test_a_batch_of_all_shards_is_one_of_the_whole() -> None:
    whole = numbered(48, batch_size=12).dataset_of(4)
    shards = [numbered(48, batch_size=4, shard=(i, 3)).dataset_of(4) for i in range(3)]
    for batch, *parts in zip(whole, *shards, strict=True):
        assert sorted(np.asarray(batch)) == sorted(np.concatenate([np.asarray(p) for p in parts]))


def test_epochs_and_seeds_differ_and_processes_do_not() -> None:
    orders = [numbered(seed=s).order(e).tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    np.random.seed(3)
    keras.utils.set_random_seed(4)
    assert numbered(seed=1).order(1).tolist() == orders[3]


def test_unshuffled_is_the_order_of_the_arrays_in_every_epoch() -> None:
    source = numbered(shuffle=False)
    for _ in range(2):
        assert np.concatenate(read(source)).tolist() == list(range(SAMPLES))


def test_two_shards_swap_samples_between_epochs() -> None:
    shard = numbered(shard=(0, 2))
    assert set(shard.order(0).tolist()) != set(shard.order(1).tolist())


# --- the place in it --------------------------------------------------------------


@pytest.mark.parametrize("make", [numbered, from_factory], ids=["arrays", "factory"])
@pytest.mark.parametrize("batch", [0, 1, 3, -2, -1], ids=["0", "1", "3", "last", "end"])
def test_a_moved_input_gives_the_same_rest(make: Any, batch: int) -> None:
    through, moved = make(), make()
    epochs = [read(through) for _ in range(4)]
    batch %= through.num_batches + 1
    moved.move_to(2, batch)
    assert moved.epoch == 1
    assert equal(read(moved), epochs[2][batch:])
    assert moved.epoch == 2
    assert equal(read(moved), epochs[3]), "the epoch after is whole"
    assert equal([np.asarray(b) for b in moved.dataset_of(2, batch)], epochs[2][batch:])
    moved.move_to(0)
    assert equal(read(moved), epochs[0]), "and back again"


@pytest.mark.parametrize("make", [numbered, from_factory], ids=["arrays", "factory"])
def test_every_door_gives_the_same_batches(make: Any) -> None:
    source = make()
    source.move_to(1, 2)
    expected = read(source)
    for door in ("get_numpy_iterator", "get_jax_iterator"):
        source.move_to(1, 2)
        source.on_epoch_begin()
        assert equal(list(getattr(source, door)()), expected)


def test_batches_have_one_spec_wherever_an_epoch_begins() -> None:
    for source in (numbered(), numbered(48), numbered(drop_remainder=True)):
        specs = {source.dataset_of(0, b).element_spec for b in range(source.num_batches + 1)}
        specs |= {source.element_spec, source.get_tf_dataset().element_spec}
        assert len(specs) == 1, "else Keras would trace its step again"


def test_an_epoch_is_read_once() -> None:
    source = numbered()
    with pytest.raises(ConfigError, match="Received: a second reading"):
        next(iter(source.get_tf_dataset()))
    read(source)
    with pytest.raises(ConfigError, match=r"Use EpochData\.dataset_of\(epoch\)"):
        list(source.get_numpy_iterator())


def test_a_dataset_outlives_its_input() -> None:
    dataset = numbered().dataset_of(0)
    source = numbered()
    source.on_epoch_begin()
    iterator = source.iterate()
    del source
    gc.collect()
    assert equal(list(iterator), list(dataset))


# --- in a fit -----------------------------------------------------------------------


def test_a_fit_equals_training_on_the_same_batches() -> None:
    keras.utils.set_random_seed(1)
    by_fit = mlp()
    by_fit.fit(EpochData(*weighted(), batch_size=20, seed=9), epochs=2, verbose=0)

    keras.utils.set_random_seed(1)
    by_batch = mlp()
    x, y, weight = weighted()
    order = EpochData(x, batch_size=20, seed=9).order
    for epoch in range(2):
        for first in range(0, len(x), 20):
            rows = order(epoch)[first : first + 20]
            by_batch.train_on_batch(x[rows], y[rows], weight[rows].astype("float32"))
    assert same(by_fit, by_batch)


def test_two_fits_equal_one_and_so_does_one_moved_there() -> None:
    def train(*runs: tuple[int, int], move_to: int | None = None) -> keras.Model:
        keras.utils.set_random_seed(1)
        model, source = mlp(), EpochData(*data())
        for begin, end in runs:
            model.fit(source, initial_epoch=begin, epochs=end, verbose=0)
            if move_to is not None:
                source = EpochData(*data())  # as another process has it
                source.move_to(move_to)
        return model

    whole = train((0, 3))
    assert same(whole, train((0, 1), (1, 3)))
    assert same(whole, train((0, 1), (1, 3), move_to=1))
    assert not same(whole, train((0, 1), (1, 3), move_to=0))


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_fit_that_begins_in_an_epoch_equals_one_that_was_not_stopped(batch: int) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, number: int, logs: Any = None) -> None:
            self.model.stop_training = number == batch - 1

    def model() -> keras.Model:
        keras.utils.set_random_seed(1)
        return mlp()

    whole, broken, source = model(), model(), EpochData(*data(), batch_size=16)
    whole.fit(EpochData(*data(), batch_size=16), epochs=2, verbose=0)
    broken.fit(source, epochs=1, verbose=0, callbacks=[Stop()])
    assert source.epoch == 0
    source.move_to(0, batch)
    broken.fit(source, epochs=2 if batch < 4 else 1, verbose=0)
    assert source.epoch == 1
    assert same(whole, broken)


class Adds(keras.layers.Layer):
    """Adds up what it is trained on, and notes its first column where it can."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.seen: list[int] = []

    def call(self, inputs: Any) -> Any:
        self.total.assign_add(keras.ops.sum(inputs))
        if not isinstance(inputs, keras.KerasTensor) and tf.executing_eagerly():
            self.seen += np.asarray(inputs)[:, 0].astype(int).tolist()
        return inputs


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"run_eagerly": True}, id="eager"),
        pytest.param({"steps_per_execution": 3}, id="three-steps-at-once"),
        pytest.param({"jit_compile": True}, id="xla"),
    ],
)
def test_a_fit_reads_each_epoch_whole(options: dict[str, Any]) -> None:
    source = EpochData(np.arange(50.0).reshape(-1, 1), np.zeros(50), batch_size=8)
    adds = Adds()
    model = keras.Sequential([keras.Input((1,)), adds, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    seen = Seen(source)
    model.fit(source, epochs=3, verbose=0, callbacks=[seen])
    assert float(adds.total) == 3 * sum(range(50))
    assert seen.epochs == [0, 1, 2]
    if options.get("run_eagerly"):
        assert adds.seen == [n for epoch in range(3) for n in source.order(epoch).tolist()]


def test_a_factory_is_called_once_for_each_epoch_of_a_fit() -> None:
    calls: list[int] = []

    def pairs(epoch: int) -> tf.data.Dataset:
        calls.append(epoch)
        return tf.data.Dataset.from_tensor_slices(data()).shuffle(64, seed=epoch + 1).batch(16)

    model = mlp()
    source = EpochData.from_factory(pairs, batches=4)
    model.fit(source, epochs=3, verbose=0)
    assert calls == [0, 1, 2]
    model.fit(source, epochs=1, verbose=0)
    model.evaluate(source, verbose=0)
    assert calls == [0, 1, 2, 3, 0]
    assert all(type(epoch) is int for epoch in calls)


def test_validation_evaluation_and_prediction_count_nothing() -> None:
    x, y = data()
    source, validation = EpochData(x, y, batch_size=20), EpochData(x, y, batch_size=20)
    model, seen = mlp(), Seen(validation)
    history = model.fit(
        source, epochs=2, verbose=0, validation_data=validation, callbacks=[seen]
    ).history
    assert seen.tested == [-1, -1], "validated, and not counted"
    loss = model.evaluate(x, y, batch_size=20, verbose=0)[0]
    assert history["val_loss"][-1] == loss == model.evaluate(source, verbose=0)[0]
    assert np.array_equal(model.predict(source, verbose=0), model.predict(x, 20, verbose=0))
    assert (source.epoch, validation.epoch) == (1, -1)
    model.evaluate(validation, steps=2, verbose=0)
    model.fit(source, epochs=1, verbose=0, validation_data=validation, validation_steps=4)
    assert (source.epoch, validation.epoch) == (2, -1)


def test_nested_inputs_and_outputs_keep_their_names() -> None:
    left, right = keras.Input((2,), name="left"), keras.Input((1,), name="right")
    both = keras.layers.Concatenate()([left, right])
    outputs = {name: keras.layers.Dense(1, name=name)(both) for name in ("a", "b")}

    def train(source: Any, *targets: Any, **options: Any) -> keras.Model:
        keras.utils.set_random_seed(2)
        model = keras.Model({"left": left, "right": right}, outputs)
        model.set_weights([np.ones_like(w) for w in model.get_weights()])
        model.compile("sgd", {"a": "mse", "b": "mae"})
        model.fit(source, *targets, epochs=2, verbose=0, **options)
        return model

    rng = np.random.default_rng(0)
    x = {"left": rng.random((20, 2)), "right": rng.random((20, 1))}
    y = {"a": rng.random((20, 1)), "b": rng.random((20, 1))}
    weight = rng.random(20)
    ours = train(EpochData(x, y, weight, batch_size=8, shuffle=False))
    keras_own = train(x, y, sample_weight=weight, batch_size=8, shuffle=False)
    assert same(ours, keras_own)


def test_lists_and_other_kinds_of_arrays_are_taken() -> None:
    source = EpochData(
        [tf.range(6), np.array(["a", "b", "c", "d", "e", "f"], dtype=object)],
        np.arange(6.0),
        batch_size=4,
        shuffle=False,
    )
    (number, text), target = source.element_spec
    assert (number.dtype, text.dtype, target.dtype) == (tf.int32, tf.string, tf.float32)
    (numbers, texts), targets = list(source.dataset_of(0))[1]
    assert (numbers.numpy().tolist(), texts.numpy().tolist()) == ([4, 5], [b"e", b"f"])
    assert targets.numpy().tolist() == [4.0, 5.0]


def test_inputs_alone_are_no_tuple() -> None:
    x, _ = data()
    assert EpochData(x).element_spec == tf.TensorSpec((32, FEATURES), tf.float32)
    assert EpochData({"x": x}).element_spec == {"x": tf.TensorSpec((32, FEATURES), tf.float32)}
    assert len(EpochData([x, x]).element_spec) == 1, "a list is two inputs, not inputs and targets"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_a_fit_of_another_backend_reads_the_same() -> None:
    code = """if True:
        import keras, numpy as np
        from mlflow_ckpt import EpochData

        read = []
        class Notes(EpochData):
            def get_jax_iterator(self):
                for batch in super().get_jax_iterator():
                    read.extend(batch[0][:, 0].astype(int).tolist())
                    yield batch

        source = Notes(np.arange(20.0).reshape(-1, 1), np.zeros(20), batch_size=8)
        model = keras.Sequential([keras.layers.Dense(1)])  # its first batch builds it
        model.compile("sgd", "mse")
        model.predict(source, verbose=0)
        read.clear()
        validation = EpochData(np.ones((4, 1)), np.ones(4))
        model.fit(source, epochs=2, verbose=0, validation_data=validation)
        assert keras.backend.backend() == "jax"
        assert source.epoch == 1, source.epoch
        wanted = [n for e in range(2) for n in source.order(e).tolist()]
        assert read[-40:] == wanted, (read, wanted)
    """
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- what it refuses ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        pytest.param({"y": np.zeros(64)}, "no y beside", id="y"),
        pytest.param({"sample_weight": np.zeros(64)}, "no sample_weight", id="sample_weight"),
        pytest.param({"class_weight": {0: 2.0}}, "no class_weight .* sample_weight", id="class"),
        pytest.param({"steps_per_epoch": 2}, "no steps_per_epoch", id="steps_per_epoch"),
        pytest.param({"batch_size": 5}, "no batch_size but 32", id="batch_size"),
    ],
)
def test_fit_refuses_what_keras_would_drop(options: dict[str, Any], complaint: str) -> None:
    model, source = mlp(), EpochData(*data())
    before = [np.asarray(w) for w in model.weights]
    with pytest.raises(ConfigError, match=complaint):
        model.fit(source, verbose=0, **options)
    assert equal([np.asarray(w) for w in model.weights], before)
    assert source.epoch == -1
    model.fit(source, verbose=0, batch_size=32, shuffle=False)
    assert source.epoch == 0


def test_fit_refuses_a_validation_split_and_one_input_for_both() -> None:
    source = EpochData(*data())
    with pytest.raises(ValueError, match="`validation_split` is only supported"):
        mlp().fit(source, verbose=0, validation_split=0.1)
    with pytest.raises(ConfigError, match="the same EpochData twice. Make a second one"):
        mlp().fit(source, verbose=0, validation_data=source)


def test_arguments_for_arrays_do_not_trouble_an_epoch_data_that_validates() -> None:
    x, y = data()
    validation = EpochData(x, y, batch_size=16)
    mlp().fit(x, y, batch_size=8, class_weight={0: 2.0}, validation_data=validation, verbose=0)
    mlp().fit(x, y, steps_per_epoch=1, epochs=2, validation_data=validation, verbose=0)
    assert validation.epoch == -1


def test_a_cap_on_the_steps_is_refused_too() -> None:
    keras.config.set_max_steps_per_epoch(1)
    try:
        with (
            pytest.warns(UserWarning, match="Limiting steps_per_epoch"),
            pytest.raises(ConfigError, match="KERAS_MAX_STEPS_PER_EPOCH"),
        ):
            mlp().fit(EpochData(*data()), verbose=0)
    finally:
        keras.config.set_max_steps_per_epoch(None)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(lambda: tf.distribute.MirroredStrategy(["CPU:0"]), id="mirrored"),
        pytest.param(lambda: tf.distribute.OneDeviceStrategy("CPU:0"), id="one-device"),
    ],
)
def test_a_distribution_strategy_is_refused(strategy: Any) -> None:
    with strategy().scope():
        model = mlp()
    with pytest.raises(ConfigError, match=r"without a tf\.distribute strategy.*shard="):
        model.fit(EpochData(*data()), verbose=0)


def test_its_dataset_cannot_be_transformed() -> None:
    dataset = EpochData(*data()).get_tf_dataset()
    assert len(dataset) == 2
    for use in (lambda: dataset.map(lambda x, y: x), lambda: tf.function(lambda d: d)(dataset)):
        with pytest.raises(ConfigError, match="Received: a request for its graph"):
            use()


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        pytest.param(lambda: EpochData([[1, 2], [3, 4]]), "Received: int. Convert", id="no-array"),
        pytest.param(lambda: EpochData(None), "Received: NoneType", id="nothing"),
        pytest.param(lambda: EpochData({}), "Received: shapes no array", id="empty-dict"),
        pytest.param(lambda: numbered(0), r"shapes \(0,\)", id="no-sample"),
        pytest.param(lambda: EpochData(np.array(3)), r"shapes \(\)", id="scalar"),
        pytest.param(
            lambda: EpochData(np.zeros(3), np.zeros(4)), r"shapes \(3,\), \(4,\)", id="lengths"
        ),
        pytest.param(
            lambda: EpochData(np.zeros(3), None, np.zeros(3)), "Expected y beside", id="weights"
        ),
        pytest.param(lambda: numbered(batch_size=0), "1 or more.*batch_size=0", id="batch-size"),
        pytest.param(lambda: numbered(batch_size=2.0), "batch_size=2.0", id="float"),
        pytest.param(lambda: numbered(batch_size=True), "batch_size=True", id="bool"),
        pytest.param(lambda: numbered(seed=-1), "0 to 18446744073709551615.*seed=-1", id="seed"),
        pytest.param(lambda: numbered(seed=None), "seed=None", id="no-seed"),
        pytest.param(lambda: numbered(shard=3), r"shard=\(index, count\).*shard=3", id="shard"),
        pytest.param(lambda: numbered(shard=(2, 2)), r"from 0 to 1.*shard\[0\]=2", id="index"),
        pytest.param(lambda: numbered(shard=(0, 0)), r"1 or more.*shard\[1\]=0", id="count"),
        pytest.param(lambda: numbered(3, shard=(0, 4)), "3 samples for 4 shard", id="shards"),
        pytest.param(
            lambda: numbered(7, drop_remainder=True), "one batch of 8.*7 samples", id="no-batch"
        ),
        pytest.param(lambda: numbered().move_to(-1), "epoch=-1", id="move-epoch"),
        pytest.param(lambda: numbered().move_to(0, 8), "0 to 7.*batch=8", id="move-batch"),
        pytest.param(lambda: numbered().move_to(0, -1), "batch=-1", id="move-back"),
        pytest.param(lambda: numbered().dataset_of(0, 8), "an epoch has 7 batches", id="dataset"),
        pytest.param(lambda: EpochData.from_factory(3, batches=2), "factory=3", id="factory"),
        pytest.param(
            lambda: EpochData.from_factory(made, batches=0), "1 or more.*batches=0", id="batches"
        ),
        pytest.param(lambda: from_factory().order(0), "only the factory knows", id="order"),
        pytest.param(
            lambda: EpochData.from_factory(range, batches=2).dataset_of(2),
            "Received: range",
            id="no-dataset",
        ),
        pytest.param(
            lambda: EpochData.from_factory(made, batches=5).dataset_of(0),
            r"a dataset of 5 batches.*Received: 6.*take\(5\)",
            id="length",
        ),
        pytest.param(
            lambda: EpochData.from_factory(lambda e: made(e).repeat(), batches=6).dataset_of(0),
            "endless batches",
            id="endless",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make()


def test_it_says_what_decides_its_batches() -> None:
    assert repr(numbered(seed=3, shard=(1, 2))) == (
        "EpochData(samples=50, batch_size=8, seed=3, shuffle=True, shard=[1, 2], "
        "drop_remainder=False)"
    )
    assert from_factory().get_config() == {"batches": 6, "batch_size": 8}
    assert (numbered().partial_batch_size, numbered(48).has_partial_batch) == (2, False)
    assert from_factory().has_partial_batch is None
