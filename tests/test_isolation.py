"""A snapshot holds the state of its instant, whatever training does before it is written.

The state is copied to NumPy in the hook that captures; training goes on; then the snapshot
is written, and Keras's own loader has to find in the file what was copied, bit for bit.
"""

from __future__ import annotations

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, optimizers
from zoo import dense, optimizers_of

from mlflow_ckpt import captured, keras_internals
from mlflow_ckpt.errors import SnapshotTorn
from mlflow_ckpt.snapshot import Capturer, Snapshot

pytestmark = pytest.mark.pure
slow = pytest.mark.slow

BATCH, STEPS, EPOCHS = 4, 8, 3
MODEL = "data/model.keras"


@pytest.fixture(autouse=True)
def leave_no_models() -> Iterator[None]:
    keras.utils.set_random_seed(7)
    yield
    keras.utils.clear_session(free_memory=False)


def state_of(model: keras.Model) -> list[tuple[str, bytes]]:
    """Dtype and bytes, copied, of every weight and of every optimizer's variables."""
    held = [*model.weights, *(v for o in optimizers_of(model) for v in o.variables)]
    return [(str(v.dtype), np.array(keras.ops.convert_to_numpy(v)).tobytes()) for v in held]


class CaptureOnce(keras.callbacks.Callback):
    """Capture at the end of one batch (counted from 1), or of the first epoch.

    Attributes:
        snapshot: What the engine took.
        expected: What the model held in the same hook.
    """

    def __init__(self, capturer: Capturer, batch: int | None = None) -> None:
        super().__init__()
        self.capturer, self.at, self.batches = capturer, batch, 0
        self.snapshot: Snapshot | None = None

    def take(self) -> None:
        if self.snapshot is None:
            self.snapshot = self.capturer.capture()
            self.expected = state_of(self.model)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.batches == self.at:
            self.take()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.at is None:
            self.take()


def perceptron() -> keras.Model:
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(16, activation="tanh"), layers.Dense(3)]
    )
    return model


def embedding() -> keras.Model:
    """Its gradients are sparse: a step updates the rows of the batch's tokens only."""
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Flatten()(layers.Embedding(40, 8)(tokens))
    return keras.Model(tokens, layers.Dense(3)(x))


