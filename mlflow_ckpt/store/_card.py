"""Write what makes a checkpoint an MLflow model: MLmodel and its environment files.

MLflow writes them itself, through `mlflow.keras.save_model`, given a stand-in that has
no weights; so they are what this MLflow version wants, and no second model is saved.
The requirements are named instead of inferred: inferring costs about 10 s a call. They
are made once per process and signature and hold no run ID and no model ID.

`mlflow.keras` is imported where it is used: it brings Keras, which readers do not need.
"""

from __future__ import annotations

import functools
import json
import platform
import tempfile
import threading
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from mlflow_ckpt.say import errors_only

# Two series are written on two threads, and MLflow's loggers are everybody's.
_RENDERING = threading.Lock()
_BACKENDS = {
    "tensorflow": ("tensorflow", "tensorflow-cpu"),
    "jax": ("jax",),
    "torch": ("torch",),
}


def write_card(directory: Path, spec: Mapping[str, Any] | None) -> None:
    """Write the files into `directory`, beside `data/model.keras`.

    Args:
        directory: Folder of a whole-model checkpoint.
        spec: `inputs` and `outputs`, each a list of `[name or None, dtype, shape]` whose
            first dimension is -1; `None` where the model does not know them.
    """
    for path, data in prepare_card(spec):
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def prepare_card(spec: Mapping[str, Any] | None) -> tuple[tuple[str, bytes], ...]:
    """Make the files that `write_card` writes. The first time in a process takes seconds.

    Returns:
        Path and content of each.
    """
    with _RENDERING:
        return _render(json.dumps(spec, sort_keys=True))


class _NoWeights:
    """Stands in for the model: the checkpoint's own file takes the place of what it writes."""

    def save(self, path: str, **_: object) -> None:
        Path(path).touch()


@functools.lru_cache(maxsize=8)
def _render(spec_json: str) -> tuple[tuple[str, bytes], ...]:
    import mlflow.keras

    spec = json.loads(spec_json)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "model"
        # A subclassed model has no signature: MLflow's warning would blame its author.
        with errors_only("mlflow.keras.save"):
            mlflow.keras.save_model(
                _NoWeights(),
                str(root),
                signature=_signature(spec),
                pip_requirements=requirements(),
            )
        _forget_size(root / "MLmodel")
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".keras"]
        return tuple((p.relative_to(root).as_posix(), p.read_bytes()) for p in files)


def _forget_size(path: Path) -> None:
    """MLflow wrote the size of the stand-in; the manifest has the checkpoint's own."""
    card = Model.load(str(path))
    card.model_size_bytes = None
    card.save(str(path))


def _signature(spec: Mapping[str, Any] | None) -> ModelSignature | None:
    if not spec:
        return None
    schemas = {
        side: Schema([TensorSpec(_dtype(d), tuple(shape), name) for name, d, shape in spec[side]])
        for side in ("inputs", "outputs")
    }
    return ModelSignature(**schemas)


def _dtype(name: str) -> np.dtype[Any]:
    # NumPy has no bfloat16; Keras serves such models with float32 at their edges.
    return np.dtype({"string": "str", "bfloat16": "float32"}.get(name, name))


def requirements() -> list[str]:
    """Pinned packages that loading and serving a checkpoint needs."""
    import mlflow.keras

    backend = _BACKENDS.get(mlflow.keras.keras.backend.backend(), ())
    return [
        f"{name}=={found}"
        for name in ("keras", *backend, "numpy", "h5py", "pandas")
        if (found := _version(name))
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of every package that shapes a checkpoint."""
    names = ("mlflow-ckpt", "mlflow", "keras", "tensorflow", "tensorflow-cpu", "numpy", "h5py")
    found = {name: number for name in names if (number := _version(name))}
    return {"python": platform.python_version(), **found}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
