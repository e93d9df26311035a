"""What Keras finds under a name alone, where a config says no module.

Old configs, and functions to this day, name a thing without saying where it is. Keras then
looks into the tables of `_TABLES` and, for a layer, into everything in `keras.src.layers`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
from keras.src import (
    activations,
    constraints,
    dtype_policies,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    quantizers,
    regularizers,
)
from keras.src.optimizers.schedules import learning_rate_schedule

_TABLES = (
    activations, constraints, dtype_policies, initializers, losses, metrics, optimizers,
    quantizers, regularizers,
)  # fmt: skip
# Below `keras.`: where it looks for a function of the module `builtins`.
BUILTIN = frozenset({
    "activations", "constraints", "initializers", "losses", "metrics", "optimizers", "regularizers",
})  # fmt: skip


@functools.cache
def _names() -> frozenset[str]:
    found = {*vars(layers), *vars(learning_rate_schedule), "InputLayer", "Functional"}
    found |= {name for name in vars(models) if not name.startswith("_")}
    found |= {name for table in _TABLES for name in table.ALL_OBJECTS_DICT}
    # Optimizers go by any spelling.
    return frozenset(name.lower() for name in found)


def is_own_name(name: str) -> bool:
    """Whether Keras may make something of its own of a `class_name` without a module."""
    return name.lower() in _names()


def is_own_function(name: str, known: Mapping[str, Any]) -> bool:
    """Whether Keras finds a function of the module `builtins`, as it stores all functions.

    Args:
        known: Custom objects by the name that Keras stores; it matches `package>name` too.
    """
    return (
        any(hasattr(getattr(keras, module), name) for module in BUILTIN)
        or any(name in table.ALL_OBJECTS_DICT for table in _TABLES)
        or any(each.endswith(f">{name}") for each in known)
    )
