"""Strategies of a snapshot: which one is taken, when it learns anew, and what it lets go of."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_ckpt import captured, keras_internals
from mlflow_ckpt import snapshot as module
from mlflow_ckpt.errors import ConfigError, ModelNotBuilt, SaveFailed, SnapshotTorn
from mlflow_ckpt.snapshot import Capturer

pytestmark = pytest.mark.pure

X, Y = np.linspace(0, 1, 48, dtype="float32").reshape(12, 4), np.ones((12, 2), "float32")


def trained() -> keras.Model:
    keras.utils.set_random_seed(1)
    layers = [keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def reloaded(directory: Path) -> keras.Model:
    return keras.saving.load_model(directory / "data" / "model.keras")


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(map(np.array_equal, left, right))


@pytest.fixture
def whole_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a test breaks about copy-on-write be broken for that test only."""
    monkeypatch.setattr(captured, "_torn", [])


class Fickle(keras.layers.Layer):
    """A layer that stores one variable more at every second save."""

    saves = 0

    def save_own_variables(self, store: Any) -> None:
        store["0"] = np.ones(3)
        self.saves += 1
        if self.saves % 2:
            store["1"] = np.zeros(2)

    def load_own_variables(self, store: Any) -> None:
        assert np.array_equal(store["0"], np.ones(3))

    def call(self, x: Any) -> Any:
        return x


class Unwritable(Fickle):
    """A layer that stores what Keras cannot write."""

    def save_own_variables(self, store: Any) -> None:
        store["names"] = np.array(["a", None], dtype=object)


def test_copy_on_write_is_what_this_machine_does() -> None:
    assert keras_internals.copies_on_write() is None
    capturer = Capturer(trained())
    snapshot = capturer.capture()
    assert (capturer.strategy, capturer.reason) == ("copy-on-write", None)
    assert snapshot.strategy == "copy-on-write"
    assert snapshot.valid_while_training
    assert snapshot.state_bytes == sum(a.nbytes for a in state(capturer._model))


def test_taking_a_snapshot_copies_nothing() -> None:
    model = trained()
    snapshot = Capturer(model).capture()
    for mine in keras_internals.borrow(model.weights):
        assert any(keras_internals.share_memory(mine, theirs) for theirs in snapshot._values)


@pytest.mark.parametrize("strategy", ["copy-on-write", "host-copy"])
def test_a_snapshot_stays_what_it_was(strategy: Any, tmp_path: Path) -> None:
    model = trained()
    snapshot = Capturer(model, strategy=strategy).capture()
    before = state(model)
    model.fit(X, Y, epochs=3, verbose=0)
    (entry,) = snapshot.write(tmp_path)
    assert entry.verify(tmp_path).exists()
    assert same(state(reloaded(tmp_path)), before)
    assert not same(state(model), before)


def test_the_structure_is_learnt_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    learnt: list[int] = []
    record = keras_internals.record_state
    monkeypatch.setattr(
        keras_internals, "record_state", lambda *a: [learnt.append(1), record(*a)][1]
    )
    model = trained()
    capturer = Capturer(model)
    for n in range(3):
        capturer.capture().write(tmp_path / str(n))
        model.fit(X, Y, verbose=0)
        model.optimizer.learning_rate = 0.1 / (n + 1)
    assert learnt == [1]
    rates = [float(reloaded(tmp_path / str(n)).optimizer.learning_rate.numpy()) for n in range(3)]
    assert rates == pytest.approx([0.001, 0.1, 0.05])


def test_a_config_says_the_learning_rate_of_its_own_instant(tmp_path: Path) -> None:
    model = trained()
    capturer = Capturer(model)
    capturer.capture().release()
    early = capturer.capture()
    model.optimizer.learning_rate = 0.5
    late = capturer.capture()
    early.write(tmp_path / "early")
    late.write(tmp_path / "late")
    for name, rate in (("early", 0.001), ("late", 0.5)):
        model = reloaded(tmp_path / name)
        assert float(model.optimizer.get_config()["learning_rate"]) == pytest.approx(rate)


def test_writing_lets_go_of_every_buffer(tmp_path: Path) -> None:
    snapshot = Capturer(trained()).capture()
    tensors = [weakref.ref(tensor) for tensor in snapshot._values]
    snapshot.write(tmp_path)
    gc.collect()
    assert [ref() for ref in tensors] == [None] * len(tensors)


def test_a_failed_write_lets_go_too(tmp_path: Path) -> None:
    snapshot = Capturer(trained()).capture()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.keras").touch()
    with pytest.raises(FileExistsError):
        snapshot.write(tmp_path)
    assert snapshot._values == []
    snapshot.release()


