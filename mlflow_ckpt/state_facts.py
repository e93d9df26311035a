"""Read from a training state what two checkpoints can be compared by, without Keras.

That is the variables that no model file holds, mostly seed generators, and the input of the
`fit`: batch size, batches of an epoch, element spec. Neither callbacks nor their arrays are read.
Format: see `training_state.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from mlflow_ckpt import plain_json
from mlflow_ckpt.errors import IntegrityError, ManifestError
from mlflow_ckpt.format_version import check_format
from mlflow_ckpt.mapped import mapped, opened
from mlflow_ckpt.members import STATE
from mlflow_ckpt.stored_tensors import Tensor, tensor_of
from mlflow_ckpt.tensor_names import Name

# Bytes that the values of the JSON may take.
_MOST = 96 << 20


@dataclass(frozen=True, kw_only=True)
class StateFacts:
    """What is compared of one training state.

    Attributes:
        tensors: The variables that no model file holds, in their order.
        input: What the input of the `fit` was like; `None` if it did not say.
    """

    tensors: list[Tensor]
    input: Mapping[str, Any] | None


def read(file: BinaryIO) -> StateFacts:
    """Read an open, verified file.

    Raises:
        FormatTooNew: If its major version is newer than 1.
        ManifestError: If it is no training state.
    """
    try:
        return _read(file)
    except Exception as error:
        if isinstance(error, IntegrityError):
            raise
        raise ManifestError(f"{STATE} is not a training state of format 1.x: {error!r}") from error


def _read(file: BinaryIO) -> StateFacts:
    with ExitStack() as undo:
        view = undo.enter_context(memoryview(mapped(file)))
        stored, h5 = opened(view)
        undo.enter_context(h5)
        check_format(h5.attrs["format"], STATE)
        places = {each.path: each for each in stored}
        text = places["/state"]
        tree = plain_json.loads(view[text.start or 0 :][: text.size], most=_MOST)
        tensors = []
        for order, variable in enumerate(tree["variables"]):
            path, array = str(variable["path"]), f"/arrays/{variable['value']['$array']}"
            name = Name(layer="", variable=path, key=(path, ""), order=order)
            tensors.append(replace(tensor_of(h5[array], places[array]), name=name))
        guard = tree.get("guard") or {}
        return StateFacts(tensors=tensors, input=_decoded(guard.get("data")))


def _decoded(value: Any) -> Any:
    """Plain values, in which a tuple is a list to us."""
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {"$tuple"}:
        return _decoded(value["$tuple"])
    return {key: _decoded(each) for key, each in value.items()}
