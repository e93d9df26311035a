"""Make the checkpoints of `tests/fixtures/`, by hand, once for each version of the format.

    python tests/make_format_fixture.py

A committed fixture is never made again: it stands for what an older version of the package
wrote, and every later one has to read it. A new version of the format gets a folder of its own.

    whole      the whole model, taken inside an epoch (step 5, after one batch of epoch 3)
    weights    weights only, at the end of epoch 2, with metrics that are no numbers

A few numbers are drawn and trained, but every weight and optimizer variable is then overwritten
with multiples of 1/16, so that what is stored can be told by looking at it. `expected.json`
beside the files says what they hold; `tests/test_format.py` compares, and continues the fit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import keras
import ml_dtypes
import mlflow
import numpy as np

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, training_state
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.manifest import FORMAT

ROOT = Path(__file__).parent / "fixtures"
EPOCHS, BATCH_SIZE, SAMPLES, FEATURES, CLASSES = 3, 8, 16, 3, 2

# Selector of the checkpoint that is kept, and how its callback is made.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("step=5", {"save_freq": 1}),
    "weights": ("epoch=2", {"save_weights_only": True}),
}


def build() -> keras.Model:
    """26 parameters, dropout with a generator of its own, and an optimizer with momentum."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,), name="features"),
            keras.layers.Dense(4, activation="relu", name="hidden"),
            keras.layers.Dropout(0.25, name="dropout"),
            keras.layers.Dense(CLASSES, name="classes"),
        ],
        name="tiny",
    )
    model.compile(
        keras.optimizers.SGD(0.25, momentum=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """16 samples in two batches."""
    x = np.arange(SAMPLES * FEATURES, dtype=np.float32).reshape(SAMPLES, FEATURES) / 64
    return x, np.arange(SAMPLES) % CLASSES


class Filling(keras.callbacks.Callback):
    """Overwrite what was trained: variable `i` at step `s` holds s + i/16, s + (i+1)/16, ..."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = int(self.model.optimizer.iterations.numpy())
        for index, variable in enumerate(filled(self.model)):
            values = step + (index + np.arange(np.prod(variable.shape, dtype=int))) / 16
            variable.assign(values.reshape(variable.shape).astype(variable.dtype))


class Drifting(keras.callbacks.Callback):
    """Report metrics that are no numbers."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["drift"], logs["slope"] = float("nan"), float("-inf")


class Counting(keras.callbacks.Callback):
    """A user's callback without the two methods: what it changes is stored."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = 0
        self.seen: list[int] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        self.seen.append(batch)


class Remembering(keras.callbacks.Callback):
    """A user's callback with the two methods, and a value of every type that can be stored."""

    state: Any = None

    def checkpoint_state(self) -> Any:
        return memory() if self.state is None else self.state

    def restore_checkpoint_state(self, state: Any) -> None:
        self.state = state


def memory() -> dict[Any, Any]:
    """One value of every type of a plain tree but `variables`, which need a place to go to."""
    return {
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
        "text array": np.array(["a", "bc"]),
        "scalar": np.float32(0.5),
        "int": 2**70,
        "float": [float("inf"), float("nan"), -0.0],
        "numbers": list(range(300)),
        "bytes": b"\x00\xff",
        "bytearray": bytearray(b"abc"),
        "tuple": (1, ("two", None)),
        "set": {3, 1, 2},
        "frozenset": frozenset({"x"}),
        "deque": deque([1, 2], maxlen=5),
        "dict": {1: "one", ("a", 2): True, "$type": "no tag", "$array": "0"},
        "Random": random.Random(3),
        "Generator": np.random.Generator(np.random.PCG64(3)),
        "RandomState": np.random.RandomState(3),
    }


def filled(model: keras.Model) -> list[Any]:
    """The variables that `Filling` overwrites."""
    slots = [v for v in model.optimizer.variables if v.dtype == "float32" and len(v.shape)]
    return [*model.weights, *slots]


def callbacks() -> list[Any]:
    return [
        Filling(),
        Drifting(),
        Counting(),
        Remembering(),
        keras.callbacks.EarlyStopping("val_loss", patience=9, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau("val_loss", patience=9),
    ]


def fit(*extra: Any, checkpoint: dict[str, Any], epochs: int = EPOCHS) -> keras.Model:
    """The whole script, to be called inside of a run."""
    keras.utils.set_random_seed(5)
    model = build()
    x, y = data()
    model.fit(
        x,
        y,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=(x, y),
        verbose=0,
        callbacks=[*callbacks(), MlflowCheckpoint(keep=None, **checkpoint), *extra],
    )
    return model


def shown(value: Any) -> Any:
    """Any value of a state as strict JSON that says its type; long arrays as their digest."""
    if isinstance(value, np.ndarray):
        found = {"array": value.dtype.name, "shape": list(value.shape)}
        if value.size > 64:
            little = value.astype(value.dtype.newbyteorder("<"))
            return {**found, "digest": digest_bytes(little.tobytes())}
        return {**found, "values": shown(value.astype(object).ravel().tolist())}
    if isinstance(value, dict):
        return {key: shown(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [shown(v) for v in value]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, (float, ml_dtypes.bfloat16)):
        return float(value) if np.isfinite(value) else {"float": str(float(value))}
    return value


def held(variables: Any) -> list[Any]:
    """The values of variables; Keras numbers their paths in each process."""
    return [shown(np.asarray(variable)) for variable in variables]


def expected(run_id: str, which: str, root: Path) -> dict[str, Any]:
    """What the fixture holds, as today's readers see it."""
    found, model = ckpt.resolve(run_id, which), ckpt.load_model(run_id, which)
    return {
        "digest": found.digest,
        "name": found.name,
        "metrics": found.metrics,
        "weights_only": found.weights_only,
        "weights": held(model.weights),
        "optimizer": held(model.optimizer.variables),
        "state": shown(training_state.read(root / training_state.PATH)),
    }


def main() -> int:
    folder = ROOT / f"format-{FORMAT}"
    if folder.exists():
        print(f"{folder} is committed and stays as it is.")
        return 1
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["MLFLOW_CKPT_SPOOL"] = f"{scratch}/spool"
        mlflow.set_tracking_uri(f"sqlite:///{scratch}/mlflow.db")
        place = Path(scratch, "artifacts").as_uri()
        mlflow.set_experiment(experiment_id=mlflow.create_experiment("fixture", place))
        for name, (which, checkpoint) in KINDS.items():
            with mlflow.start_run() as run:
                fit(checkpoint=checkpoint)
            downloaded = ckpt.download(run.info.run_id, which, Path(scratch, name))
            shutil.copytree(downloaded, folder / name)
            found[name] = expected(run.info.run_id, which, folder / name)
    text = json.dumps(found, indent=1, sort_keys=True, allow_nan=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