def batches(model: keras.Model) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`STEPS` batches for a model."""
    generator = np.random.default_rng(0)
    y = generator.random((BATCH * STEPS, 3), dtype=np.float32)
    if model.inputs[0].dtype == "int32":
        return generator.integers(0, 30, (BATCH * STEPS, 6)).astype("int32"), y
    return generator.random((BATCH * STEPS, 6), dtype=np.float32), y


def assert_holds(folder: Path, expected: list[tuple[str, bytes]]) -> None:
    """Keras must read this state from what was written to `folder`."""
    assert state_of(keras.saving.load_model(folder / MODEL)) == expected


RATE = 0.05
Make = Callable[[], optimizers.Optimizer]


def scaled() -> optimizers.Optimizer:
    return optimizers.LossScaleOptimizer(optimizers.Adam(RATE), initial_scale=8.0)


def several() -> optimizers.Optimizer:
    kinds = {".*/kernel": optimizers.Adam(RATE)}
    return optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(RATE), kinds))


# By the class's name in `keras.optimizers`; then what makes other variables or other updates.
OPTIMIZERS: dict[str, dict[str, Make]] = {
    "SGD": {
        "plain": lambda: optimizers.SGD(RATE),
        "momentum": lambda: optimizers.SGD(RATE, momentum=0.9),
        "nesterov": lambda: optimizers.SGD(RATE, momentum=0.9, nesterov=True),
    },
    "RMSprop": {
        "plain": lambda: optimizers.RMSprop(RATE),
        "centered": lambda: optimizers.RMSprop(RATE, momentum=0.9, centered=True),
    },
    "Adam": {
        "plain": lambda: optimizers.Adam(RATE),
        "amsgrad": lambda: optimizers.Adam(RATE, amsgrad=True, clipnorm=1.0),
        "ema": lambda: optimizers.Adam(RATE, use_ema=True, ema_overwrite_frequency=3),
        "accumulated": lambda: optimizers.Adam(RATE, gradient_accumulation_steps=2),
        "schedule": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(RATE, 100)),
    },
    "AdamW": {"plain": lambda: optimizers.AdamW(RATE)},
    "Adadelta": {"plain": lambda: optimizers.Adadelta(RATE)},
    "Adagrad": {"plain": lambda: optimizers.Adagrad(RATE)},
    "Adamax": {"plain": lambda: optimizers.Adamax(RATE)},
    "Adafactor": {"plain": lambda: optimizers.Adafactor(RATE)},
    "Nadam": {"plain": lambda: optimizers.Nadam(RATE)},
    "Ftrl": {"plain": lambda: optimizers.Ftrl(RATE)},
    "Lion": {"plain": lambda: optimizers.Lion(RATE)},
    "Lamb": {"plain": lambda: optimizers.Lamb(RATE)},
    "Muon": {"plain": lambda: optimizers.Muon(RATE)},
    "ScheduleFreeAdamW": {"plain": lambda: optimizers.ScheduleFreeAdamW(RATE)},
    "LossScaleOptimizer": {"plain": scaled},
    "MultiOptimizer": {"plain": several},
}
EVERY = {
    name if kind == "plain" else f"{name}-{kind}": make
    for name, kinds in OPTIMIZERS.items()
    for kind, make in kinds.items()
}
MODELS: dict[str, Callable[[], keras.Model]] = {"dense": perceptron, "embedding": embedding}


def test_every_optimizer_that_keras_ships_is_covered() -> None:
    classes = inspect.getmembers(keras.optimizers, inspect.isclass)
    shipped = {name for name, cls in classes if issubclass(cls, optimizers.Optimizer)}
    assert shipped - {"Optimizer"} == set(OPTIMIZERS)


def matrix() -> list[Any]:
    """The cross product; the default run takes a slice through each of its axes."""
    found = []
    for model in MODELS:
        for name in EVERY:
            for jit in (False, True):
                for steps in (1, 4):
                    quick = (
                        ((model, jit, steps) == ("dense", False, 1))
                        or (name == "Adam" and model == "dense")
                        or (name in ("SGD", "Adagrad", "Adam") and (jit, steps) == (False, 1))
                    )
                    label = f"{model}-{name}-{'jit' if jit else 'graph'}-{steps}"
                    marks = [] if quick else [slow]
                    found.append(pytest.param(model, name, jit, steps, marks=marks, id=label))
    return found


@pytest.mark.parametrize(("kind", "name", "jit", "steps"), matrix())
def test_the_file_holds_the_state_at_capture_however_training_goes_on(
    kind: str, name: str, jit: bool, steps: int, tmp_path: Path
) -> None:
    model = MODELS[kind]()
    model.compile(EVERY[name](), "mse", jit_compile=jit, steps_per_execution=steps)
    hook = CaptureOnce(Capturer(model, strategy="copy-on-write"))
    x, y = batches(model)
    model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0, callbacks=[hook])
    assert hook.snapshot is not None
    assert hook.snapshot.strategy == "copy-on-write"
    now = state_of(model)
    for position, variable in enumerate(model.weights):
        assert now[position] != hook.expected[position], f"{variable.path} was not trained"
    hook.snapshot.write(tmp_path)
    assert_holds(tmp_path, hook.expected)


@pytest.mark.parametrize("strategy", ["copy-on-write", "host-copy"])
def test_a_capture_in_the_middle_of_an_epoch_is_isolated_too(strategy: Any, tmp_path: Path) -> None:
    model = perceptron()
    model.compile("adam", "mse")
    hook = CaptureOnce(Capturer(model, strategy=strategy), batch=5)
    x, y = batches(model)
    model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0, callbacks=[hook])
    assert hook.snapshot is not None
    assert hook.snapshot.strategy == strategy
    hook.snapshot.write(tmp_path)
    assert_holds(tmp_path, hook.expected)


@pytest.mark.parametrize("strategy", ["copy-on-write", "host-copy"])
def test_every_snapshot_of_a_training_is_isolated_from_the_next(
    strategy: Any, tmp_path: Path
) -> None:
    """The sparse updates of an embedding make TensorFlow copy at the read from then on."""
    model = embedding()
    model.compile("adam", "mse")
    x, y = batches(model)
    capturer = Capturer(model, strategy=strategy)
    for round_ in range(4):
        model.train_on_batch(x[:BATCH], y[:BATCH])
        snapshot, expected = capturer.capture(), state_of(model)
        for _ in range(3):
            model.train_on_batch(x[BATCH : 2 * BATCH], y[BATCH : 2 * BATCH])
        snapshot.write(tmp_path / str(round_))
        assert_holds(tmp_path / str(round_), expected)


def assigned(model: keras.Model) -> None:
    for variable in model.variables:
        variable.assign(variable * 2)


def assigned_in_place(model: keras.Model) -> None:
    for variable in model.trainable_variables:
        variable.value.assign_sub(keras.ops.ones(variable.shape))


def scattered(model: keras.Model) -> None:
    import tensorflow as tf

    for variable in model.trainable_variables:
        rows = tf.IndexedSlices(tf.ones((1, *variable.shape[1:])), [0])
        variable.value.scatter_add(rows)


def reset_by_set_weights(model: keras.Model) -> None:
    model.set_weights([np.zeros_like(w) for w in model.get_weights()])


def loaded_over(model: keras.Model) -> None:
    model.load_weights("other.weights.h5")


@pytest.mark.parametrize(
    "change", [assigned, assigned_in_place, scattered, reset_by_set_weights, loaded_over]
)
def test_what_else_writes_to_variables_leaves_a_snapshot_alone(
    change: Callable[[keras.Model], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    specimen = dense()
    specimen.train()
    model = specimen.model
    model.save_weights("other.weights.h5")
    model.layers[-1].bias.assign([3.0, 2.0, 1.0])
    snapshot, expected = Capturer(model, strategy="copy-on-write").capture(), state_of(model)
    change(model)
    assert state_of(model) != expected
    snapshot.write(tmp_path)
    assert_holds(tmp_path, expected)


# Writing beside training.


def wide() -> keras.Model:
    """Tensors of several chunks each, so that a write can be stopped within one."""
    return keras.Sequential(
        [keras.Input((6,)), layers.Dense(640), layers.Dense(640, "tanh"), layers.Dense(3)]
    )


class StopAndGo:
    """Progress that holds a writer at each of its first chunks until training took a step."""

    def __init__(self, stops: int) -> None:
        self.stops = stops
        self.held, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, written: int) -> None:
        if self.stops:
            self.stops -= 1
            self.held.release()
            assert self.go_on.acquire(timeout=60)


@pytest.mark.parametrize("strategy", ["copy-on-write", "host-copy"])
def test_training_between_any_two_chunks_does_not_show_in_the_file(
    strategy: Any, tmp_path: Path
) -> None:
    model = wide()
    model.compile(optimizers.SGD(RATE, momentum=0.9), "mse")
    x, y = batches(model)
    model.train_on_batch(x, y)
    snapshot, expected = Capturer(model, strategy=strategy).capture(), state_of(model)
    progress = StopAndGo(stops=12)
    stops = progress.stops
    writer = threading.Thread(target=snapshot.write, args=(tmp_path, progress))
    writer.start()
    for _ in range(stops):
        assert progress.held.acquire(timeout=60)
        model.train_on_batch(x, y)
        progress.go_on.release()
    writer.join(60)
    assert not writer.is_alive()
    assert_holds(tmp_path, expected)


def test_training_at_full_speed_beside_a_writer_does_not_show_in_its_files(tmp_path: Path) -> None:
    model = wide()
    model.compile("adam", "mse")
    x, y = batches(model)
    model.train_on_batch(x, y)
    capturer = Capturer(model, strategy="copy-on-write")
    for round_ in range(5):
        snapshot, expected = capturer.capture(), state_of(model)
        writer = threading.Thread(target=snapshot.write, args=(tmp_path / str(round_),))
        writer.start()
        steps = 0
        while writer.is_alive() or steps == 0:
            model.train_on_batch(x, y)
            steps += 1
        assert_holds(tmp_path / str(round_), expected)


# Letting go, and noticing.


@pytest.fixture
def borrowed(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Weak references to every tensor that the engine shares with a variable."""
    found: list[weakref.ref[Any]] = []
    borrow = keras_internals.borrow

    def noted(variables: Any) -> list[Any]:
        tensors = borrow(variables)
        found.extend(weakref.ref(tensor) for tensor in tensors)
        return tensors

    monkeypatch.setattr(keras_internals, "borrow", noted)
    return found


