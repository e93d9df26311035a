"""What must hold of a run and of this process, whenever a signal or an exception has hit a fit."""

from __future__ import annotations

import functools
import gc
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from builders import FEATURES, data, history, weights
from doubles import StopHere
from signal_script import BATCH, BATCHES, OfThisProcess, seeded, train

import mlflow_ckpt as ckpt
from mlflow_ckpt.spool import Spool, journals

TERM, INT = signal.SIGTERM, signal.SIGINT
HOOKS = (
    "on_epoch_begin", "on_train_batch_begin", "on_train_batch_end", "on_test_begin",
    "on_test_batch_begin", "on_test_batch_end", "on_test_end", "on_epoch_end", "on_train_end",
)  # fmt: skip


class At(OfThisProcess):
    """Act at one call (from 1) of one hook, or of any.

    Attributes:
        calls: The hooks that were called, in order.
    """

    def __init__(self, hook: str, call: int, act: Callable[[], object]) -> None:
        super().__init__()
        self.calls: list[str] = []
        self._hook, self._call, self._act = hook, call, act

    def _note(self, hook: str) -> None:
        self.calls.append(hook)
        if self._hook in (hook, "any"):
            self._call -= 1
            if self._call == 0:
                self._act()


for _hook in HOOKS:
    setattr(At, _hook, lambda self, *_, hook=_hook, **__: self._note(hook))


# --- what a fit is given, and can be told to break at ---


class Unreadable(keras.utils.PyDataset):
    """Four batches; one of them cannot be read, once, while `broken` says which (from 0)."""

    broken: ClassVar[int | None] = None

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, index: int) -> Any:
        if index == type(self).broken:
            type(self).broken = None
            raise StopHere("data")
        x, y = data()
        part = slice(index * BATCH, (index + 1) * BATCH)
        return x[part], y[part]


@keras.saving.register_keras_serializable("signal_tests")
class Breaks(keras.layers.Layer):
    """Passes its input on, but for the call, from 1, that `left` counts down to."""

    left: ClassVar[int] = 0

    def call(self, inputs: Any) -> Any:
        return tf.ensure_shape(tf.py_function(self._pass, [inputs], tf.float32), (None, FEATURES))

    @classmethod
    def _pass(cls, inputs: Any) -> Any:
        cls.left -= 1
        if cls.left == 0:
            raise StopHere("step")
        return inputs


def breaking() -> keras.Model:
    """A model whose step can be told to raise."""
    model = keras.Sequential([keras.Input((FEATURES,)), Breaks(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "arrays": dict,
    "data": lambda: {"x": Unreadable(), "y": None, "batch_size": None},
    "step": lambda: {"model": seeded(breaking)},
}


# --- what must hold ---


def new_run() -> str:
    with mlflow.start_run() as run:
        return str(run.info.run_id)


def status(run_id: str) -> str:
    return str(mlflow.get_run(run_id).info.status)


def curves(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric but the steps of checkpoints, of which a stopped fit has more."""
    found = history(run_id)
    for rows in found.values():
        assert len({step for step, _ in rows}) == len(rows), "nothing is logged twice"
    return {key: rows for key, rows in found.items() if not key.endswith("ckpt_step")}


End = tuple[list[np.ndarray[Any, Any]], dict[str, list[tuple[int, float]]]]


@functools.cache
def reference(
    epochs: int = 2, series: Sequence[str] = ("ckpt",), kind: str = "arrays"
) -> tuple[End, list[str]]:
    """Weights and curves of a fit that nothing has hit, and the hooks that it called."""
    run_id, watch = new_run(), At("none", 0, lambda: None)
    model = train(run_id, watch, epochs=epochs, series=series, **KINDS[kind]())
    assert status(run_id) == "FINISHED"
    return (weights(model), curves(run_id)), watch.calls


def is_exact(run_id: str, model: keras.Model, expected: End, series: Sequence[str]) -> None:
    """A run that was continued to its end equals the one that was never hit."""
    found = weights(model)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected[0], strict=True))
    assert curves(run_id) == expected[1]
    tags = mlflow.get_run(run_id).data.tags
    assert "ckpt.resume_divergence" not in tags
    assert tags.get("ckpt.resume_exact", "true") == "true"
    assert status(run_id) == "FINISHED"
    for name in series:
        final = ckpt.resolve(run_id, f"final@{name}")
        assert final.step == ckpt.resolve(run_id, f"latest@{name}").step
        assert all(
            np.array_equal(a, b)
            for a, b in zip(weights(ckpt.load_model(run_id, f"final@{name}")), found, strict=True)
        )


def stop(kind: type[BaseException], run_id: str, *more: Any, **arguments: Any) -> str:
    """Train until it raises; the error's text.

    An error keeps the frames of its fit, and they its iterators, at the dropping of which
    TensorFlow stalls now and then, the longer the older they are.
    """
    with pytest.raises(kind) as ended:
        train(run_id, *more, **arguments)
    text = str(ended.value)
    del ended
    gc.collect()
    return text


def newest_step(run_id: str, name: str = "ckpt") -> int:
    """Step of the newest committed checkpoint; 0 without any."""
    found = ckpt.list_checkpoints(run_id)
    return int(found[found["series"] == name]["step"].max()) if len(found) else 0


def nothing_is_left(run_id: str, model: keras.Model | None = None) -> None:
    """On threads and handlers of this process, on the model, in the run, in the spool."""
    assert signal.getsignal(TERM) == signal.SIG_DFL
    assert signal.getsignal(INT) is signal.default_int_handler
    assert mlflow.active_run() is None
    assert getattr(model, "_initial_epoch", None) is None
    deadline = time.monotonic() + 30
    while left := _left(run_id):
        assert time.monotonic() < deadline, f"left: {left}"
        time.sleep(0.05)


def _left(run_id: str) -> list[str]:
    threads = [t.name for t in threading.enumerate() if t.name.startswith("mlflow-ckpt")]
    tags = [tag for tag in mlflow.get_run(run_id).data.tags if tag.startswith("ckpt.lease")]
    spool = Spool().folder()
    entries = [str(entry.path) for one in journals(spool) for entry in one.waiting()]
    return threads + tags + entries + [str(room) for room in spool.glob("*/*/making/*")]
