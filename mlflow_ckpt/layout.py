"""The bytes of a model's `.weights.h5` between its tensors, and which tensor goes where.

    record_state -> sparse file -> Layout: bytes, tensor 0, bytes, tensor 1, ..., bytes

HDF5's own metadata of a given structure never changes, so it is made once, by the HDF5
library, and each checkpoint repeats it around new tensors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from mlflow_ckpt import keras_internals
from mlflow_ckpt.keras_internals import CannotRecord, RecordedTensor, Recording


@dataclass(frozen=True)
class Layout:
    """One `.weights.h5` as a sequence of pieces.

    Attributes:
        pieces: In file order: bytes to repeat, or the index of a tensor.
        tensors: What is at each index.
        size: Bytes of the whole file.
        state_bytes: Bytes of all tensors.
    """

    pieces: tuple[bytes | int, ...]
    tensors: Sequence[RecordedTensor]
    size: int
    state_bytes: int


def record(model: keras.Model) -> tuple[Recording, Layout]:
    """Let Keras walk over the model, and keep what it would write but for the data.

    Raises:
        CannotRecord: If the file cannot be taken apart that way.
    """
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        path = Path(folder) / "layout.weights.h5"
        recording = keras_internals.record_state(model, path)
        return recording, _take_apart(path, recording.tensors)


def _take_apart(path: Path, tensors: Sequence[RecordedTensor]) -> Layout:
    placed = sorted((t.offset, i) for i, t in enumerate(tensors) if t.offset is not None)
    size = path.stat().st_size
    pieces: list[bytes | int] = []
    position = 0
    with path.open("rb") as file:
        for offset, index in placed:
            if offset < position:
                raise CannotRecord(f"The tensor {tensors[index].key!r} overlaps another one.")
            file.seek(position)
            pieces += [file.read(offset - position), index]
            position = offset + tensors[index].nbytes
        if size < position:
            raise CannotRecord("The file ends before its last tensor does.")
        file.seek(position)
        pieces.append(file.read())
    state_bytes = sum(tensor.nbytes for tensor in tensors)
    return Layout(tuple(p for p in pieces if p != b""), tensors, size, state_bytes)
