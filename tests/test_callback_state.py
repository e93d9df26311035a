"""What other callbacks remember: stored by name, given back to the right one."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from builders import fit, mlp
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ckpt import training_state
from mlflow_ckpt.callback_state import KERAS_STATE, STATELESS, capture, restore

pytestmark = pytest.mark.pure

Callback = keras.callbacks.Callback
EarlyStopping = keras.callbacks.EarlyStopping

# Set up again at each begin, or at each epoch's; `min_delta` changes its sign there.
SET_AGAIN = {"monitor_op", "min_delta", "_current_epoch", "_last_batch_seen"}


def best_stop() -> EarlyStopping:
    return EarlyStopping(patience=9, min_delta=9.0, restore_best_weights=True)


@functools.cache
def watched() -> dict[str, list[dict[str, str]]]:
    """Each listed callback's attributes: at the begin of one fit, then at each epoch's end."""
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [
            best_stop(),
            keras.callbacks.ReduceLROnPlateau(patience=2, min_delta=9.0, cooldown=1),
            keras.callbacks.ModelCheckpoint(Path(folder) / "m.keras", save_best_only=True),
            keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
            keras.callbacks.History(),
        ]
        seen: dict[str, list[dict[str, str]]] = {type(c).__name__: [] for c in callbacks}

        def look(*_: object) -> None:
            for callback in callbacks:
                now = {key: repr(value) for key, value in vars(callback).items()}
                seen[type(callback).__name__].append(now)

        watch = keras.callbacks.LambdaCallback(on_train_begin=look, on_epoch_end=look)
        fit(mlp(optimizer=keras.optimizers.SGD(use_ema=True)), *callbacks, watch, epochs=3)
    return seen


class Counter(Callback):
    """A user's own callback, with both methods."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def checkpoint_state(self) -> dict[str, Any]:
        return {"seen": self.seen, "array": np.asarray(self.seen)}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        assert isinstance(state["array"], np.ndarray)
        self.seen = list(state["seen"])


class CountingStop(Counter, EarlyStopping):
    """A user's subclass of Keras's class, with both methods."""


class PlainStop(EarlyStopping):
    """A user's subclass of Keras's class, without them."""


class Silent(Callback):
    """A user's own callback that remembers and tells nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0


class OneWay(Silent):
    """A user's own callback with half of the protocol."""

    checkpoint_state = Counter.checkpoint_state


@pytest.mark.parametrize("name", sorted(KERAS_STATE))
def test_each_listed_attribute_exists_and_no_other_changes(name: str) -> None:
    begin, *later = watched()[name]
    assert set(KERAS_STATE[name]) <= set(begin), "Keras renamed what a resume restores"
    changed = {k for now in later for k, value in now.items() if begin.get(k) != value}
    assert changed, "this fit proves nothing"
    assert changed - SET_AGAIN <= set(KERAS_STATE[name])


def test_keras_checkpoints_counted_in_batches_do_not_come_late(tmp_path: Path) -> None:
    callback = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=5)
    fit(mlp(run_eagerly=True), callback, epochs=2)  # Keras counts 4 of 5 batches by now.
    states, _ = capture([callback])
    again = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=5)
    restore([again], states)
    assert again._should_save_on_batch(0), "the fifth batch saves, resumed or not"


def test_every_keras_callback_is_of_a_known_kind() -> None:
    kinds = {name for name, value in vars(keras.callbacks).items() if isinstance(value, type)}
    assert kinds - set(KERAS_STATE) - STATELESS <= {"Callback", "CSVLogger", "OrbaxCheckpoint"}


@pytest.mark.parametrize(
    ("callbacks", "keys", "unknown"),
    [
        pytest.param([Callback()], "", "", id="remembers-nothing"),
        pytest.param([Counter()], "Counter/0", "", id="own"),
        pytest.param([Silent()], "", "Silent", id="own-without-methods"),
        pytest.param([OneWay()], "", "OneWay", id="own-with-half-of-them"),
        pytest.param([EarlyStopping(), Counter()], "EarlyStopping/0 Counter/0", "", id="both"),
        pytest.param([EarlyStopping()] * 2, "EarlyStopping/0 EarlyStopping/1", "", id="twins"),
        pytest.param([PlainStop()], "PlainStop/0", "", id="subclass"),
        pytest.param([type("EarlyStopping", (Silent,), {})()], "", "EarlyStopping", id="namesake"),
    ],
)
def test_what_is_captured_and_what_is_named(callbacks: Any, keys: str, unknown: str) -> None:
    states, left = capture(callbacks)
    assert (sorted(states), left) == (sorted(keys.split()), unknown.split())
    training_state.check_plain(states)


def test_twins_and_subclasses_get_back_their_own() -> None:
    before = [EarlyStopping(), EarlyStopping(), PlainStop(), CountingStop()]
    for number, callback in enumerate(before):
        callback.wait = callback.best = number
    before[3].seen = [0.5]
    after = [CountingStop(), PlainStop(), EarlyStopping(), EarlyStopping()]
    assert restore(after, capture(before)[0]) == []
    assert [(c.wait, c.best) for c in after] == [(0, None), (2, 2), (0, 0), (1, 1)]
    assert after[0].seen == [0.5], "its own methods decide, and they alone"


def test_what_finds_no_place_is_named_and_what_is_new_is_left_alone() -> None:
    saved, _ = capture([EarlyStopping(), Counter()])
    new = EarlyStopping(), EarlyStopping()
    new[1].wait = 4
    assert restore(new, saved) == ["Counter/0"]
    assert new[1].wait == 4


def test_weights_come_back_as_arrays_and_a_captured_history_does_not_grow(tmp_path: Path) -> None:
    before, after = best_stop(), best_stop()
    history = fit(mlp(run_eagerly=True), before, epochs=1)
    saved, _ = capture([before, history])
    history.on_epoch_end(1, {"loss": 0.0})
    assert saved["History/0"]["epoch"] == [0]
    training_state.write(tmp_path / "s.h5", saved)
    restore([after], training_state.read(tmp_path / "s.h5"))
    assert len(after.best_weights) == 4
    assert all(map(np.array_equal, before.best_weights, after.best_weights))


MODEL = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


def train(callbacks: list[Any], losses: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Show the callbacks these losses; return the epochs that ran, with their learning rates."""
    ran, MODEL.stop_training = [], False
    for epoch, loss in losses:
        for callback in callbacks:
            callback.on_epoch_end(epoch, {"loss": loss})
        ran.append((epoch, float(MODEL.optimizer.learning_rate.numpy())))
        if MODEL.stop_training:
            break
    return ran


def begin() -> list[Any]:
    common = {"monitor": "loss", "mode": "min", "min_delta": 0.1}
    slower = keras.callbacks.ReduceLROnPlateau(patience=2, cooldown=1, **common)
    callbacks = [EarlyStopping(patience=4, **common), slower]
    for callback in callbacks:
        callback.set_model(MODEL)
        callback.on_train_begin()
    return callbacks


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=12), st.integers(0, 12))
def test_stopping_and_slowing_happen_when_they_would_have(losses: list[float], cut: int) -> None:
    epochs = list(enumerate(losses))
    MODEL.compile(keras.optimizers.SGD(1.0), "mse")
    whole = train(begin(), epochs)
    MODEL.compile(keras.optimizers.SGD(1.0), "mse")
    first, second = begin(), begin()
    ran = train(first, epochs[:cut])
    restore(second, capture(first)[0])
    if not MODEL.stop_training:
        ran += train(second, epochs[cut:])
    assert ran == whole
