"""Read the tensors of a verified weights file in blocks, without Keras and without a copy of it.

    Fetched -> StoredWeights: tensors with their names -> blocks(tensor) -> NumPy arrays

The file is looked through before HDF5 opens it (`mapped.py`), and HDF5 reads no more than the
metadata. The numbers are read from the file itself, where each tensor is one run of bytes, into a
buffer of one block: so memory does not grow with the model. Sizes are in bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np

from mlflow_ckpt import plain_json, tensor_names
from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.hdf5 import Stored
from mlflow_ckpt.mapped import MappedWeights
from mlflow_ckpt.members import CONFIG, MODEL, WEIGHTS
from mlflow_ckpt.say import first_line
from mlflow_ckpt.tensor_names import Name, Shape

FILES = (MODEL, WEIGHTS, CONFIG)
ASSETS = "assets/"
# Elements that are held at once, of each of two tensors: 2 MiB as float64.
BLOCK = 1 << 18
_CONFIG_MEMBER = "config.json"
_OPTIMIZER = "optimizer"

_UNNAMED = Name(layer="", variable="", key=("", ""), order=0)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One dataset of a weights file.

    Attributes:
        path: Where it lies in the HDF5 file.
        shape, dtype: Of the variable: `bfloat16`.
        raw: How its elements lie there.
        start: Where they begin in the file around it.
        name: What it is called.
    """

    path: str
    shape: Shape
    dtype: str
    raw: np.dtype[Any]
    start: int
    name: Name = _UNNAMED

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def blocks(file: BinaryIO, tensor: Tensor, count: int = BLOCK) -> Iterator[Array]:
    """The elements of a tensor in their order, `count` at a time; the last block is shorter.

    Raises:
        ModelNotLoadable: If the file ends before they do: somebody writes into it.
    """
    width = tensor.raw.itemsize
    for first in range(0, tensor.size, count):
        length = min(count, tensor.size - first) * width
        file.seek(tensor.start + first * width)
        data = file.read(length)
        if len(data) != length:
            raise _unlike(f"a file that became shorter while {tensor.path!r} was read.")
        yield np.frombuffer(data, tensor.raw)


class StoredWeights:
    """The weights and the config of one checkpoint; a context manager.

    Args:
        files: Open and verified, by their path in the checkpoint.
        recorded: Its fingerprint: see `fingerprint.py`.

    Attributes:
        config: Keras's config of the model; `None` where it has none.
        file: Where the tensors lie.
        is_whole: Whether it is a `.keras` file, which also holds `assets`.
        tensors: Those of the model, in its order.
        optimizers: Those of each optimizer, by the attribute that holds it; see
            `tensor_names.slots`.

    Raises:
        ModelNotLoadable: If a file is not what Keras writes.
    """

    def __init__(self, files: Mapping[str, BinaryIO], recorded: Mapping[str, Any]) -> None:
        self.is_whole = WEIGHTS not in files
        self.file = files[MODEL if self.is_whole else WEIGHTS]
        with ExitStack() as undo:
            self._mapped = undo.enter_context(MappedWeights(self.file))
            self.config = self._read_config(files)
            self.tensors, self.optimizers = _Reader(self._mapped, recorded).read()
            self._close = undo.pop_all()

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    @property
    def assets(self) -> list[str]:
        """Names of what the layers keep beside their variables: vocabularies."""
        return sorted(name for name in self._mapped.members if name.startswith(ASSETS))

    def asset(self, name: str) -> bytes:
        """One of `assets`."""
        return self._mapped.member(name)

    def _read_config(self, files: Mapping[str, BinaryIO]) -> dict[str, Any] | None:
        if MODEL in files:
            raw = self._mapped.member(_CONFIG_MEMBER)
        elif CONFIG in files:
            files[CONFIG].seek(0)
            raw = files[CONFIG].read()
        else:
            return None
        try:
            found = plain_json.loads(raw)
        except ValueError as error:
            raise _unlike(first_line(error)) from error
        if not isinstance(found, dict):
            raise _unlike(f"{type(found).__name__}.")
        return found

    def number(self, tensor: Tensor) -> float | int | None:
        """The value of a tensor of one element; `None` if that is no finite number."""
        if tensor.size != 1 or tensor.raw.kind not in "iuf":
            return None
        (block,) = blocks(self.file, tensor)
        value = block[0]
        if tensor.raw.kind in "iu":
            return int(value)
        found = float(str(value))  # 0.001 as it was written, not what float32 makes of it
        return found if math.isfinite(found) else None


