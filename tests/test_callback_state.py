"""What other callbacks remember: stored by name, given back to the right one."""

from __future__ import annotations

import copy
import functools
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import fit, mlp, same
from doubles import StopHere
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_ckpt import Every, MlflowCheckpoint, keras_callbacks, training_state
from mlflow_ckpt.callback_state import CallbackStates
from mlflow_ckpt.errors import ConfigError, ManifestError
from mlflow_ckpt.keras_callbacks import KERAS_STATE, STATELESS, of_the_base

Callback = keras.callbacks.Callback
EarlyStopping = keras.callbacks.EarlyStopping
CSVLogger = keras.callbacks.CSVLogger
pure = pytest.mark.pure

# Set up again at each begin, or at each epoch's; `min_delta` changes its sign there.
SET_AGAIN = {
    "monitor_op", "min_delta", "writer", "csv_file",  # these by a restore, too
    "_current_epoch", "_previous_epoch_iterations", "_epoch_start_time",
}  # fmt: skip


def capture(callbacks: Iterable[Any]) -> tuple[dict[str, Any], list[str]]:
    """The states of callbacks that have just begun."""
    return CallbackStates(callbacks).capture()


def restore(callbacks: Iterable[Any], saved: dict[str, Any]) -> list[str]:
    return CallbackStates(callbacks).restore(saved)


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """`state` as it comes out of a file."""
    with tempfile.TemporaryDirectory() as folder:
        training_state.write(Path(folder) / "s.h5", state)
        return training_state.read_tree(Path(folder) / "s.h5")


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
            keras.callbacks.BackupAndRestore(Path(folder) / "b", save_freq=3),
            CSVLogger(Path(folder) / "log.csv"),
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


@pure
@pytest.mark.parametrize("name", sorted(set(KERAS_STATE) - {"OrbaxCheckpoint", "TensorBoard"}))
def test_each_listed_attribute_exists_and_no_other_changes(name: str) -> None:
    begin, *later = watched()[name]
    assert set(KERAS_STATE[name]) <= set(begin), "Keras renamed what a resume restores"
    changed = {k for now in later for k, value in now.items() if begin.get(k) != value}
    assert changed, "this fit proves nothing"
    assert changed - SET_AGAIN <= set(KERAS_STATE[name])


@pure
def test_keras_checkpoints_counted_in_batches_do_not_come_late(tmp_path: Path) -> None:
    callback = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=5)
    fit(mlp(run_eagerly=True), callback, epochs=2)  # Keras counts 4 of 5 batches by now.
    states, _ = capture([callback])
    assert callback._batches_seen_since_last_saving == 4
    again = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras", save_freq=5)
    restore([again], states)
    assert again._should_save_on_batch(0), "the fifth batch saves, resumed or not"


@pure
@pytest.mark.parametrize("epochs", [0, 2])
def test_what_keras_s_own_hold_finds_its_place(epochs: int, tmp_path: Path) -> None:
    def make() -> list[Any]:
        return [
            best_stop(),
            keras.callbacks.ReduceLROnPlateau(),
            keras.callbacks.ModelCheckpoint(tmp_path / "m.keras"),
            keras.callbacks.ModelCheckpoint(tmp_path / "n.keras", save_freq=3),
            keras.callbacks.SwapEMAWeights(),
            keras.callbacks.History(),
            keras.callbacks.BackupAndRestore(tmp_path / "b"),
        ]

    first, second = make(), make()
    if epochs:
        fit(mlp(optimizer=keras.optimizers.SGD(use_ema=True)), *first, epochs=epochs)
    states, left = capture(first)
    assert (left, restore(second, stored(states))) == ([], [])
    assert second[2]._last_batch_seen is None, "it counts no batches"


@pure
def test_every_keras_callback_is_of_a_known_kind() -> None:
    kinds = {name for name, value in vars(keras.callbacks).items() if isinstance(value, type)}
    assert kinds - set(KERAS_STATE) - STATELESS == set()
    assert set(KERAS_STATE) & STATELESS == set()