def alive(references: list[weakref.ref[Any]]) -> int:
    """How many are still held, those in reference cycles included."""
    return sum(reference() is not None for reference in references)


def test_each_tensor_is_let_go_as_soon_as_it_is_written(
    borrowed: list[weakref.ref[Any]], tmp_path: Path
) -> None:
    model = dense(units=16).model
    snapshot = Capturer(model, strategy="copy-on-write").capture()
    held = alive(borrowed)
    assert held == len(model.weights) + len(model.optimizer.variables)
    counts: list[int] = []
    snapshot.write(tmp_path, lambda written: counts.append(alive(borrowed)))
    assert counts == sorted(counts, reverse=True)
    assert (counts[0], counts[-1]) == (held, 0)
    assert len(set(counts)) == held + 1, "one after the other"


def test_a_snapshot_that_nobody_writes_lets_go_when_told(
    borrowed: list[weakref.ref[Any]],
) -> None:
    snapshot = Capturer(dense().model, strategy="copy-on-write").capture()
    assert alive(borrowed) > 0
    snapshot.release()
    snapshot.release()
    assert alive(borrowed) == 0


def test_a_write_that_fails_lets_go_and_leaves_no_file(
    borrowed: list[weakref.ref[Any]], tmp_path: Path
) -> None:
    def full(written: int) -> None:
        raise OSError(28, "No space left on device")

    snapshot = Capturer(dense().model, strategy="copy-on-write").capture()
    with pytest.raises(OSError, match="No space left"):
        snapshot.write(tmp_path, full)
    assert alive(borrowed) == 0
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_progress_counts_every_byte_of_the_files(tmp_path: Path) -> None:
    for weights_only in (False, True):
        counted: list[int] = []
        snapshot = Capturer(wide(), weights_only=weights_only).capture()
        entries = snapshot.write(tmp_path / str(weights_only), counted.append)
        assert sum(counted) == sum(entry.size for entry in entries) > snapshot.state_bytes


