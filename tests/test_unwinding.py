"""A fit that raises is noticed while it raises; one that ends in peace leaves nothing behind."""

from __future__ import annotations

import gc
import inspect
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import pytest
import tensorflow as tf
from builders import FEATURES, data, mlp

from mlflow_ckpt import keras_internals as ki
from mlflow_ckpt.signals import Signals

pytestmark = [
    pytest.mark.pure,
    # What Keras says of every epoch whose length it does not know.
    pytest.mark.filterwarnings("ignore:Your input ran out of data"),
]

Arguments = dict[str, Any]
HOOKS = (
    "on_train_begin", "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end",
    "on_test_begin", "on_test_batch_begin", "on_test_batch_end", "on_test_end",
    "on_epoch_end", "on_train_end",
)  # fmt: skip
X, Y = data()
BATCH = 16  # four batches
EAGER: Arguments = {"run_eagerly": True}
SEVERAL: Arguments = {"steps_per_execution": 2}


@pytest.fixture(scope="module", autouse=True)
def what_stays() -> Iterator[None]:
    """Keep modules and other tests out of the collections below, which are quick then."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_iterator_is_left() -> Iterator[None]:
    """TensorFlow stalls now and then when it drops an iterator, the longer the older it is.

    An error keeps the frames of its fit, and they the iterator, until a garbage collection.
    """
    yield
    gc.collect()


def quick(**compile_arguments: Any) -> keras.Model:
    """A small model whose first step needs no tracing."""
    return mlp(optimizer="sgd", run_eagerly=True, **compile_arguments)


class Broken(Exception):
    """What breaks a fit here."""


class Watcher(keras.callbacks.Callback):
    """Watches its fit from `set_model` on, as our callback may."""

    def __init__(self, told: Callable[[BaseException], object] | None = None) -> None:
        super().__init__()
        self.raised: list[BaseException] = []
        self._told = told
        self.undo: Callable[[], None] = lambda: None
        self.callbacks: Any = None

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callbacks = ki.calling_callback_list()
        self.undo = ki.watch_unwinding(self.callbacks, self.listen)

    def listen(self, error: BaseException) -> None:
        self.raised.append(error)
        if self._told is not None:
            self._told(error)


class FitWatcher(Watcher):
    """Watches from `on_train_begin` on, as a list of the user's own needs."""

    def set_model(self, model: keras.Model) -> None:
        keras.callbacks.Callback.set_model(self, model)

    def on_train_begin(self, logs: Any = None) -> None:
        Watcher.set_model(self, self.model)


def raising(hook: str, error: BaseException, call: int = 1) -> keras.callbacks.Callback:
    """A callback whose `hook` raises at its `call`-th call."""
    calls = iter(range(1, 1000))

    def method(*_: Any, **__: Any) -> None:
        if next(calls) == call:
            raise error

    return type("Raising", (keras.callbacks.Callback,), {hook: method})()  # type: ignore[no-any-return]


def run(*callbacks: Any, model: keras.Model | None = None, **arguments: Any) -> keras.Model:
    model = model or quick()
    given = {"x": X, "y": Y, "batch_size": BATCH, "epochs": 2, "verbose": 0, **arguments}
    if "x" in arguments:
        given = {k: v for k, v in given.items() if k not in ("y", "batch_size") or k in arguments}
    model.fit(callbacks=list(callbacks), **given)
    return model


def shadows(callbacks: Any) -> list[str]:
    """Attributes of a list that shadow its class's, or are ours."""
    return [n for n in vars(callbacks) if n.startswith(("on_", "mlflow_ckpt"))]


# --- told of everything that ends a fit -------------------------------------------


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("first", [True, False])
def test_an_exception_in_a_hook_is_told_once(hook: str, first: bool) -> None:
    watcher, error = Watcher(), Broken(hook)
    callbacks = [watcher, raising(hook, error)]
    with pytest.raises(Broken) as caught:
        run(*callbacks[:: 1 if first else -1], validation_data=(X, Y))
    assert caught.value is error
    assert watcher.raised == [error]
    assert shadows(watcher.callbacks) == []


