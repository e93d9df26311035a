"""Notice that a model is not built any more as it was: layers, config, compilation.

    learnt once: Structure(owners) -> before each checkpoint: stands()

Serializing a config takes milliseconds a layer, so this looks at the attributes that
configs are made from instead, which takes microseconds.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlflow_ckpt import keras_internals
from mlflow_ckpt.keras_internals import CHANGED_BY_FIT

_PLAIN = frozenset({bool, int, float, str})
_CONTAINERS = (list, tuple, dict, set, np.ndarray)
# Items of a container that are compared one by one; longer ones hold data.
_SHORT = 64


class Structure:
    """How the layers, optimizers and models in `owners` are set up now.

    Args:
        owners: Everything that a file holds variables of.
    """

    def __init__(self, owners: Sequence[Any]) -> None:
        self._watched = [_Watched(one) for one in _with_their_parts(owners)]

    def stands(self) -> bool:
        """Whether nothing has changed since."""
        return all(watched.stands() for watched in self._watched)


class _Watched:
    """The attributes of one object.

    Of Keras's own classes every one counts: numbers and text by value, also in short
    containers, anything else by identity. Other classes may count and collect in their
    attributes, and their config is asked for each time; of them only what Keras's walk
    would follow counts.

    Nearly always nothing has changed, and every attribute is the very object it was: that
    is tried first. What was looked at is kept, so that no ID comes to mean another object.
    """

    def __init__(self, one: Any) -> None:
        self._attributes = vars(one)
        self._stock = keras_internals.is_stock(type(one))
        self._values = list(self._attributes.values())
        self._containers = [v for v in self._values if isinstance(v, _CONTAINERS)]
        self._inside = [_inside(v) for v in self._containers]
        self._found = self._look()

    def stands(self) -> bool:
        if self._stock and self._untouched():
            return True
        return self._found == self._look()

    def _untouched(self) -> bool:
        values = self._attributes.values()
        return (
            len(values) == len(self._values)
            and all(map(operator.is_, values, self._values))
            and all(
                _inside(c) == was for c, was in zip(self._containers, self._inside, strict=True)
            )
        )

    def _look(self) -> list[Any]:
        return _attributes(self._attributes) if self._stock else [_followed(self._attributes)]


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


def _attributes(attributes: Mapping[str, Any]) -> list[Any]:
    found: list[Any] = []
    for name, value in attributes.items():
        if name in CHANGED_BY_FIT:
            continue
        kind: Any = type(value)
        if kind in _PLAIN:
            found.append(value)
        elif isinstance(value, _CONTAINERS):
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
    if not isinstance(value, _CONTAINERS):
        return value if type(value) in _PLAIN else id(value)
    count = len(value)
    inside = [_inside(v) for v in _items(value)] if 0 < count <= _SHORT else None
    return (id(value), count, inside)


def _followed(value: Any) -> Any:
    """IDs of the variables and saveables in a value, through containers."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        known = isinstance(value, keras.Variable) or keras_internals.is_saveable(value)
        return id(value) if known else None
    return [found for v in value if (found := _followed(v)) not in (None, [])]
