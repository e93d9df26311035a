"""Inputs of the exact-resume matrix: what `fit` is given, in another order in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from exact_cells import BATCH, Cell

from mlflow_ckpt import EpochData

SEED = 5
Row = tuple[Any, ...]


def arguments(cell: Cell, x: Any, y: Any) -> dict[str, Any]:
    """What `fit` gets for the training samples; `y` is None where there are no labels."""
    row: Row = (x,) if y is None else (x, y)
    if cell.weights == "sample":
        row = (*row, np.linspace(0.5, 1.5, len(x), dtype=np.float32))
    given = _MAKERS[cell.input](row)
    if cell.weights == "class":
        given["class_weight"] = {0: 1.0, 1: 2.0, 2: 0.5}
    if "repeat" in cell.input:
        given["steps_per_epoch"] = cell.steps
    return given


def _arrays(row: Row) -> dict[str, Any]:
    names = ("x", "y", "sample_weight")
    return {**dict(zip(names, row, strict=False)), "batch_size": BATCH}


def _slices(row: Row) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(row if len(row) > 1 else row[0])


def _dataset(row: Row) -> dict[str, Any]:
    shuffled = _slices(row).shuffle(len(row[0]), seed=SEED)
    return {"x": shuffled.batch(BATCH).prefetch(2)}


def _unknown(row: Row) -> dict[str, Any]:
    """Nobody can say how many a filter lets pass."""
    passing = _slices(row).filter(lambda *_: tf.constant(True))
    return {"x": passing.shuffle(len(row[0]), seed=SEED).batch(BATCH)}


def _repeat(row: Row) -> dict[str, Any]:
    """One iterator for all epochs, whose passes over the data are no epochs."""
    shuffled = _slices(row).shuffle(len(row[0]) // 2, seed=SEED)
    return {"x": shuffled.repeat().batch(BATCH).prefetch(2)}


class Reshuffled(keras.utils.PyDataset):
    """Draws a new order at each epoch's end, from a generator of its own."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.row = row
        self.generator = np.random.default_rng(SEED)
        self.order = np.arange(len(row[0]))

    @property
    def num_batches(self) -> int:
        return len(self.order) // BATCH

    def __getitem__(self, index: int) -> Any:
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        return tuple(part[chosen] for part in self.row)

    def on_epoch_end(self) -> None:
        self.generator.shuffle(self.order)


def _grain_source(row: Row) -> Any:
    import grain

    names = [tuple(part[i] for part in row) for i in range(len(row[0]))]
    return grain.MapDataset.source(names).seed(SEED).shuffle()


def _grain(row: Row) -> dict[str, Any]:
    """The same order in every epoch: that is what Grain gives to a `fit` without `repeat`."""
    return {"x": _grain_source(row).batch(BATCH)}


def _grain_repeat(row: Row) -> dict[str, Any]:
    """Grain reshuffles at every repetition."""
    return {"x": _grain_source(row).repeat().batch(BATCH)}


def _epoch_data(row: Row) -> dict[str, Any]:
    return {"x": EpochData(*row, batch_size=BATCH, seed=SEED)}


_MAKERS: Mapping[str, Callable[[Row], dict[str, Any]]] = {
    "arrays": _arrays,
    "dataset": _dataset,
    "epoch_data": _epoch_data,
    "grain": _grain,
    "grain_repeat": _grain_repeat,
    "pydataset": lambda row: {"x": Reshuffled(row)},
    "repeat": _repeat,
    "unknown": _unknown,
}
