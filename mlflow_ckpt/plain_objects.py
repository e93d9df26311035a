"""What a plain tree needs to know of NumPy, of random generators, and of Keras's variables.

Others may hold the same generator or variable, so its state goes into the object that is
there already, if that is of the same kind. Keras's and the frameworks' types are known by
the names of their classes: what is pure stays so, and imports none of them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_ckpt.errors import ConfigError, ManifestError
from mlflow_ckpt.state_schema import MOST_NUMBERS

GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)
_BIT_GENERATORS = frozenset({"MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"})
_FRAMEWORKS = frozenset({"tensorflow", "jax", "jaxlib", "torch"})

_NARROW = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2", "int4", "uint4"})
_PACKABLE = "biufcUSMm"
_WORDS = 625  # of the state of a `random.Random`: those of its Mersenne Twister, and a place
# Kind and bytes of the numbers that HDF5 has a type for everywhere.
_NATIVE = frozenset({("f", 2), ("f", 4), ("f", 8), ("c", 8), ("c", 16)})


# --- arrays -------------------------------------------------------------------


def is_native(array: np.ndarray[Any, Any]) -> bool:
    """Whether `training_state` stores such an array as it is."""
    kind = array.dtype.kind
    if not array.dtype.isnative:  # HDF5 gives a single number back in this machine's order.
        return False
    return kind in "biu" or (kind, array.itemsize) in _NATIVE or array.dtype.name in _NARROW


def packed(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """An array of another dtype (text, dates, wide floats, another byte order) as its bytes.

    Raises:
        ConfigError: If it holds objects or records.
    """
    if array.dtype.kind not in _PACKABLE:
        raise ConfigError(f"Expected numbers or text. Received: dtype={array.dtype}")
    data = np.frombuffer(array.tobytes(), dtype=np.uint8)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "data": data}


def unpacked(tree: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """The array of `packed`.

    Raises:
        ManifestError: If it is of a dtype that `packed` refuses.
    """
    dtype = np.dtype(str(tree["dtype"]))
    if dtype.kind not in _PACKABLE:
        raise ManifestError(f"Expected numbers or text. Received: dtype={tree['dtype']!r}")
    # Copied, because others may hold the bytes; once, because they may be many.
    found: np.ndarray[Any, Any] = tree["data"].reshape(-1).view(np.uint8).copy()
    return found.view(dtype).reshape(tree["shape"])


def as_list(value: Any) -> list[Any]:
    """`value`, which a tree has where only a list can stand.

    An array there would be gone through number by number, and become forty times as large.

    Raises:
        ManifestError: If it is anything else.
    """
    if not isinstance(value, list):
        raise ManifestError(f"Expected a list. Received: a value of type {type(value).__name__}")
    return value


def as_array(numbers: list[Any]) -> np.ndarray[Any, Any] | None:
    """The numbers as an array that gives each one back as it is; else `None`.

    Raises:
        ConfigError: If there are more than `MOST_NUMBERS`.
    """
    kinds = set(map(type, numbers))
    if kinds not in ({float}, {int}):
        return None
    if len(numbers) > MOST_NUMBERS:
        raise ConfigError(
            f"Expected at most {MOST_NUMBERS} numbers in lists. Received: {len(numbers)}. "
            "An array may hold more"
        )
    try:
        return np.array(numbers, dtype=np.float64 if kinds == {float} else np.int64)
    except OverflowError:
        return None


def unpacked_numbers(values: np.ndarray[Any, Any]) -> list[Any]:
    if values.ndim != 1 or values.dtype not in (np.float64, np.int64):
        raise ManifestError(f"Expected numbers of 8 bytes each. Received: {values.dtype}")
    if values.size > MOST_NUMBERS:
        raise ManifestError(f"Expected at most {MOST_NUMBERS} numbers. Received: {values.size}")
    numbers: list[Any] = values.tolist()
    return numbers


# --- random generators --------------------------------------------------------


def state_of(generator: Any) -> dict[str, Any]:
    """State of one of `GENERATORS`.

    Raises:
        ConfigError: If it draws its bits from a generator that is not NumPy's own.
    """
    if isinstance(generator, random.Random):
        version, words, gauss = generator.getstate()
        return {"version": version, "words": np.asarray(words, np.uint32), "gauss": gauss}
    if isinstance(generator, np.random.Generator):
        state: dict[str, Any] = dict(generator.bit_generator.state)
    else:
        state = dict(generator.get_state(legacy=False))
    if state["bit_generator"] not in _BIT_GENERATORS:
        raise ConfigError(f"Expected NumPy's own. Received: {state['bit_generator']}")
    return state


def with_state(kind: str, state: Mapping[str, Any], present: Any) -> Any:
    """A generator of the class named `kind` in this state: `present`, if it is of that kind.

    Raises:
        ManifestError: If `kind` is none of `GENERATORS`.
    """
    if kind == "Random":
        _check_words(state["words"])
        python = present if type(present) is random.Random else random.Random()
        python.setstate((state["version"], tuple(state["words"].tolist()), state["gauss"]))
        return python
    bits = state["bit_generator"]
    if kind not in ("Generator", "RandomState") or bits not in _BIT_GENERATORS:
        raise ManifestError(f"Expected a generator of NumPy's. Received: {kind!r} on {bits!r}")
    maker = getattr(np.random, kind)
    _check_places(bits, state)
    same = type(present) is maker and _bits(present) == bits
    generator = present if same else maker(getattr(np.random, bits)())
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
    return generator


def _check_words(words: Any) -> None:
    """Raise before an array of any size becomes a tuple."""
    if not isinstance(words, np.ndarray) or words.shape != (_WORDS,) or words.dtype.kind != "u":
        found = getattr(words, "shape", type(words).__name__), getattr(words, "dtype", None)
        raise ManifestError(f"Expected an array of {_WORDS} words. Received: {found!r:.80}")


def _check_places(bits: str, state: Mapping[str, Any]) -> None:
    """Raise if a generator would draw from beside its words: NumPy looks at no place twice."""
    if bits == "MT19937":
        words, place, size = state["state"]["key"], state["state"]["pos"], 624
    elif bits == "Philox":
        words, place, size = state["buffer"], state["buffer_pos"], 4
    else:
        return
    if len(words) != size or type(place) is not int or not 0 <= place <= size:
        raise ManifestError(f"Expected a place among {size} words of {bits}. Received: {place!r}")


def _bits(generator: Any) -> str:
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    return str(generator.get_state(legacy=False)["bit_generator"])


# --- tensors and variables ----------------------------------------------------


def is_tensor(value: Any) -> bool:
    """Whether it is a tensor of a framework, which can become an array and not change."""
    return _roots(value) & _FRAMEWORKS != set() and hasattr(type(value), "__array__")


def variables_of(value: Any) -> Sequence[Any] | None:
    """What can be assigned in a variable, a seed generator or a metric of Keras, else `None`."""
    names = {c.__name__ for c in type(value).__mro__ if _root(c) in ("keras", "tensorflow")}
    if "Variable" in names:
        return [value]
    if "SeedGenerator" in names:
        return [value.state]
    return list(value.variables) if "Metric" in names else None


def assign(present: Any, values: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Assign to the variables in `present`; return whether their shapes are those of `values`."""
    found = variables_of(present)
    if found is None or [tuple(v.shape) for v in found] != [v.shape for v in values]:
        return False
    for variable, value in zip(found, values, strict=True):
        variable.assign(value)
    return True


def _roots(value: Any) -> set[str]:
    return {_root(c) for c in type(value).__mro__}


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]