@pure
@pytest.mark.parametrize(
    ("callbacks", "keys"),
    [
        pytest.param([Callback()], "", id="remembers-nothing"),
        pytest.param([keras.callbacks.TerminateOnNaN()], "", id="stateless"),
        pytest.param([MlflowCheckpoint()], "", id="ours"),
        pytest.param([mlflow.keras.MlflowCallback()], "", id="MLflow's"),
        pytest.param([Counter()], "Counter/0", id="own"),
        pytest.param([Silent()], "Silent/0", id="own-without-methods"),
        pytest.param([OneWay()], "OneWay/0", id="own-with-half-of-them"),
        pytest.param([EarlyStopping(), Counter()], "Counter/0 EarlyStopping/0", id="both"),
        pytest.param([EarlyStopping()] * 2, "EarlyStopping/0 EarlyStopping/1", id="twins"),
        pytest.param([PlainStop()], "PlainStop/0", id="subclass"),
        pytest.param(
            [keras.callbacks.CallbackList([Silent()]), Silent()], "Silent/0 Silent/1", id="list"
        ),
    ],
)
def test_what_is_captured(callbacks: Any, keys: str) -> None:
    states, left = capture(callbacks)
    assert (sorted(states), left) == (keys.split(), [])
    training_state.check_plain(states)


@pure
def test_a_namesake_of_keras_s_class_is_a_user_s_own() -> None:
    namesake = type("EarlyStopping", (Silent,), {})()
    states = CallbackStates([namesake])
    namesake.seen = namesake.wait = 3
    saved, _ = states.capture()
    assert saved == {"EarlyStopping/0": {"attributes": {"seen": 3, "wait": 3}}}
    assert restore([namesake], {"EarlyStopping/0": {"wait": 7, "best": 1.0}}) == []
    assert namesake.wait == 3, "Keras's state is not for it"


@pure
def test_twins_and_subclasses_get_back_their_own() -> None:
    before = [EarlyStopping(), EarlyStopping(), PlainStop(), CountingStop()]
    for number, callback in enumerate(before):
        callback.wait = callback.best = number
    before[3].seen = [0.5]
    after = [CountingStop(), PlainStop(), EarlyStopping(), EarlyStopping()]
    assert restore(after, capture(before)[0]) == []
    assert [(c.wait, c.best) for c in after] == [(0, None), (2, 2), (0, 0), (1, 1)]
    assert after[0].seen == [0.5], "its own methods decide, and they alone"


@pure
def test_what_finds_no_place_is_named_and_what_is_new_is_left_alone() -> None:
    saved, _ = capture([EarlyStopping(), Counter()])
    new = EarlyStopping(), EarlyStopping()
    new[1].wait = 4
    assert restore(new, saved) == ["Counter/0"]
    assert new[1].wait == 4


@pure
def test_weights_come_back_as_arrays_and_a_captured_history_does_not_grow() -> None:
    before, after = best_stop(), best_stop()
    history = fit(mlp(run_eagerly=True), before, epochs=1)
    saved, _ = capture([before, history])
    history.on_epoch_end(1, {"loss": 0.0})
    assert saved["History/0"]["epoch"] == [0]
    restore([after], stored(saved))
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


@pure
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


# --- Keras's own, inside an epoch ---------------------------------------------


@pure
def test_a_batch_s_save_after_a_resume_compares_as_it_would_have(tmp_path: Path) -> None:
    def checkpoint() -> Any:
        return keras.callbacks.ModelCheckpoint(
            tmp_path / "m.keras", monitor="loss", save_best_only=True, save_freq=3
        )

    first, second, third = checkpoint(), checkpoint(), checkpoint()
    fit(mlp(run_eagerly=True), first, epochs=2)
    saved = stored(capture([first])[0])
    restore([second], saved)
    assert (second.best, second.monitor_op) == (first.best, first.monitor_op)
    second.set_model(mlp())
    assert second._should_save_model(0, 0, {"loss": -1.0}, ""), "it can be asked at once"
    third.mode = "max"
    restore([third], saved)
    assert third.monitor_op is None, "the script asks for another direction now"


@pure
@pytest.mark.parametrize(("delta", "sign"), [("min", -1), ("max", 1)])
def test_the_sign_of_min_delta_is_turned_once(delta: str, sign: int) -> None:
    def stop() -> EarlyStopping:
        return EarlyStopping(monitor="loss", mode=delta, min_delta=0.25)

    first, second = stop(), stop()
    fit(mlp(run_eagerly=True), first, epochs=1)
    saved = stored(capture([first])[0])
    for _ in range(2):
        restore([second], saved)
        assert second.min_delta == first.min_delta == sign * 0.25


