"""Time from the call of `fit` to the end of the first new batch, deep inside an epoch.

A run is broken off one batch after a checkpoint, and continued in a new process. Before
that the same fit is begun without a run to continue: building the model's functions and
the input takes its time there too. Both are seconds inside `fit`, without the start of the
process. Keras's BackupAndRestore stores the batch and does not go back to it: its first
new batch comes when all batches before are trained again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_ckpt as ckpt
from benchmarks import peers
from benchmarks.process import call, say
from benchmarks.results import Bar, Figure, Sample, rotated

_BATCH, _FEATURES, _CLASSES = 32, 32, 10
_AFTER = 100  # batches of the epoch behind the one that is new
_BACKUP = "arrays, Keras BackupAndRestore"
_FRESH = "begun anew"
_RESUMED = "resumed"

Data = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def _pipeline(data: Data, buffer: int) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices(data).shuffle(buffer, seed=3)
    scaled = dataset.map(lambda x, y: (x * 2 - 1, y), num_parallel_calls=2)
    return scaled.batch(_BATCH).prefetch(2)


_INPUTS: Mapping[str, Callable[[Data], dict[str, Any]]] = {
    "arrays": lambda data: {"x": data[0], "y": data[1], "batch_size": _BATCH},
    "EpochData": lambda data: {"x": ckpt.EpochData(*data, batch_size=_BATCH)},
    "tf.data, shuffle of 1,000": lambda data: {"x": _pipeline(data, 1_000)},
    "tf.data, shuffle of 10,000": lambda data: {"x": _pipeline(data, 10_000)},
}


class _Stop(Exception):
    """Ends a fit."""


class _Until(keras.callbacks.Callback):
    """End the fit once a batch (from 0) has ended, and note when.

    It has no state: a resumed one counts from where it is.
    """

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.trained = 0
        self.at = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.trained += 1
        if batch >= self.batch:
            self.at = time.perf_counter()
            raise _Stop

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: Mapping[str, Any]) -> None:
        """Nothing: see above."""


def collect(
    *, batches: int, repeats: int, scratch: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Break every fit off once, then begin and continue it `repeats` times, in turn."""
    rows: list[dict[str, Any]] = []
    names = [*_INPUTS, _BACKUP]
    with tempfile.TemporaryDirectory(dir=scratch) as kept:

        def ask(name: str, part: str) -> Any:
            folder = Path(kept, str(names.index(name)))
            folder.mkdir(exist_ok=True)
            asked = {"name": name, "batches": batches, "folder": str(folder)}
            return call(f"benchmarks.resuming:{part}", asked, scratch=scratch, progress=progress)

        for name in names:
            ask(name, "break_off")
        for turn in range(repeats):
            for name in rotated(names, turn):
                progress(f"round {turn + 1} of {repeats}: {name}")
                for part in ("begin", "go_on"):
                    rows.append({"name": name, "part": part, **ask(name, part)})
    return {"batches": batches, "rows": rows}


def break_off(*, name: str, batches: int, folder: str, scratch: Path) -> dict[str, Any]:
    """Train to one batch after a checkpoint at `batches`."""
    say(f"{name}: training {batches + 1} batches")
    return _fit(name, batches, Path(folder), until=batches)


def begin(*, name: str, batches: int, folder: str, scratch: Path) -> dict[str, Any]:
    """Begin the same fit in a store of its own."""
    return _fit(name, batches, scratch, until=0)


def go_on(*, name: str, batches: int, folder: str, scratch: Path) -> dict[str, Any]:
    """Continue it; the first new batch is number `batches`, from 0."""
    return _fit(name, batches, Path(folder), until=batches)


def _fit(name: str, batches: int, folder: Path, *, until: int) -> dict[str, Any]:
    data = _data(batches + _AFTER)
    keras.utils.set_random_seed(1)
    model = _model()
    stop = _Until(until)
    if name == _BACKUP:
        saver: Any = keras.callbacks.BackupAndRestore(folder / "backup", save_freq=batches)
        took = _time(model, stop, saver, _INPUTS["arrays"](data))
    else:
        with mlflow.start_run(run_id=_run_id(folder)):
            saver = ckpt.MlflowCheckpoint(save_freq=batches, monitor=None)
            took = _time(model, stop, saver, _INPUTS[name](data))
    return {"seconds": took, "trained": stop.trained}


def _run_id(folder: Path) -> str:
    """The run of this folder, a new one at first."""
    path = folder / "run"
    if path.exists():
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        os.environ["MLFLOW_CKPT_SPOOL"] = str(folder / "spool")
    else:
        peers.use_store(folder)
        with mlflow.start_run() as run:
            path.write_text(run.info.run_id)
    return path.read_text()


def _time(model: keras.Model, stop: _Until, saver: Any, arguments: Mapping[str, Any]) -> float:
    began = time.perf_counter()
    try:
        model.fit(epochs=2, verbose=0, callbacks=[saver, stop], **arguments)
    except _Stop:
        return stop.at - began
    raise RuntimeError("the fit ended before the batch that was waited for")


def _data(batches: int) -> Data:
    draw = np.random.default_rng(0)
    x = draw.random((batches * _BATCH, _FEATURES), dtype=np.float32)
    return x, (x.sum(axis=1) * 10).astype(np.int64) % _CLASSES


def _model() -> keras.Model:
    model = keras.Sequential(
        [
            keras.Input((_FEATURES,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(_CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def figures(raw: Mapping[str, Any]) -> list[Figure]:
    """The figure, from what `collect` returned."""
    samples: dict[str, Sample] = {}
    for name in (*_INPUTS, _BACKUP):
        for part, words in (("begin", _FRESH), ("go_on", _RESUMED)):
            values = [r["seconds"] for r in raw["rows"] if (r["name"], r["part"]) == (name, part)]
            ours = "peer" if name == _BACKUP else "ours"
            role: Any = "control" if part == "begin" else ours
            samples[f"{name}: {words}"] = Sample(role=role, unit="s", values=tuple(values))
    trained = {r["name"]: r["trained"] for r in raw["rows"] if r["part"] == "go_on"}
    return [
        Figure(
            key="resume",
            title=f"From `fit` to the end of the first new batch, number {raw['batches'] + 1:,}",
            samples=samples,
            bars=[
                Bar(
                    text=f"{name}: resumed ÷ begun anew",
                    value=samples[f"{name}: {_RESUMED}"].median,
                    divisor=samples[f"{name}: {_FRESH}"].median,
                    limit=2.0,
                )
                for name in _INPUTS
            ],
            notes=[
                f"Batches trained to get there: {count} ({name})."
                for name, count in trained.items()
            ],
        )
    ]
