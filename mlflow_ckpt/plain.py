"""Turn a Python value into a plain tree that a file can hold, and back into the same type.

`training_state` stores JSON values and arrays. What callbacks remember is more than that:
sets, deques, NumPy scalars, generators. Here each of them gets a tag, so that it comes
back as what it was, without pickle: a tree names types from a fixed list, and no code.

    value -> Encoder.encode -> tree (a copy: arrays alone are shared) -> Decoder.decode -> value

JSON's own types, `str`-keyed mappings and arrays of numbers stay as they are; all else is
{"$type": <name>, ...}. Two references to one object come back as two objects.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from blake3 import blake3

from mlflow_ckpt.errors import ConfigError, ManifestError
from mlflow_ckpt.plain_objects import (
    GENERATORS,
    as_array,
    as_list,
    assign,
    is_native,
    is_tensor,
    packed,
    state_of,
    unpacked,
    unpacked_numbers,
    variables_of,
    with_state,
)

TAG = "$type"
_MAX_DEPTH = 32
_PACKED = 256  # So many numbers in a list, and more, are stored as an array.
_SEQUENCES: Mapping[str, Callable[[Iterable[Any]], Any]] = {
    "tuple": tuple, "set": set, "frozenset": frozenset,
}  # fmt: skip
_FACTORIES: Mapping[str, Callable[[], Any]] = {
    "bool": bool, "dict": dict, "float": float, "int": int, "list": list, "set": set, "str": str,
}  # fmt: skip
_BASES: Mapping[type, Callable[[Any], Any]] = {
    int: int, float: float, str: str, list: list, tuple: tuple, Mapping: dict,
}  # fmt: skip

Array = np.ndarray[Any, Any]
_NO_TREE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class NoPlace(Exception):
    """A value can only be put into an object that is already there, and none fits.

    It never leaves the package: who decodes names what was left out.
    """


# --- there --------------------------------------------------------------------


class Encoder:
    """Encodes one value and measures it.

    Args:
        limit: How large the value may be, in bytes; its numbers count 8 each.
        hidden: Names of mapping entries that are set aside instead of encoded.
        loose: Whether a subclass may come back as what it derives from.

    Attributes:
        size: Bytes so far.
        aside: The trees that were set aside.
    """

    def __init__(
        self,
        *,
        limit: float = math.inf,
        hidden: Callable[[str], bool] = lambda name: False,
        loose: bool = False,
    ) -> None:
        self._limit = limit
        self._loose = loose
        self._is_hidden = hidden
        self._within: list[int] = []
        self.size = 0
        self.aside: list[Any] = []

    def encode(self, value: Any) -> Any:
        """Return the tree of `value`.

        Raises:
            ConfigError: If a value in it is of another type, or it is too large or too deep.
        """
        kind = type(value)
        if value is None or kind in (bool, float):
            self._count(8)
            return value
        if kind in (int, str, bytes, bytearray):
            return self._text(value)
        if kind in (list, tuple, set, frozenset, deque, dict, OrderedDict, Counter, defaultdict):
            return self._container(value)
        if kind is np.ndarray or isinstance(value, np.generic):
            return self._numbers(value)
        if kind in GENERATORS:
            return self._generator(value)
        found = variables_of(value)
        if found is not None:
            return {TAG: "variables", "values": [self._converted(v) for v in found]}
        if is_tensor(value):
            return self._converted(value)
        for base, plain in _BASES.items() if self._loose else ():
            if isinstance(value, base):
                return self.encode(plain(value))
        raise ConfigError(
            "Expected plain values, their collections, NumPy arrays or random generators. "
            f"Received: a value of type {kind.__name__}"
        )

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > self._limit:
            raise ConfigError(f"Expected at most {self._limit} bytes. Received: more")

    def _text(self, value: int | str | bytes | bytearray) -> Any:
        if isinstance(value, int):
            size = value.bit_length()
            self._count(max(8, size // 8))
            # JSON's decimal digits are slow to make, and refused beyond a few thousand.
            return value if size <= 64 else {TAG: "int", "hex": f"{value:x}"}
        self._count(max(8, len(value)))
        if isinstance(value, str):
            return value
        return {TAG: type(value).__name__, "data": np.frombuffer(bytes(value), dtype=np.uint8)}

    def _container(self, value: Any) -> Any:
        if id(value) in self._within or len(self._within) == _MAX_DEPTH:
            raise ConfigError(f"Expected at most {_MAX_DEPTH} levels, and no loop. Received: more")
        self._count(8)
        self._within.append(id(value))
        tree = self._mapping(value) if isinstance(value, dict) else self._sequence(value)
        self._within.pop()
        return tree

    def _sequence(self, value: Any) -> Any:
        kind = type(value).__name__
        if kind == "list" and len(value) >= _PACKED and (array := as_array(value)) is not None:
            self._count(array.nbytes)
            return {TAG: "numbers", "values": array}
        items = [self.encode(v) for v in value]
        if kind == "list":
            return items
        if kind == "deque":
            return {TAG: kind, "items": items, "maxlen": value.maxlen}
        if kind != "tuple":  # A set's order says nothing, and differs between processes.
            items.sort(key=digest)
        return {TAG: kind, "items": items}

    def _mapping(self, value: dict[Any, Any]) -> Any:
        kind = type(value).__name__
        items = []
        for key, held in value.items():
            if isinstance(key, str) and self._is_hidden(key):
                self.aside.append([key, self.encode(held)])
            else:
                items.append((key, self.encode(held)))
        if kind == "dict" and TAG not in value and all(type(k) is str for k, _ in items):
            self._count(sum(len(k) for k, _ in items))
            return dict(items)
        tree: dict[str, Any] = {TAG: kind, "items": [[self.encode(k), v] for k, v in items]}
        if isinstance(value, defaultdict):
            tree["factory"] = self._factory(value.default_factory)
        return tree

    def _factory(self, factory: Any) -> str | None:
        name = getattr(factory, "__name__", None)
        if factory is None or _FACTORIES.get(str(name)) is factory:
            return name
        if len(self._within) > 1:
            raise ConfigError(f"Expected a defaultdict of a built-in type. Received: {name}")
        return "?"  # The object that the constructor makes again has it.

    def _numbers(self, value: Array | np.generic) -> Any:
        array = np.asarray(value)
        self._count(array.nbytes)
        tree = array if is_native(array) else {TAG: "array", **packed(array)}
        return tree if type(value) is np.ndarray else {TAG: "scalar", "value": tree}

    def _generator(self, value: Any) -> Any:
        plain = Encoder()  # Nothing in it is a secret: Philox calls one of its numbers `key`.
        tree = {
            TAG: "generator",
            "kind": type(value).__name__,
            "state": plain.encode(state_of(value)),
        }
        self._count(plain.size)
        return tree

    def _converted(self, value: Any) -> Any:
        try:
            # Looked at first: fetching it from a device is what costs.
            self._count(math.prod(value.shape))
            return self._numbers(np.asarray(value))
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"Expected a tensor with a value. Received: {error}") from error


def digest(tree: Any) -> bytes:
    """Digest of a tree: equal trees have equal ones, NaN included."""

    def of_array(array: Array) -> Any:
        flat = np.ascontiguousarray(array).reshape(-1)
        content = blake3(flat.view(np.uint8).data).hexdigest() if flat.size else ""
        return [array.dtype.name, array.dtype.str, array.shape, content]

    return blake3(json.dumps(tree, default=of_array).encode()).digest()


def detached(tree: Any) -> Any:
    """Return `tree` with arrays of its own, for who goes on changing them."""
    if isinstance(tree, dict):
        return {k: detached(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [detached(v) for v in tree]
    return tree.copy() if isinstance(tree, np.ndarray) else tree


# --- and back -----------------------------------------------------------------


class Decoder:
    """Decodes trees.

    Args:
        hidden: Names of mapping entries that no tree holds: those of the present value stay.
    """

    def __init__(self, *, hidden: Callable[[str], bool] = lambda name: False) -> None:
        self._is_hidden = hidden

    def decode(self, tree: Any, present: Any = None) -> Any:
        """Return the value of `tree`.

        Args:
            present: What stands in its place now. Random generators and variables in it take
                their state over in place: others may hold them too.

        Raises:
            NoPlace: If a variable, or a factory of a defaultdict, is not in `present`.
            ManifestError: If it is no tree of `Encoder`.
        """
        try:
            return self._decode(tree, present)
        except _NO_TREE as error:
            if isinstance(error, ManifestError):
                raise
            raise ManifestError(f"A stored value cannot be read: {error!r}") from error

    def _decode(self, tree: Any, present: Any) -> Any:
        if isinstance(tree, (list, tuple)):
            held = present if isinstance(present, (list, tuple)) else ()
            items = [
                self._decode(v, held[i] if i < len(held) else None) for i, v in enumerate(tree)
            ]
            return items if isinstance(tree, list) else tuple(items)
        if not isinstance(tree, dict):
            return tree
        if TAG in tree:
            return self._tagged(str(tree[TAG]), tree, present)
        return self._dict(tree.items(), present)

    def _tagged(self, kind: str, tree: Mapping[str, Any], present: Any) -> Any:
        if kind in _SEQUENCES or kind == "deque":
            items = self._decode(as_list(tree["items"]), present)
            return deque(items, tree["maxlen"]) if kind == "deque" else _SEQUENCES[kind](items)
        if kind in ("dict", "OrderedDict", "Counter", "defaultdict"):
            return self._mapping(kind, tree, present)
        if kind == "scalar":
            return np.asarray(self._decode(tree["value"], None))[()]
        if kind in _ATOMS:
            return _ATOMS[kind](tree)
        if kind == "variables":
            return self._assigned(tree, present)
        if kind == "generator":
            return with_state(str(tree["kind"]), self._decode(tree["state"], None), present)
        raise ManifestError(f"Expected a type that this version knows. Received: {kind!r}")

    def _assigned(self, tree: Mapping[str, Any], present: Any) -> Any:
        values = [self._decode(v, None) for v in as_list(tree["values"])]
        if not assign(present, values):
            raise NoPlace
        return present

    def _dict(self, items: Iterable[tuple[Any, Any]], present: Any) -> dict[Any, Any]:
        held = present if isinstance(present, dict) else {}
        found = {k: self._decode(v, held.get(k)) for k, v in items}
        kept = {k: v for k, v in held.items() if isinstance(k, str) and self._is_hidden(k)}
        return {**found, **kept}

    def _mapping(self, kind: str, tree: Mapping[str, Any], present: Any) -> Any:
        pairs = ((self._decode(k, None), v) for k, v in as_list(tree["items"]))
        found = self._dict(pairs, present)
        if kind == "dict":
            return found
        if kind in ("OrderedDict", "Counter"):
            return OrderedDict(found) if kind == "OrderedDict" else Counter(found)
        factory: Any = None
        if tree["factory"] == "?":
            if not isinstance(present, defaultdict):
                raise NoPlace
            factory = present.default_factory
        elif tree["factory"] is not None:
            factory = _FACTORIES[tree["factory"]]
        return defaultdict(factory, found)


_ATOMS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "int": lambda tree: int(tree["hex"], 16),
    "numbers": lambda tree: unpacked_numbers(tree["values"]),
    "bytes": lambda tree: tree["data"].tobytes(),
    "bytearray": lambda tree: bytearray(tree["data"].tobytes()),
    "array": unpacked,
}