@pure
def test_tensorboard_goes_on_counting(tmp_path: Path) -> None:
    # Without its package no event can be written, but it counts all the same.
    first, second = (keras.callbacks.TensorBoard(tmp_path, write_graph=False) for _ in range(2))
    assert set(KERAS_STATE["TensorBoard"]) <= set(vars(first))
    first._global_train_batch, first._global_test_batch = 17, 4
    assert restore([second], stored(capture([first])[0])) == []
    assert (second._global_train_batch, second._global_test_batch) == (17, 4)


@pure
def test_an_odd_log_does_not_end_the_training() -> None:
    history = keras.callbacks.History()
    history.set_model(MODEL)
    history.on_train_begin()
    history.on_epoch_end(0, {"loss": np.float32(1.5), "note": object()})
    states, left = capture([history])
    assert left == ["History.history"]
    assert states["History/0"]["epoch"] == [0]


@pure
def test_types_in_a_history_survive() -> None:
    history, again = keras.callbacks.History(), keras.callbacks.History()
    history.set_model(MODEL)
    history.on_train_begin()
    logs = {
        "a": np.float32(1.5),
        "b": 2.5,
        "c": np.arange(2),
        "token_accuracy": 1,
        "d": float("nan"),
    }
    history.on_epoch_end(0, logs)
    restore([again], stored(capture([history])[0]))
    assert [type(again.history[k][0]) for k in logs] == [type(v) for v in logs.values()]


# --- a user's own -------------------------------------------------------------


class Everything(Callback):
    """Remembers in all the ways that callbacks do."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(3)
        self.draws: list[float] = []
        self.total = np.zeros(3)
        self.by_metric: dict[str, list[float]] = {}
        self.lock = threading.Lock()
        self.began = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self.began += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.draws.append(self.rng.random())
        self.total += self.draws[-1]
        for name, value in logs.items():
            self.by_metric.setdefault(name, []).append(value)
        self.appeared = {"epoch": epoch, "seen": {epoch}}

    def facts(self) -> Any:
        return (
            self.draws, self.total.tolist(), self.by_metric, self.began, self.appeared,
            self.rng.bit_generator.state,
        )  # fmt: skip


@pure
def test_what_a_user_s_own_gathered_goes_on() -> None:
    def train(callback: Everything, losses: Iterable[int]) -> Everything:
        for epoch in losses:
            callback.on_epoch_end(epoch, {"loss": epoch / 4})
        return callback

    def begin() -> tuple[Everything, CallbackStates]:
        callback = Everything()
        callback.on_train_begin()
        return callback, CallbackStates([callback])

    reference = train(begin()[0], range(6))
    first, states = begin()
    saved, left = None, ["?"]
    train(first, range(4))
    saved, left = states.capture()
    train(first, range(4, 5))
    second, states = begin()
    assert (left, states.restore(stored(saved))) == ([], [])
    assert train(second, range(4, 6)).facts() == reference.facts()
    assert sorted(states.capture()[0]["Everything/0"]["attributes"]) == sorted(
        ["appeared", "by_metric", "draws", "rng", "total"]
    ), "neither the lock, nor what the beginning has set"


@pure
def test_what_is_not_stored_is_named_by_class_and_attribute_once() -> None:
    callbacks = [Silent(), Silent(), Everything()]
    states = CallbackStates(callbacks)
    for callback in callbacks:
        callback.handle, callback.api_key, callback.seen = object(), "hidden", 1
        callback.large = np.zeros(2**18 + 1)
    saved, left = states.capture()
    names = ["handle", "api_key", "large"]
    assert left == [f"{kind}.{name}" for kind in ("Silent", "Everything") for name in names]
    assert saved["Silent/1"] == {"attributes": {"seen": 1}}
    assert "hidden" not in repr(saved)
    assert states.capture()[1] == left


class Slotted(Callback):
    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @property
    def best(self) -> int:
        raise RuntimeError("not yet")


class Ours(MlflowCheckpoint):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0


class Theirs(mlflow.keras.MlflowCallback):
    def __init__(self) -> None:
        self.seen = 0


@pure
@pytest.mark.parametrize(("kind", "name"), [(Slotted, "count"), (Ours, "seen"), (Theirs, "seen")])
def test_odd_classes_are_restored_as_any(kind: Any, name: str) -> None:
    first, second = kind(), kind()
    states = CallbackStates([first])
    setattr(first, name, 5)
    saved, left = states.capture()
    assert (saved, left) == ({f"{kind.__name__}/0": {"attributes": {name: 5}}}, [])
    assert restore([second], stored(saved)) == []
    assert getattr(second, name) == 5


class PatientStop(EarlyStopping):
    """Has attributes of its own, and changes one of Keras's that Keras never does."""

    def __init__(self) -> None:
        super().__init__(monitor="loss", patience=5, restore_best_weights=True)
        self.seen: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.seen.append(logs["loss"])
        self.patience += 1


