"""Everything a resume needs beyond the model file, in one `state/training_state.h5`.

    live fit -> capture() -> dict -> write() -> file -> read() -> dict -> restore_*()

Format 1.0: the dataset `state` holds UTF-8 JSON as bytes; an array stands in it as
{"$array": "<index>"} and lies in the group `arrays` under that index, with its NumPy
dtype name in the attribute `dtype` (what HDF5 has no type for, such as bfloat16, lies
there as unsigned integers). A mapping's key that begins with $ has it twice. No pickle.
"""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

import h5py
import keras
import ml_dtypes
import numpy as np

from mlflow_ckpt import keras_internals, members, plain_json, state_schema
from mlflow_ckpt.errors import ConfigError, FormatTooNew, IntegrityError, ManifestError
from mlflow_ckpt.format_version import check_format
from mlflow_ckpt.hdf5 import SIGNATURE, Stored
from mlflow_ckpt.hdf5_types import Unlike
from mlflow_ckpt.mapped import mapped, opened

PATH = members.STATE
FORMAT = "1.0"
# Bytes that the values of the JSON may take; what callbacks make of them comes on top.
_MOST = 96 << 20
_NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4")


@runtime_checkable
class Later(Protocol):
    """A value that becomes an array when the file is written, behind the training."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]: ...


# --- the file -----------------------------------------------------------------


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` (JSON values, tuples, NumPy arrays and scalars) to `path`.

    Raises:
        ConfigError: If a value is of another type; its place in the tree is named. Or if
            there are so many values that `read` would refuse them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps(_encode(state, arrays, "state")).encode()
    _check_size(state, text)
    with h5py.File(path, "w") as file:
        file.attrs["format"] = FORMAT
        file.create_dataset("state", data=np.frombuffer(text, dtype=np.uint8))
        group = file.create_group("arrays")
        for index, array in enumerate(arrays):
            narrow = array.dtype.name in _NARROW
            raw = array.view(f"u{array.itemsize}") if narrow else array
            group.create_dataset(str(index), data=raw).attrs["dtype"] = array.dtype.name


def _check_size(state: Mapping[str, Any], text: bytes) -> None:
    try:
        plain_json.check_size(text, most=_MOST)
        state_schema.check_numbers(state)
    except ValueError as error:
        raise ConfigError(
            f"The training state is larger than one that can be read: {error}. Keep what the "
            "callbacks remember in NumPy arrays, or remember less."
        ) from error


def check_plain(value: Any) -> None:
    """Raise `ConfigError` if `write` could not store `value`."""
    _encode(value, [], "value")


def read(file: Path | BinaryIO | None) -> dict[str, Any]:
    """Read what a `fit` wrote with `write`, and hold it against what a resume reads of it.

    Args:
        file: Open, and verified; a path is opened as it is. `None`: the checkpoint has none.

    Raises:
        FormatTooNew: If its major version is newer than 1, or it is an HDF5 file of a layout
            that no 1.x has.
        ManifestError: If it is not a training state, or not of a `fit`; the place is named.
    """
    if file is None:
        raise ManifestError(f"The checkpoint holds no {PATH}, so no fit can continue from it.")
    state = read_tree(file)
    state_schema.check(state)
    return state


def read_tree(file: Path | BinaryIO) -> dict[str, Any]:
    """Read what `write` wrote, whatever it means.

    Raises:
        FormatTooNew, ManifestError: As `read`.
    """
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened_file:
                return _read_mapped(mapped(opened_file))
        return _read_mapped(mapped(file))
    except Exception as error:
        if isinstance(error, IntegrityError):
            raise
        raise ManifestError(f"{PATH} is not a training state of format 1.x: {error!r}") from error


def _read_mapped(content: mmap.mmap | bytes) -> dict[str, Any]:
    """Read the tree out of a map; its arrays are copies."""
    with memoryview(content) as view:
        try:
            stored, h5 = opened(view)
        except Unlike as error:
            _refuse_newer_layout(view, error)
            raise
        with h5:
            check_format(h5.attrs["format"], PATH)
            tree = plain_json.loads(_bytes_of(view, stored), most=_MOST)
            decoded = _decode(tree, _Arrays(h5["arrays"]))
    if not isinstance(decoded, dict):
        raise ManifestError(f"{PATH} holds {type(decoded).__name__} instead of a mapping.")
    return decoded


def _refuse_newer_layout(view: memoryview, error: Unlike) -> None:
    """Raise if the file is of another kind of HDF5 than every 1.x is.

    Its version cannot be seen: who reads no such file must not let HDF5 look for it. But its
    digest was right, so somebody wrote it like that, and it is no damage to be marked.
    """
    start, version = bytes(view[: len(SIGNATURE)]), bytes(view[len(SIGNATURE) :][:1])
    if start == SIGNATURE and version in (b"\1", b"\2", b"\3"):
        raise FormatTooNew(
            f"{PATH} is an HDF5 file with a superblock of version {version[0]}, of a format that "
            "cannot be told, and this version of mlflow-ckpt reads up to 1.x, with one of version "
            "0: upgrade with `pip install -U mlflow-ckpt`, or take another checkpoint."
        ) from error


def _bytes_of(view: memoryview, stored: Sequence[Stored]) -> bytes:
    """The JSON: datasets do not overlap, so it is no larger than the file."""
    (found,) = (each for each in stored if each.path == "/state")
    return bytes(view[found.start or 0 : (found.start or 0) + found.size])


class _Arrays:
    """Gives out each array once: a tree that names one often would multiply it."""

    def __init__(self, group: h5py.Group) -> None:
        self._group = group
        self._given: set[str] = set()

    def __call__(self, index: str) -> np.ndarray[Any, Any]:
        if not index.isdecimal() or index in self._given:
            raise ValueError(f"the array {index!r}, which there is not, or twice")
        self._given.add(index)
        dataset = self._group[index]
        array: np.ndarray[Any, Any] = np.asarray(dataset[()])
        name = str(dataset.attrs["dtype"])
        if name in _NARROW:
            return array.view(np.dtype(getattr(ml_dtypes, name)))
        if name != array.dtype.name:
            raise ValueError(f"an array of {array.dtype.name} that says {name}")
        return array


def _encode(value: Any, arrays: list[np.ndarray[Any, Any]], where: str) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (np.ndarray, np.generic)) and (
        value.dtype.kind in "biufc" or value.dtype.name in _NARROW
    ):
        arrays.append(np.asarray(value))
        return {"$array": str(len(arrays) - 1)}
    if isinstance(value, Later) and not isinstance(value, (np.ndarray, np.generic)):
        return _encode(np.asarray(value), arrays, where)
    if isinstance(value, tuple):
        return {"$tuple": [_encode(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(v, arrays, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        # Our own keys begin with one $; a key that begins with one gets another.
        return {
            f"${k}" if k.startswith("$") else k: _encode(v, arrays, f"{where}.{k}")
            for k, v in value.items()
        }
    raise ConfigError(
        "Expected plain values, lists, string-keyed mappings and NumPy arrays. "
        f"Received: {where}={type(value).__name__}"
    )


def _decode(value: Any, array: Callable[[str], Any]) -> Any:
    """What `_encode` was given; lists and mappings are filled anew, and not made twice."""
    if isinstance(value, list):
        for index, each in enumerate(value):
            if isinstance(each, (list, dict)):
                value[index] = _decode(each, array)
        return value
    if not isinstance(value, dict):
        return value
    if set(value) == {"$array"}:
        return array(str(value["$array"]))
    if set(value) == {"$tuple"}:
        return tuple(_decode(v, array) for v in value["$tuple"])
    for key, each in value.items():
        if isinstance(each, (list, dict)):
            value[key] = _decode(each, array)
    if any(key.startswith("$$") for key in value):
        return {k[1:] if k.startswith("$$") else k: v for k, v in value.items()}
    return value


# --- variables and generators -------------------------------------------------


def capture_variables(model: keras.Model) -> list[dict[str, Any]]:
    """Variables that no model file holds: seed generators of Dropout, augmentation and the like."""
    return [
        {"path": v.path, "value": keras.ops.convert_to_numpy(v)} for v in _unsaved_variables(model)
    ]


def restore_variables(model: keras.Model, saved: Sequence[Mapping[str, Any]]) -> list[str]:
    """Assign what `capture_variables` returned, by position; return the paths left alone."""
    variables = _unsaved_variables(model)
    if [tuple(v.shape) for v in variables] != [np.shape(entry["value"]) for entry in saved]:
        return [v.path for v in variables]
    for variable, entry in zip(variables, saved, strict=True):
        variable.assign(entry["value"])
    return []


def _unsaved_variables(model: keras.Model) -> list[Any]:
    known = {id(v) for v in model.weights} | {id(v) for v in model.metrics_variables}
    return [v for v in model.variables if id(v) not in known]


def capture_metrics(model: keras.Model) -> list[dict[str, Any]]:
    """Variables of the metrics: what an epoch has added up so far."""
    return [
        {"path": v.path, "value": keras.ops.convert_to_numpy(v)} for v in model.metrics_variables
    ]


def restore_metrics(model: keras.Model, saved: Sequence[Mapping[str, Any]]) -> list[str]:
    """Assign what `capture_metrics` returned, by position; return the paths left alone."""
    variables = model.metrics_variables
    shapes = [tuple(v.shape) for v in variables]
    if shapes != [np.shape(entry["value"]) for entry in saved]:
        return [entry["path"] for entry in saved]
    for variable, entry in zip(variables, saved, strict=True):
        variable.assign(entry["value"])
    return []


def capture_generators() -> dict[str, Any]:
    """State of Python's, NumPy's, Keras's and TensorFlow's global random generators."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, np.asarray(words, dtype=np.uint32), gauss],
        "numpy": [kind, np.asarray(keys), int(position), int(has_gauss), float(cached)],
        "keras": keras_internals.global_seed_state(),
        "tensorflow": keras_internals.tensorflow_random_state(),
    }


def restore_generators(saved: Mapping[str, Any]) -> None:
    """Put back what `capture_generators` returned."""
    if saved.get("keras") is None:
        keras_internals.forget_global_seed()
    else:
        keras_internals.restore_global_seed_state(saved["keras"])
    keras_internals.restore_tensorflow_random_state(saved.get("tensorflow"))
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(int(w) for w in words), gauss))
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, keys, position, has_gauss, cached))