def test_copies_use_the_same_memory_again(tmp_path: Path) -> None:
    capturer = Capturer(trained(), strategy="host-copy")
    first = capturer.capture()
    where = {array.__array_interface__["data"][0] for array in first._buffers}
    first.write(tmp_path / "1")
    second = capturer.capture()
    assert {array.__array_interface__["data"][0] for array in second._buffers} == where
    third = capturer.capture()
    assert not {a.__array_interface__["data"][0] for a in third._buffers} & where
    second.release()
    third.write(tmp_path / "3")
    assert same(state(reloaded(tmp_path / "3")), state(capturer._model))


def test_what_has_no_place_is_left_to_keras_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = keras.Sequential([keras.Input((4,)), Fickle(), keras.layers.Dense(2)])
    capturer = Capturer(model, weights_only=True)
    for n in range(2):
        snapshot = capturer.capture()
        assert (snapshot.strategy, snapshot.valid_while_training) == ("keras", False)
        assert snapshot.write(tmp_path / str(n)) == []
        model.load_weights(tmp_path / str(n) / "data" / "model.weights.h5")
    assert capturer.reason is not None
    assert "Fickle stores other variables" in capturer.reason
    assert capsys.readouterr().out.count("Keras itself writes this model") == 1


def test_what_keras_cannot_write_is_a_failed_save(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), Unwritable(), keras.layers.Dense(2)])
    for weights_only in (True, False):
        snapshot = Capturer(model, weights_only=weights_only).capture()
        with pytest.raises(SaveFailed, match="Keras could not write the model"):
            snapshot.write(tmp_path)


def test_a_process_without_copy_on_write_copies(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(keras_internals, "copies_on_write", lambda: "an update wrote through")
    model = trained()
    capturer = Capturer(model)
    snapshot = capturer.capture()
    assert (snapshot.strategy, capturer.reason) == ("host-copy", "an update wrote through")
    snapshot.write(tmp_path)
    assert same(state(reloaded(tmp_path)), state(model))
    with pytest.raises(ConfigError, match="Copy-on-write does not work here: an update wrote"):
        Capturer(model, strategy="copy-on-write").capture()


def test_a_write_into_a_shared_buffer_voids_the_snapshot_and_ends_sharing(
    whole_again: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained()
    capturer = Capturer(model)
    snapshot = capturer.capture()
    overwrite(snapshot._values[0])
    with pytest.raises(SnapshotTorn, match="This checkpoint is void") as caught:
        snapshot.write(tmp_path)
    assert isinstance(caught.value.reason, RuntimeError)
    assert list(tmp_path.rglob("*.keras")) == []
    after = capturer.capture()
    assert (after.strategy, capturer.strategy) == ("host-copy", "host-copy")
    assert "copies the state in memory from now on" in capsys.readouterr().out
    after.write(tmp_path)
    assert same(state(reloaded(tmp_path)), state(model))


def overwrite(tensor: Any) -> None:
    """Write into a tensor's memory behind everybody's back."""
    import ctypes

    ctypes.memset(keras_internals.view(tensor).__array_interface__["data"][0], 0x5A, 16)


def test_a_model_without_variables_is_refused() -> None:
    with pytest.raises(ModelNotBuilt, match="never built"):
        Capturer(keras.Sequential([keras.layers.Dense(2)])).capture()


@pytest.mark.parametrize("borrows", [True, False])
def test_a_mark_tells_whether_the_model_changed(
    borrows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not borrows:
        monkeypatch.setattr(keras_internals, "copies_on_write", lambda: "not here")
    model = trained()
    mark = Capturer(model).mark()
    assert mark.matches(model)
    old = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign(old + 1)
    assert not mark.matches(model)
    model.layers[0].kernel.assign(old)
    assert mark.matches(model)
    model.optimizer.iterations.assign_add(1)
    assert not mark.matches(model)
    mark.release()
    assert not mark.matches(model)


def test_a_mark_compares_bits_and_not_numbers() -> None:
    model = trained()
    model.layers[0].bias.assign(np.full(8, np.nan, "float32"))
    mark = Capturer(model).mark()
    model.layers[0].bias.assign(np.full(8, np.nan, "float32"))
    assert mark.matches(model)
    model.layers[0].bias.assign(np.zeros(8, "float32"))
    zero = Capturer(model).mark()
    model.layers[0].bias.assign(-np.zeros(8, "float32"))
    assert not zero.matches(model)


def test_only_one_in_a_hundred_is_checked_after_the_first_ones() -> None:
    capturer = Capturer(trained())
    checked = []
    for _ in range(201):
        snapshot = capturer.capture()
        checked.append(bool(snapshot._samples))
        snapshot.release()
    assert [n for n, is_checked in enumerate(checked, 1) if is_checked] == [1, 2, 3, 100, 200]


def test_the_one_off_capture_is_a_snapshot_too(tmp_path: Path) -> None:
    model = trained()
    module.capture(model, weights_only=True).write(tmp_path)
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "config.json",
        "model.weights.h5",
    ]