@pure
def test_a_subclass_of_keras_s_has_its_list_and_its_own() -> None:
    first, second = PatientStop(), PatientStop()
    first.on_train_begin()
    second.on_train_begin()
    states = CallbackStates([first])
    fit(mlp(run_eagerly=True), first, epochs=2)
    saved, left = states.capture()
    assert left == []
    assert sorted(saved["PatientStop/0"]["attributes"]) == ["patience", "seen"]
    assert restore([second], stored(saved)) == []
    assert (second.seen, second.patience, second.wait) == (first.seen, 7, first.wait)
    assert all(map(np.array_equal, second.best_weights, first.best_weights))
    assert second.min_delta == 0


@pure
def test_what_keras_assigns_is_its_business_and_what_the_user_assigns_the_user_s() -> None:
    ignored = of_the_base(PatientStop())
    assert {"baseline", "wait", "min_delta", "monitor_op", "params", "_model"} <= ignored
    assert not {"patience", "seen"} & ignored
    assert not {"seen", "best", "wait"} & of_the_base(Silent()) - {"min_delta"}


class Rotating(keras.callbacks.ModelCheckpoint):
    """Sets an attribute that Keras takes for a path, and one that it counts with."""

    def __init__(self, filepath: Path) -> None:
        super().__init__(filepath)
        self.filepath = str(filepath)
        self.verbose = 0
        self.places: dict[str, str] = {}

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_begin(epoch, logs)
        self.filepath = self.filepath.replace(".keras", "-next.keras")
        self.verbose = self.save_freq = 2
        self.places["newest"] = self.filepath


@pure
def test_text_in_an_attribute_of_keras_s_is_a_path_and_no_state(tmp_path: Path) -> None:
    first, second = (Rotating(tmp_path / "m.keras") for _ in range(2))
    states = CallbackStates([first])
    first.on_epoch_begin(0)
    saved, left = states.capture()
    assert left == ["Rotating.filepath", "Rotating.save_freq"], "said, for it is not stored"
    own = {"verbose": 2, "places": {"$type": "in-place", "value": {"newest": first.filepath}}}
    assert saved["Rotating/0"]["attributes"] == own
    for value in ("/elsewhere", 1, ["/elsewhere"], {"$type": "absent"}):
        saved["Rotating/0"]["attributes"] = {**own, "filepath": value}
        assert restore([second], stored(saved)) == ["Rotating/0.filepath"]
        assert second.filepath == str(tmp_path / "m.keras")
    saved["Rotating/0"]["attributes"] = {"verbose": ["/elsewhere"], "csv_file": {"a": b"x"[0]}}
    assert restore([second], stored(saved)) == ["Rotating/0.verbose"]
    assert second.places == {"newest": first.filepath}, "its own attributes may hold any text"


@pure
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(PatientStop, "restore_best_weights", id="keras"),
        pytest.param(Ours, "_options", id="ours"),
        pytest.param(Theirs, "log_every_epoch", id="mlflow's"),
    ],
)
def test_a_state_sets_nothing_of_the_class_below(kind: Any, name: str) -> None:
    callback = kind()
    before = vars(callback).get(name)
    saved = {f"{kind.__name__}/0": {"attributes": {name: "/elsewhere"}}}
    assert restore([callback], saved) == [f"{kind.__name__}/0.{name}"]
    assert vars(callback).get(name) is before


