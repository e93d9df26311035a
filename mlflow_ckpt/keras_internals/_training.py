"""A running `fit`, its callbacks, and the state that Keras keeps beside the model."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state
from keras.src.random import seed_generator
from keras.src.saving import saving_lib

from mlflow_ckpt.selector import Mode

# Key of Keras's global seed generator (`seed_generator.GLOBAL_SEED_GENERATOR` since Keras 3.13).
_GLOBAL_SEED = "global_seed_generator"


def _frames() -> Iterator[FrameType]:
    """The frames below the caller's own.

    Who reads `f_locals` of its own frame has it refer to itself: with all frames below and
    what they hold, the input of a `fit` among it, it then lives until a garbage collection.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def calling_callback_list() -> keras.callbacks.CallbackList | None:
    """The `CallbackList` that is calling us now, or `None`.

    Keras gives a callback no way to see its siblings; the list is `self` in a frame below.
    """
    for frame in _frames():
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return owner
    return None


def append_callback(
    callbacks: keras.callbacks.CallbackList, last: keras.callbacks.Callback
) -> None:
    """Put `last` behind every callback of the list, Keras's own included.

    The list's loops see an element appended while they run. Asynchronous dispatch
    (`_async_train`), which Keras picks before it knows of `last`, is switched off: batch
    ends must not race with the next step.
    """
    if last not in callbacks.callbacks:
        callbacks.callbacks.append(last)
    callbacks._async_train = False


def running_fit() -> Mapping[str, Any]:
    """Local names of the `Trainer.fit` that is running below us, or an empty mapping."""
    for frame in _frames():
        if frame.f_code.co_name != "fit":
            continue
        names = frame.f_locals
        if "initial_epoch" in names and "epoch_iterator" in names:
            return names
    return {}


def raised_at_epoch_end(error: BaseException) -> bool:
    """Whether an exception came through the `on_epoch_end` of a `CallbackList`."""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "on_epoch_end":
            owner = frame.f_locals.get("self")
            if isinstance(owner, keras.callbacks.CallbackList):
                return True
        trace = trace.tb_next
    return False


def fit_arguments() -> Mapping[str, Any]:
    """Arguments of the `fit` that is running below us, or an empty mapping.

    Keras passes callbacks neither `initial_epoch` nor the validation settings.
    """
    wanted = ("initial_epoch", "epochs", "validation_data", "validation_freq")
    names = running_fit()
    return {name: names[name] for name in wanted if name in names}


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Make the running `fit` begin at `epoch`: it reads `model._initial_epoch` after begin."""
    model._initial_epoch = epoch


def clear_initial_epoch(model: keras.Model) -> None:
    """Undo `set_initial_epoch`. Keras never does: the next plain `fit` would start late."""
    model._initial_epoch = None


def metric_directions(model: keras.Model) -> dict[str, Mode]:
    """Direction of each metric that knows it (`Metric._direction`, `CompileMetrics.metrics`)."""
    flat: list[Any] = []
    for metric in model.metrics:
        flat.extend(getattr(metric, "metrics", None) or [metric])
    found: dict[str, Mode] = {"loss": "min"}
    for metric in flat:
        direction = getattr(metric, "_direction", None)
        if direction in ("up", "down"):
            found.setdefault(metric.name, "max" if direction == "up" else "min")
    return found


def compiled_loss(model: keras.Model) -> tuple[Any, Any]:
    """The loss and the loss weights that `compile` was given (`_compile_loss`)."""
    compiled = getattr(model, "_compile_loss", None)
    return getattr(model, "loss", None), getattr(compiled, "_user_loss_weights", None)


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables an optimizer was built on, in its own order (`_trainable_variables`)."""
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return trained_variables(inner)
    return list(getattr(optimizer, "_trainable_variables", []) or [])


def has_variables(model: keras.Model) -> bool:
    """Whether every layer is built (`_flatten_layers`), even if the model was never called.

    Keras sets `model.built` at the first call. A GAN whose train step calls its parts, or a
    subclassed model after `build_from_config`, has all its variables and yet is not "built".
    """
    if model.built:
        return True
    return bool(model.weights) and all(
        layer.built for layer in model._flatten_layers(include_self=False)
    )


@contextmanager
def regarded_as_built(model: keras.Model) -> Iterator[None]:
    """Let Keras save or load a model that `has_variables` without a call of its own."""
    built = model.built
    model.built = built or has_variables(model)
    try:
        yield
    finally:
        model.built = built


def load_whole_state(model: keras.Model, path: str) -> None:
    """Load weights and every built optimizer from a `.keras` or `.weights.h5` file."""
    saving_lib.load_weights_only(model, path)


@contextmanager
def untouched_python_rng() -> Iterator[None]:
    """Keep Python's generator still: an unseeded Keras seed generator draws from it."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def global_seed_state() -> np.ndarray[Any, Any] | None:
    """State of Keras's global seed generator, two integers; `None` before its first use."""
    generator = global_state.get_global_attribute(_GLOBAL_SEED)
    return None if generator is None else keras.ops.convert_to_numpy(generator.state)


def restore_global_seed_state(state: np.ndarray[Any, Any]) -> None:
    """Assign what `global_seed_state` returned."""
    with untouched_python_rng():
        seed_generator.global_seed_generator().state.assign(state)


def forget_global_seed() -> None:
    """Go back to before the first use: the next one draws its seed from Python's generator."""
    global_state.set_global_attribute(_GLOBAL_SEED, None)
