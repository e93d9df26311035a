"""What an object remembers, found by looking which of its attributes change.

A callback of the user's says nothing about its state. So its attributes are looked at
once when training begins, and again at each checkpoint: what differs is state. The rest
(options, open files, the model) is made again by the script that makes the object again.

Names that look like secrets are never stored, nor is data, nor what is larger than the
limit. What changed and could not be stored is named. An array beyond 16 MiB is compared
by samples of its bytes, a collection beyond 4 MiB by its identity and length.
"""

from __future__ import annotations

import functools
import inspect
import io
import os
import random
import types
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from blake3 import blake3

from mlflow_ckpt.errors import ConfigError
from mlflow_ckpt.naming import is_data, is_secret
from mlflow_ckpt.plain import TAG, Decoder, Encoder, NoPlace, detached, digest

LIMIT = 2**20
_LOOKED_AT = 4 * LIMIT
_KEPT = LIMIT // 16  # Bytes of a beginning that are kept, to go back to.
_WHOLE, _SAMPLES, _SAMPLE = 16 * LIMIT, 64, 65536  # of arrays, in bytes

# Keras sets these at every fit; they are no state of the callback's.
_NEVER = frozenset({"_model", "model", "params"})
_CHANGEABLE = (bytearray, list, dict, set, deque, np.ndarray)
# Nothing that is stored can take the place of these.
_STAYS = (
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type,
    functools.partial, os.PathLike, io.IOBase,
)  # fmt: skip
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


