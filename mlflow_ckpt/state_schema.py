"""Hold a training state against what a resume reads of it, before anything is assigned.

The digest says that the bytes are those that were committed, and not that they make sense:
who can write to both the server and the store can commit anything. Each place that a resume
looks at is checked here for type and range; NumPy and TensorFlow take some numbers as they
are, as an index into memory. What only a callback or an input can judge is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mlflow_ckpt.errors import ManifestError

Check = Callable[[Any, str], None]

_LARGEST = 1 << 53
_WORDS = 624  # of a Mersenne Twister
# Iterators that somebody's own code may have made over a dataset beside Keras's.
_EXTRA_ITERATORS = 1000
_AHEAD = 4096  # batches that steps_per_execution may count at once
# Whatever epoch and step a state says, which its author chooses too. No training comes there:
# a million epochs; a billion batches from one iterator, a day at 0.1 ms each. A resume makes an
# iterator in 0.5 ms, and skips 4 million elements in a second: it ends within minutes.
_MOST_ITERATORS, _MOST_BATCHES = 10**6, 10**9
# In lists that lie as arrays, all together: 8 bytes each there, and 40 in a list.
MOST_NUMBERS = 1 << 22


def check(state: Any) -> None:
    """Raise if a resume could not read `state`.

    Raises:
        ManifestError: With the place, what was expected there, and what there is.
    """
    _STATE(state, "state")
    _check_counts(state)
    check_numbers(state)


def check_numbers(state: Mapping[str, Any]) -> None:
    """Raise if the lists of numbers in `state` would take more memory than they are worth.

    Raises:
        ManifestError: With how many there may be.
    """
    count, row = 0, [state]
    while row:
        each = row.pop()
        kind, values = each.get("$type"), each.get("values")
        if isinstance(kind, str) and kind == "numbers" and isinstance(values, np.ndarray):
            count += values.size
        row += _mappings_in(each.values())
    if count > MOST_NUMBERS:
        raise _unlike("state", f"one with at most {MOST_NUMBERS} numbers in lists", count)


def _mappings_in(values: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for each in values:
        if isinstance(each, Mapping):
            yield each
        elif isinstance(each, (list, tuple)):
            yield from _mappings_in(each)


def check_position(state: Mapping[str, Any], *, kind: str, epoch: int, step: int) -> None:
    """Raise if `state` is not that of the checkpoint at this place.

    Raises:
        ManifestError: If it is of another one.
    """
    found = state["kind"], state["epoch"], state["step"]
    if found != (kind, epoch, step):
        raise _unlike(
            "state", f"that of the {kind} checkpoint at epoch {epoch}, step {step}", found
        )


def _unlike(where: str, expected: str, found: Any) -> ManifestError:
    text = repr(found)
    return ManifestError(
        f"The training state is not of format 1.x. Expected: {where} is {expected}. "
        f"Received: {text if len(text) <= 80 else f'{text[:77]}...'}"
    )


# --- kinds of values ----------------------------------------------------------


def _whole(low: int = 0, high: int = _LARGEST) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _unlike(where, f"a whole number from {low} to {high}", value)

    return check


def _of(kind: type | tuple[type, ...], name: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, kind):
            raise _unlike(where, name, value)

    return check


def _number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _unlike(where, "a number", value)
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise _unlike(where, "a number", value)


def _or_none(check: Check) -> Check:
    def either(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return either


def _each(check: Check) -> Check:
    def all_of(value: Any, where: str) -> None:
        _list(value, where)
        for index, each in enumerate(value):
            check(each, f"{where}[{index}]")

    return all_of


def _row(*checks: Check) -> Check:
    def all_of(value: Any, where: str) -> None:
        _list(value, where)
        if len(value) != len(checks):
            raise _unlike(where, f"a list of {len(checks)}", value)
        for index, (each, check) in enumerate(zip(value, checks, strict=True)):
            check(each, f"{where}[{index}]")

    return all_of


def _values(check: Check) -> Check:
    def all_of(value: Any, where: str) -> None:
        _mapping(value, where)
        for key, each in value.items():
            check(each, f"{where}.{key}")

    return all_of


def _fields(needed: Mapping[str, Check], **optional: Check) -> Check:
    def all_of(value: Any, where: str) -> None:
        _mapping(value, where)
        for name, check in needed.items():
            if name not in value:
                raise _unlike(where, f"a mapping with {name!r}", sorted(value))
            check(value[name], f"{where}.{name}")
        for name, check in optional.items():
            if name in value:
                check(value[name], f"{where}.{name}")

    return all_of


def _array(kinds: str, *, size: int | None = None, rank: int | None = None) -> Check:
    def check(value: Any, where: str) -> None:
        fits = isinstance(value, np.ndarray) and value.dtype.kind in kinds
        fits = fits and size in (None, value.size) and rank in (None, value.ndim)
        if not fits:
            raise _unlike(where, f"an array of kind {kinds!r} and size {size or 'any'}", value)

    return check


def _plain(value: Any, where: str) -> None:
    """No array anywhere: it is compared, and an array compares by element."""
    row = [value]
    while row:
        each = row.pop()
        if isinstance(each, np.ndarray):
            raise _unlike(where, "plain data without an array", each)
        if isinstance(each, dict):
            row.extend(each.values())
        elif isinstance(each, (list, tuple)):
            row.extend(each)


def _all(*checks: Check) -> Check:
    def all_of(value: Any, where: str) -> None:
        for check in checks:
            check(value, where)

    return all_of


def _anything(value: Any, where: str) -> None:
    """What nobody looks into here."""


_list = _of((list, tuple), "a list")
_mapping = _of(dict, "a mapping")
_text = _of(str, "a text")
_boolean = _of(bool, "true or false")
_numbers = _array("biufcV")


# --- the state ----------------------------------------------------------------


def _python(value: Any, where: str) -> None:
    """State of Python's generator."""
    _row(_whole(3, 3), _array("u", size=_WORDS + 1, rank=1), _or_none(_number))(value, where)
    if int(value[1][_WORDS]) > _WORDS:
        raise _unlike(where, f"a place among {_WORDS} words", int(value[1][_WORDS]))


