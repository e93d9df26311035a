"""Notice that a model is not built any more as it was: layers, config, compilation.

    learnt once: Structure(owners) -> before each checkpoint: stands()

Serializing a config takes milliseconds a layer, so this looks at the attributes that
configs are made from instead, which takes microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlflow_ckpt import keras_internals
from mlflow_ckpt.keras_internals import CHANGED_BY_FIT

_PLAIN = frozenset({bool, int, float, str})
# Items of a container that are compared one by one; longer ones hold data.
_SHORT = 64


class Structure:
    """How the layers, optimizers and models in `owners` are set up now.

    Args:
        owners: Everything that a file holds variables of.
    """

    def __init__(self, owners: Sequence[Any]) -> None:
        self._watched = _with_their_parts(owners)
        self._kept: list[Any] = []
        self._found = _attributes(self._watched, self._kept)

    def stands(self) -> bool:
        """Whether nothing has changed since."""
        return self._found == _attributes(self._watched)


def _with_their_parts(owners: Sequence[Any]) -> list[Any]:
    """The owners, and the objects of Keras's own that their configs describe.

    Initializers, regularizers, schedules, losses: each has attributes that a config shows.
    """
    found = {id(owner): owner for owner in owners}
    waiting = [owner for owner in owners if keras_internals.is_stock(type(owner))]
    while waiting:
        for value in _parts(waiting.pop()):
            if id(value) not in found and keras_internals.is_stock(type(value)):
                found[id(value)] = value
                waiting.append(value)
    return list(found.values())


def _parts(owner: Any) -> Iterator[Any]:
    for name, value in vars(owner).items():
        for part in _items(value) if isinstance(value, (dict, list, tuple)) else (value,):
            # `SerializableDict` keeps the arguments of `compile` in an attribute of this name.
            if hasattr(part, "get_config") or name == "_compile_config":
                yield part


def _items(container: Any) -> Sequence[Any]:
    return list(container.values()) if isinstance(container, dict) else container


def _attributes(watched: Sequence[Any], kept: list[Any] | None = None) -> list[Any]:
    """What changes when a model changes in a way that its file shows.

    Of Keras's own classes every attribute: numbers and text by value, also in short
    containers, anything else by identity. It costs microseconds a layer, a config
    milliseconds. Other classes may count and collect in their attributes, and their config
    is asked for each time; of them only what Keras's walk would follow.

    Args:
        watched: Owners and their parts.
        kept: Gets what was looked at by identity, so that no ID comes to mean another object.
    """
    found: list[Any] = []
    for one in watched:
        found.append(id(one))
        attributes = vars(one)
        if not keras_internals.is_stock(type(one)):
            found.append(_followed(attributes))
            continue
        if kept is not None:
            kept.append(list(attributes.values()))
        for name, value in attributes.items():
            kind: Any = type(value)
            if name in CHANGED_BY_FIT:
                continue
            if kind in _PLAIN:
                found.append(value)
            elif isinstance(value, (list, tuple, dict, set, np.ndarray)):
                found.append(_inside(value))
            else:
                # A tensor, such as a dropout mask, comes and goes with the step.
                passing = value is None or keras_internals.is_tensor_type(kind)
                found.append(None if passing else id(value))
    return found


def _inside(value: Any) -> Any:
    """A container as itself and, if it is short, by what is in it."""
    if isinstance(value, np.ndarray):
        return (id(value), value.tobytes() if value.size <= _SHORT else None)
    if not isinstance(value, (list, tuple, dict, set)):
        return value if type(value) in _PLAIN else id(value)
    inside = [_inside(v) for v in _items(value)] if len(value) <= _SHORT else None
    return (id(value), len(value), inside)


def _followed(value: Any) -> Any:
    """IDs of the variables and saveables in a value, through containers."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        known = isinstance(value, keras.Variable) or keras_internals.is_saveable(value)
        return id(value) if known else None
    return [found for v in value if (found := _followed(v)) not in (None, [])]
