"""Mutations that keep a file well-formed, and ask for more than it holds.

    (chance, bytes) -> (other bytes, what was done)

Each is small, passes every parser, and says something that costs whoever believes it: a number
that becomes a size, a structure that lies in another, a model that holds itself twice, an array
where a loop expects a list, a path in an attribute that a base class writes to.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import h5py
import numpy as np

LARGE = (1000, 10**4, 10**6, 3 * 10**7, 2**31 - 1, 2**40, 2**53)
_MARKS = (b"TREE", b"SNOD", b"HEAP", b"GCOL")


# --- a model's config -------------------------------------------------------------


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    row = [tree]
    while row:
        each = row.pop()
        for key in list(each) if isinstance(each, dict) else range(len(each)):
            yield each, key
            if isinstance(each[key], (dict, list)):
                row.append(each[key])


def numbers(chance: Random, data: bytes) -> tuple[bytes, str]:
    """A large number where one stands: units, shapes, rates, seeds."""
    tree = json.loads(data)
    whole = [(h, k) for h, k in _places(tree) if type(h[k]) in (int, float)]
    holder, key = chance.choice(whole)
    holder[key] = chance.choice(LARGE)
    return json.dumps(tree).encode(), f"{holder[key]} at {key!r}"


def metrics(chance: Random, data: bytes) -> tuple[bytes, str]:
    """A compiled metric whose own variables are as large as a number in its config."""
    tree = json.loads(data)
    size = chance.choice(LARGE)
    name, config = chance.choice([
        ("MeanIoU", {"num_classes": size}),
        ("OneHotMeanIoU", {"num_classes": size}),
        ("BinaryIoU", {"target_class_ids": [0, 1], "threshold": size}),
        ("IoU", {"num_classes": size, "target_class_ids": [0]}),
        ("AUC", {"num_thresholds": size}),
        ("AUC", {"num_thresholds": 5, "multi_label": True, "num_labels": size}),
        ("SensitivityAtSpecificity", {"specificity": 0.5, "num_thresholds": size}),
        ("PrecisionAtRecall", {"recall": 0.5, "num_thresholds": size}),
        ("Precision", {"thresholds": [0.5] * min(size, 10**5)}),
        ("F1Score", {"threshold": 0.5}),
        ("R2Score", {"num_regressors": size}),
        ("TopKCategoricalAccuracy", {"k": size}),
    ])  # fmt: skip
    entry = {"module": "keras.metrics", "class_name": name, "config": config,
             "registered_name": None}  # fmt: skip
    part = chance.choice(["metrics", "metrics", "weighted_metrics", "loss"])
    tree["compile_config"][part] = [entry] if part != "loss" else entry
    return json.dumps(tree).encode(), f"{name} of {size} as {part}"


@functools.cache
def _around(size: int | None, calls: int) -> dict[str, Any]:
    """A model of inputs of a size, with a place for a model in it, which it calls."""
    import keras

    x = keras.Input((size,))
    inside = keras.layers.Activation("relu", name="in")
    y = x
    for _ in range(calls):
        y = inside(y)
    model = keras.Model(x, y, name="in")
    found: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    return found


def _put_inside(outer: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(outer)
    places = made["config"]["layers"]
    place = next(layer for layer in places if layer["class_name"] == "Activation")
    place.update({k: model[k] for k in ("module", "class_name", "config", "registered_name")})
    # A model has had a call before: the one that made it.
    made["config"]["output_layers"][1] += 1
    return made


def shared(chance: Random, data: bytes) -> tuple[bytes, str]:
    """Models in models, each called twice: a kilobyte for each doubling of the work.

    Keras goes through all calls once more where the outermost input has another shape.
    """
    levels, size = chance.choice([1, 2, 3, 6, 9, 16, 24, 40]), chance.choice([None, 4, 8])
    tree = _around(None, 2)
    for _ in range(levels - 1):
        tree = _put_inside(_around(None, 2), tree)
    tree = _put_inside(_around(size, chance.choice([1, 2])), tree)
    tree["compile_config"] = json.loads(data).get("compile_config")
    return json.dumps(tree).encode(), f"{levels} models in each other, of inputs of {size}"


# --- HDF5 -------------------------------------------------------------------------


def overlapping(chance: Random, data: bytes) -> tuple[bytes, str]:
    """Let addresses lead to a structure, or into the middle of one, that another one has."""
    found = set[int]()
    for mark in _MARKS:
        at = data.find(mark)
        while at >= 0:
            found.add(at)
            at = data.find(mark, at + 1)
    words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) // 8 * 8])
    # Symbol tables lead to object headers, which carry no mark: version 1 and a count.
    headers = {w for w in words if 96 <= w < len(data) - 16 and w % 8 == 0
               and data[w : w + 2] == b"\1\0" and data[w + 3 : w + 8] == b"\0\1\0\0\0"}  # fmt: skip
    targets = sorted(found | headers)
    places = [at * 8 for at, word in enumerate(words) if word in found | headers]
    if not places:
        return data, "nothing found"
    changed, done = bytearray(data), []
    for _ in range(chance.choice([1, 1, 2, 8])):
        place = chance.choice(places)
        target = chance.choice(targets) + chance.choice([0, 0, 8, -8, 16, 40])
        changed[place : place + 8] = struct.pack("<Q", max(0, target))
        done.append(f"{place} to {target}")
    return bytes(changed), ", ".join(done[:2])


def deep_names(chance: Random, data: bytes) -> tuple[bytes, str]:
    """Groups in groups, and names that are as long as HDF5 takes them."""
    levels, length = chance.choice([(3, 5), (100, 1), (127, 30), (130, 1), (600, 1), (30, 1000),
                                    (2, 60_000)])  # fmt: skip
    with io.BytesIO(data) as content:
        with h5py.File(content, "a") as h5:
            at: h5py.Group = h5
            for level in range(levels):
                at = at.create_group(f"{level % 10}" * length)
            if chance.random() < 0.5:
                at.create_dataset("end", data=np.ones(3, "f4"))
            else:
                datasets: list[str] = []
                h5.visititems(
                    lambda name, item: datasets.append(name)
                    if isinstance(item, h5py.Dataset) else None
                )  # fmt: skip
                h5.move(chance.choice(datasets), f"{at.name}/end")
        return content.getvalue(), f"{levels} groups with names of {length}"


# --- the training state -----------------------------------------------------------


def _changed_state(data: bytes, change: Callable[[Any, h5py.Group], str]) -> tuple[bytes, str]:
    with io.BytesIO(data) as content:
        with h5py.File(content, "a") as h5:
            tree = json.loads(bytes(h5["state"][()]))
            what = change(tree, h5["arrays"])
            del h5["state"]
            h5.create_dataset("state", data=np.frombuffer(json.dumps(tree).encode(), np.uint8))
        return content.getvalue(), what


def _array(arrays: h5py.Group, value: np.ndarray[Any, Any]) -> dict[str, str]:
    index = str(len(arrays))
    made = arrays.create_dataset(index, data=value)
    made.attrs["dtype"] = value.dtype.name
    return {"$array": index}


def arrays_for_lists(chance: Random, data: bytes) -> tuple[bytes, str]:
    """An array of millions where a loop expects a list: each item becomes an object."""

    def change(tree: Any, arrays: h5py.Group) -> str:
        size = chance.choice([3, 1000, 1 << 20, 1 << 23])
        dtype = chance.choice(["uint8", "uint16", "float64", "bool"])
        many = _array(arrays, np.full(size, 1, dtype))
        trees: tuple[Any, ...] = (
            {"$$type": "tuple", "items": many},
            {"$$type": "set", "items": many},
            {"$$type": "deque", "items": many, "maxlen": None},
            {"$$type": "dict", "items": many},
            {"$$type": "OrderedDict", "items": many},
            {"$$type": "Counter", "items": many},
            {"$$type": "numbers", "values": many},
            {"$$type": "variables", "values": many},
            {"$$type": "bytes", "data": many},
            {"$$type": "array", "dtype": "<U2", "shape": many, "data": many},
            {"$$type": "generator", "kind": "Random",
             "state": {"version": 3, "words": many, "gauss": None}},
            {"$$type": "in-place", "value": many},
            many,
        )  # fmt: skip
        if chance.random() < 0.6:
            wanted = chance.choice(trees)
            kept = tree["callbacks"]["Remembers/0"]["attributes"]
            kept[chance.choice(["seen", "best"])] = wanted
            return f"{wanted.get('$$type', 'an array')} of {size} {dtype} in a callback"
        lists = [(h, k) for h, k in _places(tree) if isinstance(h[k], list)]
        holder, key = chance.choice(lists)
        holder[key] = many
        return f"{size} {dtype} at {key!r}"

    return _changed_state(data, change)


BASES = {
    "OwnLogger/0": ("filename", "csv_file", "writer", "sep", "file_flags", "append", "_open_args",
                    "append_header", "keys", "model", "params", "_model", "__class__"),
    "OwnCheckpoint/0": ("filepath", "save_freq", "monitor_op", "_options", "save_best_only",
                        "save_weights_only", "load_weights_on_restart", "best", "monitor",
                        "_last_batch_seen", "_current_epoch", "__dict__", "verbose"),
    "EarlyStopping/0": ("patience", "baseline", "monitor_op", "best_weights", "monitor", "mode",
                        "start_from_epoch", "min_delta", "restore_best_weights"),
    "Remembers/0": ("model", "_model", "params", "validation_data", "set_model", "on_epoch_end"),
}  # fmt: skip
# The one that a base class writes to, if it believes it.
_PATHS = {"OwnLogger/0": "filename", "OwnCheckpoint/0": "filepath"}


def base_attributes(canary: str) -> Callable[[Random, bytes], tuple[bytes, str]]:
    """Attributes that a callback's base class goes by: above all, where it writes."""

    def base_attributes(chance: Random, data: bytes) -> tuple[bytes, str]:
        def change(tree: Any, arrays: h5py.Group) -> str:
            owner = chance.choice(sorted(BASES))
            place = tree["callbacks"].setdefault(owner, {})
            inside = place.setdefault("attributes", {}) if chance.random() < 0.8 else place
            if owner in _PATHS and chance.random() < 0.7:
                inside[_PATHS[owner]] = chance.choice([canary, f"{canary}.weights.h5"])
            for name in chance.sample(BASES[owner], chance.choice([0, 1, 2])):
                inside.setdefault(name, chance.choice([canary, 0, None, [], {"a": 1}]))
            if owner == "OwnLogger/0":
                text = _array(arrays, np.frombuffer(b"#!/bin/sh\n", np.uint8))
                place.update(text=text, append_header=False, begun=False, keys=None)
            return f"{', '.join(map(str, inside))} of {owner}"

        return _changed_state(data, change)

    return base_attributes