@pytest.mark.parametrize("hook", ["on_epoch_begin", "on_train_batch_end", "on_test_batch_end"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_so_are_those_that_are_no_errors(hook: str, kind: type[BaseException]) -> None:
    watcher, error = Watcher(), kind()
    with pytest.raises(kind):
        run(watcher, raising(hook, error), validation_data=(X, Y))
    assert watcher.raised == [error]


def test_one_in_a_later_epoch_is_told_also_in_its_validation() -> None:
    for hook, call in (("on_train_batch_begin", 7), ("on_test_batch_begin", 4), ("on_test_end", 2)):
        watcher, error = Watcher(), Broken(hook)
        with pytest.raises(Broken):
            run(
                watcher,
                raising(hook, error, call),
                validation_data=(X, Y),
                validation_batch_size=32,
            )
        assert watcher.raised == [error]


class Faulty(keras.utils.PyDataset):
    """Four batches, the third of which cannot be read, from the given epoch on."""

    def __init__(self, epoch: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._left = epoch

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        if index == 2 and self._left <= 0:
            raise Broken("unreadable")
        return X[:BATCH], Y[:BATCH]

    def on_epoch_end(self) -> None:
        self._left -= 1


def generator() -> Iterator[Any]:
    for batch in range(6):
        if batch == 5:
            raise Broken("unreadable")
        yield X[:BATCH], Y[:BATCH]


def failing_model(**compile_arguments: Any) -> keras.Model:
    """Its step raises once it runs, not while it is traced."""

    def fail(x: Any) -> Any:
        raise Broken("in the step")

    inputs = keras.Input((FEATURES,))
    layer = keras.layers.Lambda(
        lambda x: tf.ensure_shape(tf.py_function(fail, [x], tf.float32), [None, FEATURES]),
        output_shape=(FEATURES,),
    )
    model = keras.Model(inputs, keras.layers.Dense(3)(layer(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy", **compile_arguments)
    return model


def of_generator() -> Arguments:
    return {"x": generator(), "shuffle": False}


@pytest.mark.parametrize(
    ("model", "compiled", "arguments"),
    [
        pytest.param(mlp, EAGER, lambda: {"x": Faulty()}, id="PyDataset"),
        pytest.param(
            mlp, EAGER, lambda: {"x": Faulty(2), "steps_per_epoch": 4}, id="PyDataset-later"
        ),
        pytest.param(mlp, EAGER, of_generator, id="generator"),
        pytest.param(
            mlp, EAGER, lambda: {**of_generator(), "steps_per_epoch": 3}, id="generator-steps"
        ),
        pytest.param(mlp, SEVERAL, of_generator, id="generator-several"),
        pytest.param(mlp, EAGER, lambda: {"validation_data": Faulty()}, id="validation"),
        pytest.param(mlp, EAGER, lambda: {"validation_data": Faulty(2)}, id="validation-later"),
        pytest.param(
            mlp, SEVERAL, lambda: {"validation_data": generator()}, id="validation-several"
        ),
        pytest.param(failing_model, EAGER, dict, id="step-eager"),
        pytest.param(failing_model, SEVERAL, dict, id="step-several"),
    ],
)
def test_data_and_steps_that_raise_are_told(
    model: Any, compiled: Arguments, arguments: Callable[[], Arguments]
) -> None:
    watcher = Watcher()
    with pytest.raises(Exception, match="unreadable|in the step") as caught:
        run(watcher, model=model(**compiled), **arguments())
    assert watcher.raised == [caught.value]
    assert shadows(watcher.callbacks) == []


def test_every_listener_is_told_in_the_order_of_asking_and_once() -> None:
    order: list[str] = []
    first, second = Watcher(lambda _: order.append("1")), FitWatcher(lambda _: order.append("2"))
    with pytest.raises(Broken):
        run(first, second, second, raising("on_epoch_end", Broken()))
    assert order == ["1", "2"]


def test_what_a_listener_raises_takes_the_place_and_hides_nothing_from_the_next() -> None:
    error, pressed = Broken(), KeyboardInterrupt()

    def press_again(_: BaseException) -> None:
        raise pressed

    first, second = Watcher(press_again), Watcher()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(first, second, raising("on_train_batch_end", error), validation_data=(X, Y))
    assert caught.value is pressed
    assert pressed.__context__ is error
    assert (first.raised, second.raised) == ([error], [error])


def test_it_is_told_before_the_exception_leaves_the_fit() -> None:
    running: list[bool] = []
    callback = Identified()
    watcher = Watcher(lambda _: running.append(callback.runs()))
    with pytest.raises(Broken):
        run(watcher, callback, raising("on_test_batch_end", Broken()), validation_data=(X, Y))
    assert running == [True]


# --- and of nothing else ------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiled", "arguments"),
    [
        pytest.param({}, {}, id="arrays"),
        pytest.param({}, {"epochs": 0}, id="no-epoch"),
        pytest.param({}, {"steps_per_epoch": 3}, id="exhausted"),
        pytest.param(
            {}, {"x": tf.data.Dataset.from_tensors((X, Y)), "shuffle": False}, id="tf-data"
        ),
        pytest.param({"steps_per_execution": 3}, {}, id="steps_per_execution"),
    ],
)
def test_a_fit_that_ends_tells_nothing_and_takes_everything_off(
    compiled: Arguments, arguments: Arguments
) -> None:
    watcher, model = Watcher(), quick(**compiled)
    had = set(vars(model)) | {"history", "stop_evaluating"}
    run(watcher, model=model, validation_data=(X, Y), **arguments)
    assert watcher.raised == []
    assert shadows(watcher.callbacks) == []
    assert {n for n in set(vars(model)) - had if not n.startswith("_")} == set()


def test_stopping_training_is_no_exception() -> None:
    class Stops(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 1

    watcher = Watcher()
    run(watcher, Stops(), validation_data=(X, Y))
    assert watcher.raised == []


def test_the_exceptions_that_end_an_epoch_are_not_told() -> None:
    for error in (StopIteration(), tf.errors.OutOfRangeError(None, None, "out of data")):
        watcher = Watcher()
        model = run(watcher, raising("on_train_batch_begin", error, 2))
        assert model.history.epoch == [0, 1], "Keras went on"
        assert watcher.raised == []


def test_a_stop_iteration_that_keras_does_not_catch_is_told() -> None:
    watcher, error = Watcher(), StopIteration()
    with pytest.raises(StopIteration):
        run(watcher, raising("on_epoch_end", error))
    assert watcher.raised == [error]


def test_what_a_callback_catches_itself_is_not_told() -> None:
    """A fit within a fit, and an evaluation with the very list that is watched."""
    caught: list[str] = []

    class Tries(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            try:
                run(raising("on_train_batch_end", Broken()))
            except Broken:
                caught.append("fit")
            try:
                self.model.evaluate(X, Y, verbose=0, callbacks=watcher.callbacks)
            except Broken:
                caught.append("evaluate")

    # Each epoch tests twice: the fit itself first, and then the callback.
    watcher, breaks = Watcher(), raising("on_test_begin", Broken(), 2)
    model = run(watcher, breaks, Tries(), validation_data=(X, Y))
    assert caught == ["fit", "evaluate", "fit"]
    assert model.history.epoch == [0, 1]
    assert watcher.raised == []


def test_after_undo_nothing_is_told_and_nothing_left() -> None:
    class Undoes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            thread = threading.Thread(target=first.undo)
            thread.start()
            thread.join()
            first.undo()
            left.append(shadows(first.callbacks))

    left: list[list[str]] = []
    first, second = Watcher(), Watcher()
    with pytest.raises(Broken):
        run(first, second, Undoes(), raising("on_epoch_end", Broken()))
    assert (first.raised, len(second.raised)) == ([], 1)
    assert all(left), "the second one still watches"
    first = Watcher()
    left.clear()
    with pytest.raises(Broken):
        run(first, Undoes(), raising("on_epoch_end", Broken()))
    assert (first.raised, left) == ([], [[]] * 4)


# --- several fits, other people's wraps ---------------------------------------------


def test_two_fits_of_a_list_of_the_users_own() -> None:
    """Keras sets the model once, when the list is made: only `on_train_begin` sees each fit."""
    watcher, model = FitWatcher(), quick()
    breaks = raising("on_train_batch_end", Broken(), 6)
    callbacks = keras.callbacks.CallbackList([watcher, breaks], add_history=True, model=model)
    arguments: Arguments = {"batch_size": BATCH, "verbose": 0, "callbacks": callbacks}
    model.fit(X, Y, **arguments)
    assert (watcher.raised, shadows(callbacks)) == ([], [])
    with pytest.raises(Broken):
        model.fit(X, Y, **arguments)
    assert (len(watcher.raised), shadows(callbacks)) == (1, [])
    model.fit(X, Y, **arguments)
    assert len(watcher.raised) == 1


def test_a_wrap_that_was_there_is_put_back_and_one_on_top_of_ours_stays() -> None:
    heard: list[str] = []

    class Wraps(keras.callbacks.Callback):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def set_model(self, model: keras.Model) -> None:
            super().set_model(model)
            callbacks: Any = ki.calling_callback_list()
            inner = callbacks.on_epoch_end

            def outer(*args: Any, **kwargs: Any) -> None:
                heard.append(self.name)
                inner(*args, **kwargs)

            callbacks.on_epoch_end = self.outer = outer

    below, watcher, above = Wraps("below"), Watcher(), Wraps("above")
    run(below, watcher, epochs=1)
    assert vars(watcher.callbacks)["on_epoch_end"] is below.outer
    run(watcher, above, epochs=1)
    assert vars(watcher.callbacks)["on_epoch_end"] is above.outer
    watcher.callbacks.on_epoch_end(0)
    assert heard == ["below", "above", "above"]
    assert watcher.raised == []


@pytest.mark.parametrize("ends", ["well", "by an error", "unseen"])
def test_it_keeps_no_input_alive(ends: str) -> None:
    """With garbage collection off: a reference cycle would keep the data of a fit."""
    inputs: list[Any] = []

    class Notes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            inputs.append(weakref.ref(ki._training.running_fit()["epoch_iterator"]))

    bad = (X, Y[:-1]) if ends == "unseen" else (X, Y)

    class Keeps(FitWatcher):
        def listen(self, error: BaseException) -> None:
            """Keep no error: its frames lead to that of the fit."""

    class Breaks(keras.callbacks.Callback):
        def on_test_end(self, logs: Any = None) -> None:
            if ends == "by an error":
                raise Broken

    gc.collect()
    gc.disable()
    try:
        try:
            run(Keeps(), Notes(), Breaks(), validation_data=bad)
        except (Broken, ValueError):
            assert ends != "well"
        assert {found() for found in inputs} == {None}
    finally:
        gc.enable()


# --- whether a fit still runs ---------------------------------------------------------


class Identified(keras.callbacks.Callback):
    """Asks for the number of its fit."""

    def __init__(self) -> None:
        super().__init__()
        self.number: int | None = None
        self.thread = 0
        self.seen: list[bool] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.number, self.thread = ki.fit_id(), threading.get_ident()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert ki.fit_id() == self.number, "whenever one asks"
        thread = threading.Thread(target=lambda: self.seen.append(self.runs()))
        thread.start()
        thread.join()
        self.seen.append(self.runs())

    def runs(self) -> bool:
        assert self.number is not None
        return ki.is_on_stack(self.number, self.thread)


def test_a_fit_is_on_the_stack_while_it_runs_for_every_thread_that_asks() -> None:
    callback = Identified()
    run(callback)
    assert callback.seen == [True] * 4
    assert not callback.runs()


def test_in_a_thread_of_its_own_and_after_that_thread_has_ended() -> None:
    callback = Identified()
    thread = threading.Thread(target=run, args=(callback,))
    thread.start()
    thread.join()
    assert callback.seen == [True] * 4
    assert not callback.runs()


def test_one_that_failed_between_the_hooks_is_over_although_nobody_told() -> None:
    callback, watcher = Identified(), Watcher()
    with pytest.raises(ValueError, match="cardinality"):
        run(callback, watcher, validation_data=(X, Y[:-1]))
    assert watcher.raised == [], "if Keras lets us see this now, the docstring may say so"
    assert not callback.runs()
    watcher.undo()
    assert shadows(watcher.callbacks) == []


def test_a_fit_is_not_mistaken_for_one_before_or_around_it() -> None:
    first, second, inner = Identified(), Identified(), Identified()
    seen: list[tuple[bool, bool, bool]] = []

    class Inner(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            seen.append((first.runs(), second.runs(), inner.runs()))

    class Outer(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            run(inner, Inner(), epochs=1)
            seen.append((first.runs(), second.runs(), inner.runs()))

    run(first, epochs=1)
    run(second, Outer(), epochs=1)
    assert seen == [(False, True, True), (False, True, False)]
    assert len({first.number, second.number, inner.number}) == 3


def test_a_frame_tells_as_a_thread_does_and_a_loop_of_ones_own_has_no_number() -> None:
    seen: list[bool] = []

    class Looks(Identified):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            assert self.number is not None
            seen.append(ki.is_on_stack(self.number, inspect.currentframe()))

    callback = Looks()
    run(callback, epochs=1)
    assert callback.number is not None
    assert seen == [True] * 4
    assert not ki.is_on_stack(callback.number, inspect.currentframe())
    assert not ki.is_on_stack(callback.number, None)
    assert ki.fit_id() is None


# --- with signals ---------------------------------------------------------------------


class Listens(Identified):
    """Stops at the end of a batch, as a session does."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.signals = Signals(lambda frame: ki.is_on_stack(self.number or 0, frame))

    def on_train_begin(self, logs: Any = None) -> None:
        super().on_train_begin()
        assert self.signals.install()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            signal.raise_signal(signal.SIGINT)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.signals.received:
            self.signals.finish()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A worker of the tests may ignore Ctrl-C."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_a_batch_lets_it_end_and_is_told_as_it_leaves() -> None:
    callback, watcher = Listens(), Watcher()
    with pytest.raises(KeyboardInterrupt) as caught:
        run(watcher, callback)
    assert callback.batches == 3
    assert watcher.raised == [caught.value]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_after_a_fit_that_failed_unseen_is_not_swallowed() -> None:
    callback = Listens()
    callback.on_train_batch_begin = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="cardinality"):
        run(callback, validation_data=(X, Y[:-1]))
    assert signal.getsignal(signal.SIGINT) != signal.default_int_handler, "its handler stayed"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- what it leans on -----------------------------------------------------------------


def test_keras_still_calls_everything_through_the_objects() -> None:
    """The names that `_unwinding` reads in the frames of `fit` and `evaluate`."""
    names: dict[str, set[str]] = {}

    class Reads(keras.callbacks.Callback):
        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            for frame in ki._training._frames():
                names.setdefault(frame.f_code.co_name, set(frame.f_locals))

    run(Reads(), validation_data=(X, Y), epochs=1)
    assert {"callbacks", "epoch_iterator"} <= names["fit"]
    assert {"epoch_iterator", "use_cached_eval_dataset"} <= names["evaluate"]


def test_the_traceback_of_an_error_is_what_it_was() -> None:
    """Only our own wraps stand in it, none of Keras's frames, and no second exception."""
    error = Broken()
    with pytest.raises(Broken):
        run(Watcher(), raising("on_train_batch_end", error))
    assert (error.__cause__, error.__context__) == (None, None)
