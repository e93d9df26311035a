"""Broken off anywhere in an epoch, with any input: the rest is what it would have been."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from builders import same
from doubles import StopHere

from mlflow_ckpt import EpochData, MlflowCheckpoint

# What Keras says of every epoch whose length it does not know.
pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")

Forget = Callable[[], None]
Arguments = dict[str, Any]

BATCH, BATCHES = 8, 6
X = np.random.default_rng(0).random((BATCH * BATCHES, 5), dtype=np.float32)
Y = (X.sum(axis=1) * 10).astype(np.int64) % 3
WEIGHTS = {0: 1.0, 1: 2.0, 2: 0.5}


class Stop(keras.callbacks.Callback):
    """Break the fit off after so many batches."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self._left = at or -1

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Each process counts for itself."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            raise StopHere(f"batch {batch}")


class Calls(Stop):
    """Note which batches other callbacks hear of."""

    def __init__(self) -> None:
        super().__init__(None)
        self.heard: list[tuple[str, int]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.heard.append(("begin", batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.heard.append(("end", batch))


class Evaluates(Stop):
    """A user's callback that evaluates at each epoch's end."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(None)
        self._dataset = dataset

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.evaluate(self._dataset, verbose=0)


# --- inputs -----------------------------------------------------------------------


class Batches(keras.utils.PyDataset):
    """Six batches, in an order of the samples that subclasses change."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = np.arange(len(X))
        self.own = np.random.default_rng(4)

    @property
    def num_batches(self) -> int | None:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return X[chosen], Y[chosen]


class NumpyAtEnd(Batches):
    def on_epoch_end(self) -> None:
        np.random.shuffle(self.order)


class NumpyAtBegin(Batches):
    def on_epoch_begin(self) -> None:
        np.random.shuffle(self.order)


class PythonAtEnd(Batches):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.order = list(range(len(X)))  # type: ignore[assignment]

    def on_epoch_end(self) -> None:
        random.shuffle(self.order)


class OwnGenerator(Batches):
    def on_epoch_end(self) -> None:
        self.order = self.own.permutation(len(X))


class Methods(Batches):
    """Its two methods say what it remembers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.samples = X.copy()
        self.epoch = 0

    def __getitem__(self, index: int) -> Any:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.samples[part] * (1 + self.epoch), Y[part]

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def checkpoint_state(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]


class Infinite(Batches):
    @property
    def num_batches(self) -> None:
        return None

    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index % BATCHES)


class AugmentsWithOwn(Batches):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x + self.own.normal(size=x.shape)).astype(np.float32), y


class AugmentsWithNumpy(Batches):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return (x + np.random.normal(size=x.shape)).astype(np.float32), y


class Remembers(Batches):
    """Keeps the batches it has made: data, in a dictionary."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.made: dict[int, Any] = {}

    def __getitem__(self, index: int) -> Any:
        return self.made.setdefault(index, super().__getitem__(index))


class ShufflesPairs(Batches):
    """Moves samples and labels themselves, which it holds in a tuple."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pair = X.copy(), Y.copy()

    def __getitem__(self, index: int) -> Any:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return tuple(array[part] for array in self.pair)

    def on_epoch_end(self) -> None:
        order = self.own.permutation(len(X))
        self.pair = self.pair[0][order], self.pair[1][order]


class ShufflesLabels(ShufflesPairs):
    """Holds them as attributes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.samples, self.classes = self.pair

    def on_epoch_end(self) -> None:
        order = self.own.permutation(len(X))
        self.samples, self.classes = self.samples[order], self.classes[order]
        self.pair = ()  # type: ignore[assignment]

    def __getitem__(self, index: int) -> Any:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.samples[part], self.classes[part]


def slices() -> Any:
    return tf.data.Dataset.from_tensor_slices((X, Y))


def arrays(**more: Any) -> Arguments:
    return {"x": X, "y": Y, "batch_size": BATCH, **more}


def shuffled(size: int = 48) -> Any:
    return slices().shuffle(size, seed=3)


def split() -> Arguments:
    whole = shuffled(4800)
    return {"x": whole.skip(16).batch(4), "validation_data": whole.take(16).batch(BATCH)}


def evaluated() -> Arguments:
    dataset = shuffled(4800).batch(BATCH)
    return {"x": dataset, "callbacks": [Evaluates(dataset)]}


def factory() -> Arguments:
    def made(epoch: int) -> Any:
        return slices().shuffle(48, seed=epoch).batch(BATCH)

    return {"x": EpochData.from_factory(made, batches=BATCHES)}


EXACT: dict[str, Callable[[], Arguments]] = {
    "arrays": arrays,
    "arrays-shuffled-by-batch": lambda: arrays(shuffle="batch"),
    "class-weight": lambda: arrays(class_weight=WEIGHTS),
    "sample-weight": lambda: arrays(sample_weight=np.linspace(0.5, 2, len(X), dtype=np.float32)),
    "validation-split": lambda: arrays(validation_split=0.25),
    "validation-shuffled": lambda: arrays(validation_data=shuffled().take(20).batch(4)),
    "validation-steps": lambda: arrays(
        validation_data=shuffled().repeat().batch(4), validation_steps=3
    ),
    "tf-data": lambda: {"x": shuffled().batch(BATCH).prefetch(2)},
    "tf-data-large-buffer": lambda: {"x": shuffled(4800).batch(BATCH).prefetch(2)},
    "tf-data-unknown-length": lambda: {"x": shuffled().filter(lambda *_: True).batch(BATCH)},
    "tf-data-repeat": lambda: {"x": shuffled().repeat().batch(BATCH), "steps_per_epoch": 5},
    "tf-data-repeat-large": lambda: {
        "x": shuffled(4800).repeat().batch(BATCH),
        "steps_per_epoch": 5,
    },
    "tf-data-split": split,
    "epoch-data": lambda: {"x": EpochData(X, Y, batch_size=BATCH, seed=2)},
    "epoch-data-factory": factory,
    "py-dataset": lambda: {"x": Batches()},
    "py-dataset-in-order": lambda: {"x": OwnGenerator(), "shuffle": False},
    "py-dataset-numpy-at-end": lambda: {"x": NumpyAtEnd()},
    "py-dataset-numpy-at-begin": lambda: {"x": NumpyAtBegin()},
    "py-dataset-python-at-end": lambda: {"x": PythonAtEnd()},
    "py-dataset-own-generator": lambda: {"x": OwnGenerator()},
    "py-dataset-methods": lambda: {"x": Methods()},
    "py-dataset-infinite": lambda: {"x": Infinite(), "steps_per_epoch": 5},
    "py-dataset-workers": lambda: {"x": OwnGenerator(workers=2)},
    "py-dataset-workers-numpy": lambda: {"x": NumpyAtEnd(workers=2)},
    "py-dataset-workers-infinite": lambda: {"x": Infinite(workers=2), "steps_per_epoch": 5},
}
# Exact or not: nobody may read `true` where it is not.
HONEST: dict[str, Callable[[], Arguments]] = {
    "evaluated-at-epoch-end": evaluated,
    "py-dataset-augments-with-own": lambda: {"x": AugmentsWithOwn()},
    "py-dataset-augments-with-numpy": lambda: {"x": AugmentsWithNumpy()},
    "py-dataset-workers-augment": lambda: {"x": AugmentsWithNumpy(workers=2)},
    "py-dataset-shuffles-labels": lambda: {"x": ShufflesLabels()},
    "py-dataset-shuffles-pairs": lambda: {"x": ShufflesPairs()},
    "validation-py-dataset": lambda: arrays(validation_data=NumpyAtEnd()),
}
# How often to save, and the batch after which to stop: one epoch has six, or five.
STOPS = {"first-batch": (7, 8), "middle": (3, 10), "last-batch": (11, 12)}
# The others, and the first and the last batch, are slow.
DEFAULT = {
    "arrays",
    "validation-shuffled",
    "tf-data-unknown-length",
    "tf-data-repeat-large",
    "tf-data-split",
    "epoch-data-factory",
    "py-dataset-methods",
    "evaluated-at-epoch-end",
    "py-dataset-workers-augment",
    "py-dataset-shuffles-labels",
    "validation-py-dataset",
}


def build(**compiled: Any) -> keras.Model:
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dropout(0.3), keras.layers.Dense(3)])
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **{"run_eagerly": True, **compiled},
    )
    return model


