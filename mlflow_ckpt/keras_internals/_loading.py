"""Give Keras's own loader its tensors out of a map.

Every layer's `load_own_variables` still decides what goes where, and Keras still says what
is missing or does not fit: only `H5IOStore.__getitem__` answers differently. What it leans
on in `keras.src.saving.saving_lib` is named by `missing_seams`; where one is gone the
caller reads through Keras's public loaders instead.

TensorFlow copies a NumPy array twice on its way into a variable. A view makes it one copy,
into memory that the variable then owns.
"""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.saving import saving_lib

from mlflow_ckpt.keras_internals._deferred import deferred_values, may_defer, owned
from mlflow_ckpt.mapped import MappedWeights

# In bytes; below it, HDF5's own copy costs less than the detour.
LARGE = 1 << 16


def missing_seams() -> str | None:
    """What of Keras's loader is not where it was, or `None`."""
    wanted = {
        "_load_state": {"weights_store", "assets_store", "inner_path", "visited_saveables",
                        "failed_saveables", "error_msgs"},
        "_model_from_config": {"config_json", "custom_objects", "compile", "safe_mode"},
        "_raise_loading_failure": {"error_msgs"},
        "DiskIOStore": {"root_path", "mode"},
        "H5IOStore": {"path_or_io", "mode"},
    }  # fmt: skip
    for name, parameters in wanted.items():
        seam = getattr(saving_lib, name, None)
        if seam is None or not parameters <= set(inspect.signature(seam).parameters):
            return f"keras.src.saving.saving_lib.{name}"
    if not hasattr(saving_lib.H5IOStore, "_get_h5_file"):
        return "keras.src.saving.saving_lib.H5IOStore._get_h5_file"
    return None


class _View(np.ndarray[Any, Any]):
    """An array over the map that becomes a tensor by one copy.

    `tensorflow.convert_to_tensor`, which `Variable.assign` calls, asks for `__tf_tensor__`.

    Attributes:
        forget: Called once it was copied: a file that stays in memory beside its copy takes
            as much of it again.
    """

    forget: Callable[[], None] | None = None

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        import tensorflow

        plain = self.view(np.ndarray)
        takes = tensorflow.executing_eagerly() and plain.nbytes >= LARGE
        if takes and (dtype is None or dtype == tensorflow.as_dtype(plain.dtype)):
            array, tensor = owned(plain.shape, plain.dtype, filled=True)
            np.copyto(array, plain)
            if self.forget is not None:
                self.forget()
            return tensor
        return tensorflow.convert_to_tensor(plain, dtype=dtype, name=name)


class _Store(saving_lib.H5IOStore):
    """Keras's reader of a `.weights.h5` file, over a map that it does not own."""

    def __init__(self, weights: MappedWeights) -> None:
        self._weights = weights
        super().__init__(io.BytesIO(), mode="r")

    def _get_h5_file(self, path_or_io: object, mode: str | None = None) -> h5py.File:
        return self._weights.h5

    def __getitem__(self, key: str) -> Any:
        if _assigns_at_once(sys._getframe(1).f_globals.get("__name__", "")):
            dataset = self._h5_entry_group.get(key)
            if isinstance(dataset, h5py.Dataset):
                view = self._weights.view(dataset)
                if view is not None and view.nbytes >= LARGE:
                    found = view.view(_View)
                    found.forget = partial(self._weights.forget, dataset)
                    return found
        return super().__getitem__(key)

    def close(self) -> None:
        """Leave the file to its owner."""


def _assigns_at_once(module: str) -> bool:
    """Whether code of `module` assigns what it reads, and neither keeps nor changes it.

    Keras's layers and optimizers do, but for preprocessing. A class of the user's may do
    anything: it gets an array of its own, as from Keras.
    """
    return module.startswith("keras.src.") and ".preprocessing." not in module


def load_state(
    model: keras.Model,
    weights: MappedWeights,
    *,
    assets: Path | None = None,
    skip: Sequence[Any] = (),
) -> None:
    """Fill `model`, which is built, as Keras's loader would.

    Args:
        assets: Folder with the assets of its layers, if they are wanted too.
        skip: Objects to leave alone, such as optimizers.

    Raises:
        ValueError: If a layer refuses its variables. Others have theirs by then.
    """
    failed: set[int] = set()
    messages: dict[int, Any] = {}
    saving_lib._load_state(
        model,
        weights_store=_Store(weights),
        # Without an archive it takes nothing apart, and leaves the folder to its owner.
        assets_store=assets and saving_lib.DiskIOStore(str(assets), mode="r"),
        inner_path="",
        visited_saveables={id(each) for each in skip},
        failed_saveables=failed,
        error_msgs=messages,
    )
    if failed:
        saving_lib._raise_loading_failure(messages)


def rebuild(
    config: str,
    weights: MappedWeights,
    *,
    assets: Path | None,
    custom_objects: Mapping[str, Any] | None,
    compile: bool,
    safe_mode: bool,
) -> keras.Model:
    """Make the model that `config` describes and fill it: `keras.saving.load_model` in parts.

    Args:
        config: Keras's `config.json`.
    """

    def attempt() -> keras.Model:
        model = saving_lib._model_from_config(
            config, custom_objects=custom_objects, compile=compile, safe_mode=safe_mode
        )
        load_state(model, weights, assets=assets)
        return model

    if may_defer(config, custom_objects):
        with deferred_values() as deferred:
            model = attempt()
        if deferred.settle():
            return model
    return attempt()