@pure
def test_own_methods_take_what_they_return_as_it_was() -> None:
    class Live(Counter):
        def checkpoint_state(self) -> dict[str, Any]:
            return {"seen": self.seen, "array": self.array, "set": {1, 2}, "token": "kept", 3: (4,)}

        def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
            self.found = state

    first, second = Live(), Live()
    first.seen, first.array = [0.5], np.zeros(2)
    saved, _ = capture([first])
    expected = copy.deepcopy(first.checkpoint_state())
    first.seen.append(1.5)
    first.array += 1
    restore([second], stored(saved))
    assert repr(second.found) == repr(expected), "training may go on while it is written"


@pure
def test_own_methods_that_return_what_cannot_be_stored_are_told_so() -> None:
    class Wrong(Counter):
        def checkpoint_state(self) -> dict[str, Any]:
            return {"file": object()}

    with pytest.raises(ConfigError, match=r"Wrong\.checkpoint_state\(\) .*type object"):
        capture([Wrong()])


# --- states of other versions -------------------------------------------------


@pure
def test_a_state_of_the_first_format_is_restored() -> None:
    old = {
        "EarlyStopping/0": {
            "wait": 2, "stopped_epoch": 0, "best": 0.5, "best_epoch": 1,
            "best_weights": [np.ones(2), np.zeros(1)],
        },
        "Counter/0": {"own": {"seen": [1.5], "array": np.zeros(1), "pair": (1, 2)}},
        "History/0": {"history": {"loss": [0.5]}, "epoch": [0]},
    }  # fmt: skip
    stop, counter, history = EarlyStopping(), Counter(), keras.callbacks.History()
    assert restore([history, counter, stop], stored(old)) == []
    assert (stop.wait, stop.best, len(stop.best_weights)) == (2, 0.5, 2)
    assert counter.seen == [1.5]
    assert (history.history, history.epoch) == ({"loss": [0.5]}, [0])


@pure
def test_a_callback_that_changed_its_ways_is_named_or_restored() -> None:
    class Counter(Callback):  # without the methods that it had
        pass

    class Silent(Callback):  # with them now
        checkpoint_state = restore_checkpoint_state = lambda *_: None

    saved = {
        "Counter/0": {"own": {"seen": [1]}},
        "Silent/0": {"attributes": {"seen": 1}},
        "Gone/0": {"attributes": {}},
    }
    assert restore([Counter(), Silent()], saved) == ["Counter/0", "Silent/0.seen"]


@pure
def test_a_callback_without_a_saved_state_is_left_as_it_is() -> None:
    new = Silent()
    states = CallbackStates([new])
    new.seen = 5  # by its on_epoch_begin: a resume inside an epoch restores once more
    assert states.restore({}) == []
    assert new.seen == 5
    assert states.restore({"Silent/0": {"attributes": {}}}) == []
    assert new.seen == 0, "it was so when the state was captured"


# --- CSVLogger ----------------------------------------------------------------


class Interrupted(Exception):
    """The process is gone."""


def log_epochs(
    logger: CSVLogger,
    *,
    begin: int = 0,
    saved: dict[str, Any] | None = None,
    twice: bool = False,
    keep_after: int | None = None,
    every: int = 1,
) -> None:
    """Show the logger epochs `begin` to 5 of a fit that validates each, or `every` so many.

    With `saved` that state is given back as a fit does: after the begin, and once more
    inside the first epoch. With `keep_after` the process ends two epochs after that many,
    and the state at that moment is in `KEPT`.
    """
    states = None
    logger.on_train_begin()
    states = CallbackStates([logger])
    if saved is not None:
        assert states.restore(saved) == []
    if keep_after == 0:
        KEPT.append(states.capture())
    for epoch in range(begin, 6):
        logger.on_epoch_begin(epoch)
        if saved is not None and twice and epoch == begin:
            assert states.restore(saved) == []
        logs = {"loss": 1 / (epoch + 1), "text": 'a "b", \n;é', "vector": np.arange(epoch)}
        if (epoch + 1) % every == 0:
            logs["val_loss"] = np.float32(epoch / 7)
        if epoch >= 3:
            logs["later"] = 1.0
        logger.on_epoch_end(epoch, logs)
        if keep_after == epoch + 1:
            KEPT.append(states.capture())
        if keep_after is not None and epoch == keep_after + 1:
            logger.csv_file.close()  # as the kernel does
            raise Interrupted
    logger.on_train_end()


KEPT: list[tuple[dict[str, Any], list[str]]] = []