def attempt(
    make: Callable[[], Arguments],
    run_id: str | None,
    every: int,
    stop: int | None,
    **compiled: Any,
) -> tuple[str, keras.Model, Any, Calls]:
    """What a script does, as in a process of its own."""
    keras.utils.set_random_seed(3)
    model, calls, arguments = build(**compiled), Calls(), make()
    if isinstance(arguments["x"], (tf.data.Dataset, Infinite)):
        arguments["shuffle"] = False  # Keras warns otherwise.
    checkpoint = MlflowCheckpoint(save_freq=every, keep=None, monitor=None)
    callbacks = [checkpoint, calls, *arguments.pop("callbacks", []), Stop(stop)]
    with mlflow.start_run(run_id=run_id) as run:
        result = None
        try:
            result = model.fit(epochs=3, verbose=0, callbacks=callbacks, **arguments)
        except StopHere:
            assert stop is not None
    return run.info.run_id, model, result, calls


_WHOLE: dict[str, Any] = {}


@pytest.fixture(scope="module", autouse=True)
def forget_references() -> Iterator[None]:
    yield
    _WHOLE.clear()


def broken_off(
    name: str,
    make: Callable[[], Arguments],
    stop: tuple[int, int],
    forget: Forget,
    **compiled: Any,
) -> tuple[bool, str]:
    """Whether it ended like the one that nobody broke off, and what its run says."""
    every, at = stop
    key = f"{name} {every} {compiled}"
    if key not in _WHOLE:
        forget()
        _, model, result, calls = attempt(make, None, every, None, **compiled)
        _WHOLE[key] = model, result.history, calls.heard
    reference, history, heard = _WHOLE[key]
    forget()
    run_id, *_ = attempt(make, None, every, at, **compiled)
    forget()
    _, model, result, calls = attempt(make, run_id, every, None, **compiled)
    assert 0 < len(calls.heard) < len(heard)
    assert calls.heard == heard[-len(calls.heard) :]
    tags = mlflow.get_run(run_id).data.tags
    return same(model, reference) and result.history == history, tags["ckpt.resume_exact"]