def _unlike(what: str) -> ModelNotLoadable:
    return ModelNotLoadable(
        f"Expected the config and weights of a model as Keras writes them. Received: {what} Take "
        "another checkpoint."
    )


class _Reader:
    """Finds out what the datasets of a file are."""

    def __init__(self, mapped: MappedWeights, recorded: Mapping[str, Any]) -> None:
        self._mapped = mapped
        self._stored = {each.path: each for each in mapped.stored}
        self._variables = recorded.get("variables", [])
        self._optimizers = {each["attribute"]: each for each in recorded.get("optimizers", [])}

    def read(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        found = {
            path: tensor_of(self._mapped.h5[path], stored, self._mapped.start)
            for path, stored in self._stored.items()
        }
        of_model = {path: each for path, each in found.items() if not self._owners(path)}
        described = {path: (each.shape, each.dtype) for path, each in of_model.items()}
        named, positions = tensor_names.name_all(described, self._names(), self._variables)
        tensors = [replace(each, name=named[path]) for path, each in of_model.items()]
        optimizers = {
            attribute: list(self._slots(attribute, found, positions))
            for attribute in sorted({owner for path in found for owner in self._owners(path)})
        }
        return sorted(tensors, key=lambda tensor: tensor.name.order), optimizers

    def _owners(self, path: str) -> tuple[str, ...]:
        """The optimizer that a dataset is of, if it is of none of the model's layers."""
        first = path.split("/")[1]
        known = first in self._optimizers or (first == _OPTIMIZER and not self._optimizers)
        return (first,) if known else ()

    def _names(self) -> dict[str, str]:
        """The names that Keras notes of objects, by their place; of the model's at ""."""
        places = {
            place for path in self._stored for place in _around(path.strip("/").rpartition("/")[0])
        }
        found = {}
        for place in places:
            group = self._mapped.h5.get(f"{place}/vars")
            name = group.attrs.get("name") if isinstance(group, h5py.Group) else None
            if isinstance(name, str):
                found[place] = name
        return found

    def _slots(
        self, attribute: str, found: Mapping[str, Tensor], positions: Mapping[int, Name]
    ) -> Iterator[Tensor]:
        """An optimizer's variables; those that it has from an inner one lie there once more."""
        recorded = self._optimizers.get(attribute, {"variables": [], "trains": []})
        trained = [(self._variables[n][0], self._trained(n, positions)) for n in recorded["trains"]]
        names = tensor_names.slots(recorded["variables"], trained)
        paths = [f"/{attribute}/vars/{n}" for n in range(len(names))]
        shapes = [tuple(shape) for _, shape, _ in recorded["variables"]]
        if not names or [found[path].shape for path in paths if path in found] != shapes:
            paths = [path for path in found if self._owners(path) == (attribute,)]
            kinds = [path.removeprefix(f"/{attribute}/") for path in paths]
            names = [Name(layer=k, variable="", key=(k, ""), order=0) for k in kinds]
        for path, name in zip(paths, names, strict=True):
            yield replace(found[path], name=name)

    def _trained(self, position: int, positions: Mapping[int, Name]) -> Name:
        path = self._variables[position][0]
        unknown = Name(layer="", variable=path, key=("", path), order=position)
        return positions.get(position, unknown)


def _around(place: str) -> Iterator[str]:
    """A place and those that it lies in, the whole file included."""
    while place:
        yield place
        place = place.rpartition("/")[0]
    yield place


def tensor_of(dataset: h5py.Dataset, stored: Stored, offset: int = 0) -> Tensor:
    """A dataset of an HDF5 file that begins at `offset` of the one it is read from."""
    dtype = _dtype(dataset)
    known = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(np.bool_)}
    return Tensor(
        path=stored.path,
        shape=dataset.shape,
        dtype=dtype,
        raw=known.get(dtype, np.dtype(dataset.dtype.str)),
        start=offset + (stored.start or 0),
    )


def _dtype(dataset: h5py.Dataset) -> str:
    """HDF5 does not know bfloat16: it is stored as two opaque bytes with an attribute."""
    found = dataset.dtype
    if found.kind in "SV":
        narrow = found.itemsize == 2 and dataset.attrs.get("dtype") == "bfloat16"
        return "bfloat16" if narrow else str(found.str)
    return str(found.name)