class Attributes:
    """Remembers what `owner` holds now, by digests.

    Args:
        owner: Any object. Attributes in its `__dict__` and its slots are looked at,
            properties are not.
        ignore: Names of attributes to pass over. No state sets them either.
        accepts: Called with name and value; what it refuses is neither stored nor set.
        limit: How large a value may be, in bytes.
    """

    def __init__(
        self,
        owner: object,
        *,
        ignore: frozenset[str] = frozenset(),
        accepts: Callable[[str, Any], bool] | None = None,
        limit: int = LIMIT,
    ) -> None:
        self._owner = owner
        self._ignore = ignore | _NEVER
        self._accepts = accepts
        self._limit = limit
        self._began = {n: _Look(value, limit).begun() for n, value in self._held().items()}

    def changed(self) -> tuple[dict[str, Any], list[str]]:
        """Return the state of the attributes that changed, and the names of those left out.

        The state is a copy, of the values that `training_state.write` accepts. An attribute
        is among the names if it changed and is not in the state, or not all of it is.
        """
        state: dict[str, Any] = {}
        left: list[str] = []
        held = self._held()
        for name, value in held.items():
            before, now = self._began.get(name), _Look(value, self._limit)
            if before is not None and before.equals(now, value):
                continue
            if not now.storable or not self._may_store(name, value):
                left.append(name)
                continue
            if before is None or before.aside != now.aside:
                left += [name] if now.aside is not None else []
            if before is None or before.content != now.content:
                state[name] = now.stored(in_place=before is not None and before.is_of(value))
        gone = [n for n in self._began if n not in held and self._may_store(n, None)]
        return {**state, **{name: {TAG: "absent"} for name in gone}}, left

    def restore(self, state: Mapping[str, Any]) -> list[str]:
        """Set what `changed` returned; return the names that found no place.

        What has changed since the beginning and is not in `state` is set back too, as far as
        it is small: a resume inside an epoch comes after the epoch's beginning.

        Raises:
            ManifestError: If `state` is not what `changed` returns.
        """
        return self.put({**self._undone(state), **state})

    def put(self, state: Mapping[str, Any]) -> list[str]:
        """As `restore`, but what is not in `state` stays as it is."""
        return restore(self._owner, state, ignore=self._ignore, accepts=self._accepts)

    def _undone(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of the beginning, of what is no longer in it and not in `state`."""
        undone = {}
        for name, value in self._held().items():
            before = self._began.get(name)
            if name in state or before is None or before.tree is None:
                continue
            now = _Look(value, self._limit)
            if now.storable and before.content != now.content and self._may_store(name, value):
                undone[name] = before.stored(in_place=before.is_of(value))
        return undone

    def _held(self) -> dict[str, Any]:
        return {name: v for name, v in _held(self._owner).items() if name not in self._ignore}

    def _may_store(self, name: str, value: Any) -> bool:
        if is_secret(name) or is_data(name):
            return False
        return self._accepts is None or self._accepts(name, value)


def restore(
    owner: object,
    state: Mapping[str, Any],
    *,
    ignore: frozenset[str] = frozenset(),
    accepts: Callable[[str, Any], bool] | None = None,
) -> list[str]:
    """Set what `Attributes.changed` returned; return the names that found no place.

    What had been changed in place is changed in place again, if it is still of the same
    type: others may hold it too. Random generators and variables always are.

    Args:
        ignore, accepts: As in `Attributes`. What would not be stored finds no place: a state
            may be anybody's.

    Raises:
        ManifestError: If `state` is not what `changed` returns.
    """
    left = []
    for name, tree in state.items():
        try:
            if name in ignore or not _may_set(owner, name):
                raise NoPlace
            _set(owner, name, tree, accepts)
        except NoPlace:
            left.append(name)
    return left


# --- one value ----------------------------------------------------------------


class _Look:
    """What one value looked like at one moment.

    Attributes:
        storable: Whether its type and its size allow to store it.
        content: Digest of the value without its secret entries. Where the type allows none,
            what can be said cheaply: a length, samples.
        aside: Digest of its secret entries; `None` if there are none.
        tree: What to store, or `None`.
    """

    def __init__(self, value: Any, limit: int) -> None:
        encoder = Encoder(limit=max(limit, _LOOKED_AT), hidden=is_secret)
        self.content: Any = None
        self.aside: bytes | None = None
        self.tree: Any = None
        try:
            tree = encoder.encode(value)
        except ConfigError:
            self.storable, self.comparable, self.content = False, False, _outline(value)
        else:
            self.storable, self.comparable = encoder.size <= limit, True
            self.content = digest(tree)
            self.aside = digest(encoder.aside) if encoder.aside else None
            self.tree = tree if self.storable else None
        self._small = encoder.size <= _KEPT
        self._identity = id(value)
        # Keeps the identity from being given to another object, and nothing large alive.
        self._anchor = _weakly(value, or_else=value if self.storable else None)

    def begun(self) -> _Look:
        """Make it one to be kept: the tree goes, or becomes a copy if it is small."""
        self.tree = detached(self.tree) if self._small else None
        return self

    def stored(self, *, in_place: bool) -> Any:
        """What `restore` takes."""
        tree = detached(self.tree)
        return {TAG: "in-place", "value": tree} if in_place else tree

    def is_of(self, value: Any) -> bool:
        """Whether it was this very object."""
        if isinstance(self._anchor, weakref.ref):
            return self._anchor() is value
        return id(value) == self._identity

    def equals(self, now: _Look, value: Any) -> bool:
        """Whether the value that `now` is of is what it was."""
        if (self.comparable, self.content, self.aside) != (now.comparable, now.content, now.aside):
            return False
        return self.comparable or self.is_of(value)


def _weakly(value: Any, *, or_else: Any) -> Any:
    try:
        return weakref.ref(value)
    except TypeError:  # Lists and dicts have no weak references.
        return or_else


def _outline(value: Any) -> Any:
    """What can be said for little of a value that cannot be stored."""
    if type(value) in (list, dict, set, tuple, frozenset, deque, str, bytes):
        return len(value)
    if type(value) is not np.ndarray or value.dtype.kind not in "biufc":
        return None
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        return value.shape
    flat = value.ravel(order="K").view(np.uint8)
    hasher = blake3()
    if flat.size <= _WHOLE:
        return (value.shape, hasher.update(flat.data).digest())
    for begin in np.linspace(0, flat.size - _SAMPLE, _SAMPLES, dtype=np.int64):
        hasher.update(flat[begin : begin + _SAMPLE].data)
    return (value.shape, hasher.digest())


# --- one attribute ------------------------------------------------------------


def _held(owner: object) -> dict[str, Any]:
    """Every attribute that lies in `owner` itself; reading them runs no code of its class."""
    found = dict(_own_dict(owner))
    for name, slot in _slots(owner).items():
        try:
            found[name] = slot.__get__(owner)
        except AttributeError:  # An empty slot holds nothing.
            continue
    return found


def _own_dict(owner: object) -> dict[str, Any]:
    found = getattr(owner, "__dict__", {})
    return found if isinstance(found, dict) else {}


def _slots(owner: object) -> dict[str, Any]:
    return {
        name: member
        for cls in reversed(type(owner).__mro__)
        for name, member in vars(cls).items()
        if isinstance(member, types.MemberDescriptorType)
    }


def _may_set(owner: object, name: str) -> bool:
    """Whether `name` can be state: no method, property, path or secret, whatever a file says."""
    if name in _NEVER or is_secret(name) or is_data(name) or not name.isidentifier():
        return False
    if name.startswith("__") and name.endswith("__"):
        return False
    if name in _own_dict(owner) or name in _slots(owner):
        return not isinstance(_held(owner).get(name), _STAYS)
    of_class = inspect.getattr_static(type(owner), name, None)
    return hasattr(owner, "__dict__") and not (
        callable(of_class) or hasattr(type(of_class), "__set__") or hasattr(of_class, "__func__")
    )


def _set(owner: object, name: str, tree: Any, accepts: Callable[[str, Any], bool] | None) -> None:
    slot = _slots(owner).get(name)
    present = _held(owner).get(name)
    kind = tree.get(TAG) if isinstance(tree, dict) else None
    gone, in_place = kind == "absent", kind == "in-place"
    # A generator that took another's place must not change the other one.
    fills = None if not in_place and isinstance(present, _GENERATORS) else present
    stored = tree.get("value") if in_place else tree
    value = None if gone else Decoder(hidden=is_secret).decode(stored, fills)
    if accepts is not None and not accepts(name, value):
        raise NoPlace
    if gone:
        if slot is None:
            _own_dict(owner).pop(name, None)
        elif name in _held(owner):
            slot.__delete__(owner)
    elif in_place and _refill(present, value):
        return
    elif slot is None:
        _own_dict(owner)[name] = value
    else:
        slot.__set__(owner, value)


def _refill(present: Any, value: Any) -> bool:
    """Give `present` the content of `value`; return whether it could take it."""
    if type(present) is not type(value) or not isinstance(value, _CHANGEABLE):
        return present is value
    if isinstance(value, np.ndarray):
        if (present.shape, present.dtype) != (value.shape, value.dtype):
            return False
        if not present.flags.writeable:
            return False
        present[...] = value
        return True
    if isinstance(value, deque) and present.maxlen != value.maxlen:
        return False
    present.clear()
    if isinstance(value, (dict, set)):
        present.update(value)
    else:
        present.extend(value)
    return True