def cells(cases: dict[str, Any]) -> list[Any]:
    return [
        pytest.param(
            name,
            stop,
            id=f"{name}-{where}",
            marks=[] if where == "middle" and name in DEFAULT else [pytest.mark.slow],
        )
        for name in cases
        for where, stop in STOPS.items()
    ]


@pytest.mark.parametrize(("name", "stop"), cells(EXACT))
def test_the_rest_of_an_epoch_is_what_it_would_have_been(
    name: str, stop: tuple[int, int], another_process: Forget
) -> None:
    assert broken_off(name, EXACT[name], stop, another_process)[0]


@pytest.mark.parametrize(("name", "stop"), cells(HONEST))
def test_no_run_says_true_that_is_not(
    name: str, stop: tuple[int, int], another_process: Forget
) -> None:
    exact, said = broken_off(name, HONEST[name], stop, another_process)
    assert exact or said != "true"


def test_an_epoch_of_workers_without_end_goes_on_at_a_boundary(another_process: Forget) -> None:
    name = "py-dataset-workers-infinite"
    assert broken_off(name, EXACT[name], (5, 11), another_process)[0]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(EXACT["tf-data"], id="tf-data"),
        pytest.param(EXACT["tf-data-repeat"], id="tf-data-repeat"),
        pytest.param(lambda: {"x": Remembers()}, id="dictionary"),
        pytest.param(HONEST["py-dataset-shuffles-pairs"], id="tuple"),
        pytest.param(HONEST["py-dataset-shuffles-labels"], id="attributes"),
    ],
)
def test_no_sample_is_in_a_checkpoint(make: Callable[[], Arguments], tmp_path: Path) -> None:
    attempt(make, None, 4, 9)
    files = [path.read_bytes() for path in tmp_path.rglob("training_state.h5")]
    assert files
    assert not any(sample.tobytes() in file for file in files for sample in X)