@pytest.fixture
def trusting_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's process lose its trust in copy-on-write, and no other test's."""
    monkeypatch.setattr(captured, "_torn", [])


@pytest.mark.usefixtures("trusting_again")
@pytest.mark.parametrize("where", ["first", "last"])
def test_a_write_into_a_borrowed_buffer_is_noticed_and_ends_the_borrowing(
    where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specimen = dense(units=16)
    specimen.train()
    model = specimen.model
    capturer = Capturer(model)
    snapshot = capturer.capture()
    assert snapshot.strategy == "copy-on-write"
    scribble(model.layers[0].kernel, 0 if where == "first" else -1)
    with pytest.raises(SnapshotTorn, match="void"):
        snapshot.write(tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [], "no torn file is left"
    following, expected = capturer.capture(), state_of(model)
    assert (following.strategy, capturer.strategy) == ("host-copy", "host-copy")
    assert capturer.reason == "training wrote into memory that a snapshot shared"
    assert "copies the state" in capsys.readouterr().out
    scribble(model.layers[0].kernel, 0)
    following.write(tmp_path)
    assert_holds(tmp_path, expected)


def scribble(variable: keras.Variable, position: int) -> None:
    """Write into a variable's memory behind TensorFlow's back."""
    import ctypes

    memory = keras_internals.view(keras_internals.borrow([variable])[0])
    address = memory.__array_interface__["data"][0]
    (ctypes.c_ubyte * memory.nbytes).from_address(address)[position % memory.nbytes] ^= 0xFF


# Marks: whether a model still holds what it held.


@pytest.mark.parametrize("share", [True, False], ids=["shared", "digested"])
def test_a_mark_knows_whether_anything_has_changed(
    share: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured, "_torn", [] if share else ["a test says so"])
    specimen = dense()
    specimen.train()
    model = specimen.model
    mark = Capturer(model).mark()
    assert mark.matches(model)
    model.set_weights(model.get_weights())
    assert mark.matches(model), "the same values at another place"
    model.optimizer.iterations.assign_add(1)
    assert not mark.matches(model)
    model.optimizer.iterations.assign_sub(1)
    assert mark.matches(model)
    specimen.train()
    assert not mark.matches(model)
    mark.release()
    mark.release()