def _name(*names: str) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in names:
            raise _unlike(where, f"one of {names}", value)

    return check


def _tensorflow(value: Any, where: str) -> None:
    _fields({"seeds": _or_none(_python), "generator": _or_none(_array("iu", rank=1))})(value, where)
    if value["generator"] is not None:
        # The sizes that the two algorithms have; TensorFlow reads as many words.
        _fields({"algorithm": _whole(1, 2)})(value, where)
        _array("iu", size={1: 3, 2: 2}[value["algorithm"]])(value["generator"], where)


# NumPy looks at the word of this number, whether there is one or not.
_numpy = _row(
    _name("MT19937"), _array("u", size=_WORDS, rank=1), _whole(0, _WORDS), _whole(0, 1), _number
)
_generators = _fields(
    {"python": _python, "numpy": _numpy},
    keras=_or_none(_array("iu", size=2, rank=1)),
    tensorflow=_or_none(_tensorflow),
)
_variables = _each(_fields({"path": _text, "value": _numbers}))
_OWN: Mapping[str, Check] = {
    "EpochData": _fields({"epoch": _whole(-1), "batch": _whole()}),
    "grain": _fields({"iterator": _or_none(_text)}, bytes=_boolean),
    "PyDataset": _fields(
        {"drawn_from": _or_none(_python), "own": _anything, "attributes": _or_none(_mapping)}
    ),
    "tf.data": _fields(
        {},
        tensorflow=_text,
        iterator=_or_none(_array("u", rank=1)),
        mark=_or_none(_array("u", rank=1)),
    ),
}


def _data(value: Any, where: str) -> None:
    _fields(
        {
            "kind": _text,
            "made": _each(_whole()),
            "num_batches": _or_none(_whole()),
            "born": _or_none(_each(_whole())),
            "read": _whole(),
            "own": _mapping,
            "exactness": _row(_name("true", "unknown", "false"), _text),
        }
    )(value, where)
    own = value["own"]
    if value["kind"] in _OWN and own:
        _OWN[value["kind"]](own, f"{where}.own")
    if value["kind"] == "tf.data" and own.get("iterator") is not None:
        _fields({"tensorflow": _text})(own, f"{where}.own")
    if value["kind"] == "grain" and own.get("iterator") is not None:
        _fields({"bytes": _boolean})(own, f"{where}.own")


_guard = _all(
    _plain,
    _fields({"optimizer": _mapping, "loss": _anything, "data": _or_none(_mapping)}),
)
_STATE = _fields(
    {
        "kind": _name("epoch", "batch"),
        "epoch": _whole(),
        "step": _whole(),
        "epoch_began_at": _whole(),
        "best": _or_none(_number),
        "fit": _whole(1),
        "offset": _whole(-_LARGEST),
        "initial_epoch": _whole(),
        "epochs": _whole(),
        "batch": _whole(),
        "stop_training": _boolean,
        "variables": _variables,
        "metrics": _variables,
        "logs": _values(_number),
        "generators": _generators,
        "callbacks": _values(_mapping),
        "data": _or_none(_data),
    },
    guard=_or_none(_guard),
    build_config=_plain,
    not_stored=_each(_text),
)


def _check_counts(state: Mapping[str, Any]) -> None:
    """Raise if a resume would read a batch, or make an iterator, more often than a fit can."""
    data, step = state["data"], state["step"]
    _whole(0, step)(state["epoch_began_at"], "state.epoch_began_at")
    _whole(0, step)(state["batch"], "state.batch")
    if data is None:
        return
    _whole(0, min(step + _AHEAD, _MOST_BATCHES))(data["read"], "state.data.read")
    most = min(_EXTRA_ITERATORS + 16 * (state["epoch"] + 1) + 4 * step, _MOST_ITERATORS)
    counts: Sequence[int] = [*data["made"], *(data["born"] or ())]
    for count in counts:
        _whole(0, most)(count, "state.data.made")
