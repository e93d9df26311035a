"""Keras's own walk over a model's state, recorded instead of written.

`saving_lib._save_state` decides what a `.weights.h5` holds, under which path, and lets
every layer save itself its own way. The recorder stands in for its HDF5 store: it makes
each dataset without its data and notes which variable the data comes from.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras.src import backend
from keras.src.saving import saving_lib
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.saving.serialization_lib import ObjectSharingScope

from mlflow_ckpt.keras_internals._variables import dtype_of

_BFLOAT16 = "bfloat16"

# Attributes of a model that a `fit`, `evaluate` or `predict` sets and no file shows.
CHANGED_BY_FIT = frozenset(
    {
        "history",
        "stop_training",
        "stop_evaluating",
        "stop_predicting",
        "_epoch_iterator",
        "_eval_epoch_iterator",
        "_initial_epoch",
        "train_function",
        "test_function",
        "predict_function",
        "_tracked",  # names of dropout masks, once more with each trace
    }
)


class CannotRecord(Exception):
    """Keras would store something that has no fixed place in its file; let Keras write it."""


@dataclass(frozen=True)
class RecordedTensor:
    """One dataset of the file that Keras would write.

    Attributes:
        owner: The layer, optimizer or metric that stores it.
        key: Its key among the owner's variables.
        variable: The variable it is a plain copy of; `None` if the owner computes it.
        shape, dtype: Those of the dataset.
        offset: Position of its first byte in the HDF5 file; `None` if it has no bytes.
    """

    owner: Any
    key: str
    variable: Any | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True)
class Recording:
    """What one walk found.

    Attributes:
        tensors: In the order in which Keras stores them.
        owners: Everything that was asked for its variables, in order.
        with_assets: Those of them that also store files: `(path in the archive, owner)`.
    """

    tensors: Sequence[RecordedTensor]
    owners: Sequence[Any]
    with_assets: Sequence[tuple[str, Any]]


class _Recorder(saving_lib.H5IOStore):
    """An HDF5 store that reserves room for each value and keeps none."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="w")
        self.tensors: list[RecordedTensor] = []
        self.owners: list[Any] = []
        self.paths: list[str] = []

    def make(self, path: str, metadata: dict[str, Any] | None = None) -> Any:
        # Keras hands the store a path and no object; the object is in the frame that calls us.
        names = sys._getframe(1).f_locals
        if "saveable" not in names:
            raise CannotRecord("Expected keras.src.saving.saving_lib._save_state as the caller.")
        self.owners.append(names["saveable"])
        self.paths.append(path)
        return super().make(path, metadata)

    def __setitem__(self, key: str, value: Any) -> None:
        if not self._h5_entry_initialized:
            self._create_h5_group(self._h5_entry_path)
        owner = self.owners[-1]
        variable = _variable_behind(owner, key, value)
        shape, dtype = _shape_and_dtype(value if variable is None else variable)
        try:
            backend.standardize_dtype(dtype)
        except ValueError as error:
            # Keras refuses it too, in its own words.
            raise CannotRecord(f"The value {key!r} has the type {dtype}.") from error
        dataset = _reserve(self._h5_entry_group, key, shape, dtype)
        if dtype.name == _BFLOAT16:
            dataset.attrs["dtype"] = _BFLOAT16
        offset = dataset.id.get_offset()
        found = RecordedTensor(owner, key, variable, shape, dtype, offset)
        if found.nbytes and (offset is None or dataset.id.get_storage_size() != found.nbytes):
            raise CannotRecord(f"The dataset {dataset.name!r} has no place of its own.")
        self.tensors.append(found)


def record_state(model: keras.Model, path: Path) -> Recording:
    """Write to `path` the `.weights.h5` that Keras would write, without the data of its tensors.

    The file is sparse: it takes as little space as its metadata.

    Raises:
        CannotRecord: If something in it has no fixed place.
    """
    store = _Recorder(path)
    try:
        saving_lib._save_state(
            model, weights_store=store, assets_store=None, inner_path="", visited_saveables=set()
        )
    finally:
        store.close()
    with_assets = [
        (where, owner)
        for where, owner in zip(store.paths, store.owners, strict=True)
        if hasattr(owner, "save_assets")
    ]
    return Recording(store.tensors, store.owners, with_assets)


def _variable_behind(owner: Any, key: str, value: Any) -> Any | None:
    """The variable whose plain value is stored, if Keras's own code stores it."""
    if not is_stock(type(owner).save_own_variables):
        return None
    if isinstance(value, keras.Variable):
        return value
    if isinstance(owner, keras.optimizers.Optimizer):
        # Optimizers store `variable.numpy()`, under the variable's position.
        return owner.variables[int(key)]
    return None


def is_stock(what: Any) -> bool:
    """Whether a class or function is Keras's own."""
    module = str(getattr(what, "__module__", ""))
    return module == "keras" or module.startswith("keras.")


def _shape_and_dtype(value: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if isinstance(value, keras.Variable):
        return tuple(int(n) for n in value.shape), dtype_of(value)
    array = backend.convert_to_numpy(value)
    return tuple(array.shape), array.dtype


def _reserve(
    group: h5py.Group, key: str, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> h5py.Dataset:
    """Create a contiguous dataset whose bytes have their place and are not written."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
    try:
        kind = h5py.h5t.py_create(dtype, logical=True)
    except TypeError as error:
        raise CannotRecord(f"HDF5 has no type for {dtype} of {key!r}.") from error
    group[key] = h5py.Dataset(h5py.h5d.create(group.id, None, kind, space, layout))
    return group[key]


def is_like(value: Any, tensor: RecordedTensor) -> bool:
    """Whether a variable or an array has the shape and dtype that were recorded."""
    return _shape_and_dtype(value) == (tensor.shape, tensor.dtype)


def is_saveable(value: Any) -> bool:
    """Whether Keras's walk would look at `value`: a layer, model, optimizer, metric or loss."""
    return isinstance(value, KerasSaveable)


def own_variables(owner: Any) -> dict[str, Any]:
    """Let a layer save itself its own way, now.

    Returns:
        Its keys, each with a variable, or with a private copy of the value it computed.
    """
    store: dict[str, Any] = {}
    owner.save_own_variables(store)
    return {
        key: value
        if isinstance(value, keras.Variable)
        else np.array(backend.convert_to_numpy(value))
        for key, value in store.items()
    }


def own_assets(owner: Any, directory: Path) -> Iterator[tuple[str, bytes]]:
    """The files that a layer stores beside its variables: POSIX path below its folder, content."""
    owner.save_assets(str(directory))
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        yield path.relative_to(directory).as_posix(), path.read_bytes()


def serialize(model: keras.Model) -> tuple[dict[str, Any], dict[str, Any]]:
    """Content of `config.json` and `metadata.json`, as Keras writes them into a `.keras` file."""
    config, metadata = saving_lib._serialize_model_as_json(model)
    return json.loads(config), json.loads(metadata)


def serialize_shared(value: Any) -> Any:
    """`keras.saving.serialize_keras_object` inside Keras's scope for shared objects."""
    with ObjectSharingScope():
        return keras.saving.serialize_keras_object(value)


def weights_member() -> str:
    """Name of the weights inside a `.keras` archive."""
    return str(saving_lib._VARS_FNAME_H5)


def assets_folder() -> str:
    """Name of the folder of assets inside a `.keras` archive."""
    return str(saving_lib._ASSETS_DIRNAME)


def learning_rate_variable(optimizer: Any) -> Any | None:
    """The variable that an optimizer's config reads its learning rate from, if it has one."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, keras.Variable) else None