# --- other ways through an epoch ------------------------------------------------------


def test_steps_per_execution_that_does_not_divide_the_epoch(another_process: Forget) -> None:
    def given() -> Arguments:
        return {"x": shuffled().take(40).batch(BATCH)}  # five batches

    compiled = {"run_eagerly": False, "steps_per_execution": 2, "jit_compile": False}
    assert broken_off("spe", given, (4, 9), another_process, **compiled) == (True, "true")


def test_the_progress_bar_begins_at_the_right_batch(
    another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    another_process()
    run_id, *_ = attempt(arrays, None, 3, 10)
    another_process()
    capsys.readouterr()
    keras.utils.set_random_seed(3)
    with mlflow.start_run(run_id=run_id):
        callbacks = [MlflowCheckpoint(save_freq=3, keep=None, monitor=None), Calls(), Stop(None)]
        build().fit(X, Y, batch_size=BATCH, epochs=2, verbose=1, callbacks=callbacks)
    out = capsys.readouterr().out
    assert "Epoch 2/2" in out
    assert "4/6" in out
    assert "3/6" not in out


def test_a_schedule_that_multiplies_is_applied_once(another_process: Forget) -> None:
    def given() -> Arguments:
        schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5)
        return arrays(callbacks=[schedule])

    assert broken_off("schedule", given, (3, 10), another_process) == (True, "true")


def test_nothing_is_left_behind_in_the_model(another_process: Forget) -> None:
    another_process()
    run_id, *_ = attempt(arrays, None, 3, 10)
    another_process()
    _, model, _, _ = attempt(arrays, run_id, 3, None)
    calls = Calls()
    model.fit(X, Y, batch_size=BATCH, epochs=1, verbose=0, callbacks=[calls])
    assert [batch for kind, batch in calls.heard if kind == "begin"] == list(range(BATCHES))


@pytest.mark.parametrize("name", ["arrays", "tf-data", "epoch-data", "py-dataset"])
def test_no_iterator_over_the_input_outlives_the_fit(name: str) -> None:
    """With it the data would stay, and the threads that prefetch it, until a collection."""

    def iterators() -> int:
        return sum(type(found).__name__ == "OwnedIterator" for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = iterators()
        attempt(EXACT[name], None, 3, None)
        assert iterators() == before
    finally:
        gc.enable()


def test_one_dataset_in_two_fits_of_which_the_second_is_broken_off(
    another_process: Forget,
) -> None:
    def script(run_id: str | None, stop: int | None) -> tuple[str, keras.Model]:
        keras.utils.set_random_seed(3)
        model, whole = build(), shuffled(4800)
        first, second = whole.batch(BATCH), whole.batch(BATCH).prefetch(1)
        with mlflow.start_run(run_id=run_id) as run:
            for data, at in ((first, None), (second, stop)):
                checkpoint = MlflowCheckpoint(save_freq=4, keep=None, monitor=None)
                try:
                    callbacks = [checkpoint, Stop(at)]
                    model.fit(data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks)
                except StopHere:
                    assert at
        return run.info.run_id, model

    another_process()
    _, reference = script(None, None)
    another_process()
    run_id, _ = script(None, 9)
    another_process()
    assert same(script(run_id, None)[1], reference)
    assert mlflow.get_run(run_id).data.tags["ckpt.resume_exact"] == "true"


def test_a_dataset_that_was_read_further_in_this_process_is_not_called_exact(
    another_process: Forget,
) -> None:
    """Its shuffle cannot go back: only a new dataset object begins at the first order."""
    dataset = shuffled(4800).batch(BATCH)
    another_process()
    run_id, *_ = attempt(lambda: {"x": dataset}, None, 3, 10)
    another_process()
    attempt(lambda: {"x": dataset}, run_id, 3, None)
    said = mlflow.get_run(run_id).data.tags["ckpt.resume_exact"]
    assert said == "unknown: more iterators were made over a shuffle than before"