@pure
@pytest.mark.parametrize("twice", [False, True], ids=["once", "once-more-inside-the-epoch"])
@pytest.mark.parametrize("after", [0, 1, 3])
@pytest.mark.parametrize(
    ("options", "before", "every"),
    [
        pytest.param({}, None, 1, id="new-file"),
        pytest.param({}, "old rows\n", 1, id="old-file-emptied"),
        pytest.param({"append": True}, None, 1, id="append-to-none"),
        pytest.param({"append": True}, "", 1, id="append-to-empty"),
        pytest.param({"append": True}, "epoch,x\r\n0,1\r\n", 1, id="append-to-rows"),
        pytest.param({"separator": ";"}, None, 1, id="separator"),
        pytest.param({}, None, 2, id="validated-every-other-epoch"),
    ],
)
def test_a_csv_file_ends_as_that_of_an_uninterrupted_run(
    options: dict[str, Any],
    before: str | None,
    every: int,
    after: int,
    twice: bool,
    tmp_path: Path,
) -> None:
    whole, broken = tmp_path / "whole.csv", tmp_path / "broken.csv"
    for path in (whole, broken) if before is not None else ():
        path.write_text(before, newline="")
    log_epochs(CSVLogger(whole, **options), every=every)
    with pytest.raises(Interrupted):
        log_epochs(CSVLogger(broken, **options), keep_after=after, every=every)
    states, left = KEPT.pop()
    assert left == []
    assert len(broken.read_bytes()) > len(states["CSVLogger/0"]["text"]), "rows have to go"
    saved = stored(states)
    log_epochs(CSVLogger(broken, **options), begin=after, saved=saved, twice=twice, every=every)
    assert broken.read_bytes() == whole.read_bytes()


@pure
def test_a_logger_that_is_used_again_after_a_resume_writes_as_it_would_have(tmp_path: Path) -> None:
    whole, broken = (CSVLogger(tmp_path / name) for name in ("whole.csv", "broken.csv"))
    with pytest.raises(Interrupted):
        log_epochs(broken, keep_after=1)
    broken = CSVLogger(tmp_path / "broken.csv")
    log_epochs(broken, begin=1, saved=stored(KEPT.pop()[0]))
    log_epochs(whole)
    for logger in (whole, broken):
        log_epochs(logger, begin=4)  # Another fit, with the same object.
    assert (tmp_path / "broken.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def begun(path: Path, **options: Any) -> CSVLogger:
    logger = CSVLogger(path, **options)
    logger.on_train_begin()
    return logger


@pure
def test_a_csv_file_of_others_is_left_alone(tmp_path: Path) -> None:
    first = begun(tmp_path / "ours.csv", append=True)
    first.on_epoch_end(0, {"loss": 1.0})
    saved = stored(capture([first])[0])
    (tmp_path / "theirs.csv").write_text("precious\n")
    second = begun(tmp_path / "theirs.csv", append=True)
    assert restore([second], saved) == ["CSVLogger/0.csv_file"]
    second.on_epoch_end(1, {"loss": 1.0})
    assert (tmp_path / "theirs.csv").read_bytes() == b"precious\n1,1.0,NA\r\n"
    moved = begun(tmp_path / "moved.csv", append=True)
    assert restore([moved], saved) == []
    assert (tmp_path / "moved.csv").read_bytes() == (tmp_path / "ours.csv").read_bytes()
    for logger in (first, second, moved):
        logger.on_train_end()


@pure
@pytest.mark.parametrize("append", [False, True])
def test_a_csv_file_that_is_too_large_or_gone_is_named(
    append: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.csv"
    first = begun(path, append=append)
    first.on_epoch_end(0, {"loss": 1.0, "later": 2.0})
    monkeypatch.setattr(keras_callbacks, "TEXT_LIMIT", path.stat().st_size - 1)
    states, left = capture([first])
    assert left == ["CSVLogger.csv_file"]
    first.on_train_end()
    second = begun(path, append=append)
    assert restore([second], stored(states)) == []
    second.on_epoch_end(1, {"loss": 1.0})
    second.on_train_end()
    header, *rows = path.read_text().splitlines()
    assert header.startswith("epoch,later,loss")
    assert rows[-1] == "1,NA,1.0,NA,NA"
    path.unlink()
    assert capture([second])[1] == ["CSVLogger.csv_file"]


@pure
def test_a_state_is_written_to_the_file_that_the_script_names(tmp_path: Path) -> None:
    class Wanders(CSVLogger):
        """A user's, which looks for another file."""

    class Named(CSVLogger):
        """A user's, which assigns the name itself."""

        def __init__(self, filename: Path) -> None:
            super().__init__(filename)
            self.filename = str(filename)

    precious = tmp_path / "precious"
    precious.write_text("untouched")
    text = np.frombuffer(b"echo owned\n", dtype=np.uint8)
    crafted = {"text": text, "append_header": False, "begun": False, "keys": None,
               "attributes": {"filename": str(precious)}}  # fmt: skip
    for kind in (Wanders, Named):
        logger = kind(tmp_path / "log.csv")
        logger.on_train_begin()
        states = CallbackStates([logger])
        key = f"{kind.__name__}/0"
        for _ in range(2):
            assert states.restore({key: crafted}) == [f"{key}.filename"]
        assert (tmp_path / "log.csv").read_bytes() == b"echo owned\n"
        logger.filename = str(precious)  # whoever did it
        assert states.restore({key: {**crafted, "attributes": {}}}) == [f"{key}.csv_file"]
        logger.on_train_end()
        assert precious.read_text() == "untouched"


@pure
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"text": "x"}, id="text-that-is-no-array"),
        pytest.param({"text": np.zeros(3)}, id="text-of-numbers"),
        pytest.param({"append_header": 3}, id="no-truth"),
        pytest.param({"begun": None}, id="nothing"),
        pytest.param({"begun": True, "keys": None}, id="rows-without-keys"),
    ],
)
def test_a_csv_file_is_not_touched_by_what_is_none(wrong: dict[str, Any], tmp_path: Path) -> None:
    logger = begun(tmp_path / "log.csv", append=True)
    logger.on_epoch_end(0, {"loss": 1.0})
    state = capture([logger])[0]["CSVLogger/0"]
    before = (tmp_path / "log.csv").read_bytes()
    logger.writer = logger.keys = None
    with pytest.raises(ManifestError, match="text of a CSVLogger's file.* Received: .*leave the"):
        restore([logger], {"CSVLogger/0": {**state, **wrong}})
    logger.on_train_end()
    assert (tmp_path / "log.csv").read_bytes() == before


# --- through a run ------------------------------------------------------------


class StopAt(Callback):
    """Break a fit off at a batch of an epoch, both counted from 0."""

    def __init__(self, epoch: int, batch: int) -> None:
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == self.at:
            raise StopHere


def test_a_run_broken_off_inside_an_epoch_goes_on_with_all_of_them(
    another_process: Callable[[], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(run_id: str | None, name: str, *extra: Any) -> tuple[str, keras.Model, list[Any]]:
        keras.utils.set_random_seed(11)
        model = mlp()
        callbacks = [
            MlflowCheckpoint(save_freq=Every(steps=2)),
            CSVLogger(tmp_path / f"{name}.csv"),
            Everything(),
            PatientStop(),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, min_delta=9.0),
            keras.callbacks.ModelCheckpoint(
                tmp_path / f"{name}.keras", monitor="loss", save_best_only=True, save_freq=5
            ),
        ]
        with mlflow.start_run(run_id=run_id) as run:
            try:
                fit(model, *callbacks, *extra, epochs=5, batch_size=16)
            finally:
                callbacks[1].csv_file.close()
        return run.info.run_id, model, callbacks

    def facts(callbacks: list[Any]) -> list[Any]:
        _, _, everything, stop, reduce, checkpoint = callbacks
        return [
            *everything.facts(), stop.seen, stop.patience, stop.wait, stop.best, stop.best_epoch,
            reduce.wait, reduce.best, checkpoint.best, checkpoint._batches_seen_since_last_saving,
        ]  # fmt: skip

    _, reference, expected = train(None, "whole")
    another_process()
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        train(run.info.run_id, "broken", StopAt(3, 2))
    another_process()
    capsys.readouterr()
    _, model, found = train(run.info.run_id, "broken")
    assert "step 14" in capsys.readouterr().out
    assert facts(found) == facts(expected)
    assert (tmp_path / "broken.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert same(model, reference)
