"""Spoil the files of a checkpoint, the same way for the same number.

    mutate(number, files) -> Mutation: other files, and what was done
    mutate_as(kind, number, files) -> Mutation: likewise, of a kind in `NAMED`

`files` maps paths of a checkpoint to bytes. Nothing here knows what a reader makes of it.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import mutations_sized as sized
import numpy as np

from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS
from mlflow_ckpt.training_state import PATH as STATE

Files = dict[str, bytes]
Random = random.Random

# Where paths in spoilt files lead: to something that nobody may open.
CANARY = os.environ.get("HOSTILE_CANARY", "/etc/passwd")
NONSENSE: tuple[Any, ...] = (
    None, True, 0, -1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", "x", "..",
    CANARY, "a" * 5000, [], {}, [[]], {"": 0}, [None] * 100, {"$array": "0"},
    {"$array": "99999"}, {"$tuple": 3}, {"$type": "generator"}, {"class_name": "Dense"}, "\ud800",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """What became of the files, and how; `path` is the one that was changed."""

    files: Files
    path: str
    what: str


def mutate(number: int, files: Mapping[str, bytes]) -> Mutation:
    """The mutation with this number."""
    chance = Random(number)
    path = chance.choice(sorted(files))
    return _mutated(chance.choice(_KINDS[path]), path, chance, files)


def mutate_as(kind: str, number: int, files: Mapping[str, bytes]) -> Mutation | None:
    """The mutation of a kind with this number; `None` where no file can have it."""
    chance = Random(f"{kind} {number}")
    places = [(path, make) for path, make in NAMED[kind] if path in files]
    if not places:
        return None
    path, make = chance.choice(places)
    return _mutated(make, path, chance, files)


def _mutated(
    kind: Callable[[Random, bytes], tuple[bytes, str]],
    path: str,
    chance: Random,
    files: Mapping[str, bytes],
) -> Mutation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile on two members of one name
        data, what = kind(chance, files[path])
    return Mutation({**files, path: data}, path, f"{kind.__name__.strip('_')}: {what}")


def nonsense(chance: Random, tree: Any) -> str:
    """Replace, remove or double one place of a JSON tree; return where."""
    places: list[tuple[Any, Any]] = []
    row = [tree]
    while row:
        each = row.pop()
        keys = list(each) if isinstance(each, dict) else range(len(each))
        for key in keys:
            places.append((each, key))
            if isinstance(each[key], (dict, list)):
                row.append(each[key])
    holder, key = chance.choice(places)
    action = chance.randrange(5)
    if action == 0 and isinstance(holder, dict):
        del holder[key]
        return f"without {key!r}"
    if action == 1:
        other, place = chance.choice(places)
        if not isinstance(other, dict) and place >= len(other):
            place = 0
        holder[key] = json.loads(json.dumps(other[place])) if len(other) else None
        return f"{key!r} as {place!r}"
    if action == 2 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * chance.choice([-1, 0, 2, 1000, 10**9]) + chance.choice([0, 1])
        return f"another number at {key!r}"
    holder[key] = chance.choice(NONSENSE)
    return f"{str(holder[key])[:30]!r} at {key!r}"


# --- any bytes ----------------------------------------------------------------


def _bits(chance: Random, data: bytes) -> tuple[bytes, str]:
    changed = bytearray(data)
    places = [chance.randrange(len(data)) for _ in range(chance.choice([1, 1, 2, 16]))]
    for place in places:
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed), f"at {places[:4]}"


def _metadata(chance: Random, data: bytes) -> tuple[bytes, str]:
    """Words where structures lie: the first bytes and the last ones, and what looks like HDF5."""
    changed = bytearray(data)
    marks = [b"TREE", b"SNOD", b"HEAP", b"GCOL", b"\x89HDF", b"PK\1\2", b"PK\3\4", b"PK\5\6"]
    found = [at for mark in marks if (at := data.find(mark, chance.randrange(len(data)))) >= 0]
    start = chance.choice(found or [0])
    for _ in range(chance.choice([1, 1, 3])):
        at = min(start + chance.randrange(200), len(data) - 1)
        word = chance.choice([0, 1, len(data), chance.randrange(len(data)), 2**63 - 1, 2**64 - 1])
        width = chance.choice([1, 2, 4, 8])
        changed[at : at + width] = (word % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(changed[: len(data)]), f"near {start}"


def _cut(chance: Random, data: bytes) -> tuple[bytes, str]:
    kept = chance.choice([0, 1, 100, chance.randrange(len(data)), len(data) - 1, len(data) - 50])
    return data[:kept], f"{kept} bytes kept"


def _longer(chance: Random, data: bytes) -> tuple[bytes, str]:
    more = chance.randbytes(chance.choice([1, 22, 4096]))
    return (more + data, "in front") if chance.random() < 0.5 else (data + more, "behind")


def _moved(chance: Random, data: bytes) -> tuple[bytes, str]:
    changed, size = bytearray(data), chance.choice([8, 40, 328, 544, 2000])
    source, target = (chance.randrange(max(1, len(data) - size)) for _ in range(2))
    changed[target : target + size] = data[source : source + size]
    return bytes(changed[: len(data)]), f"{size} bytes from {source} to {target}"


# --- HDF5 ---------------------------------------------------------------------


def _datasets(h5: h5py.File) -> list[h5py.Dataset]:
    found: list[h5py.Dataset] = []
    h5.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


def _replaced(dataset: h5py.Dataset, **options: Any) -> None:
    parent, name = dataset.parent, dataset.name.rpartition("/")[2]
    attributes = dict(dataset.attrs)
    del parent[name]
    made = parent.create_dataset(name, **options)
    for key, value in attributes.items():
        made.attrs[key] = value


def _link(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    parent, name = one.parent, one.name.rpartition("/")[2]
    del parent[name]
    link = chance.choice([h5py.SoftLink("/"), h5py.ExternalLink(CANARY, "x")])
    parent[name] = link
    return f"{type(link).__name__} at {name!r}"


def _virtual(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    layout = h5py.VirtualLayout(shape=one.shape or (1,), dtype="f4")
    parent, name = one.parent, one.name.rpartition("/")[2]
    del parent[name]
    layout[...] = h5py.VirtualSource(CANARY, "x", shape=layout.shape)
    parent.create_virtual_dataset(name, layout)
    return f"virtual {name!r}"


def _external(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    _replaced(one, shape=(4,), dtype="u1", external=[(CANARY, 0, 4)])
    return "bytes in another file"


def _bomb(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    size = 1 << chance.choice([28, 30, 31])
    _replaced(one, shape=(size,), dtype="f4", chunks=(1 << 16,), compression="gzip")
    return f"{size} floats of nothing"


def _never_written(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    _replaced(one, shape=(1 << chance.choice([3, 28, 40]),), dtype="f4")
    return "a shape without bytes"


def _alias(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    for index in range(chance.choice([1, 50])):
        one.parent[f"alias{index}"] = one
    return f"hard links to {one.name!r}"


def _other_shape(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    shape = chance.choice([(), (0,), (1,), (3, 5), (1, 1, 1), (1000,), one.shape[::-1]])
    _replaced(one, data=np.ones(shape, one.dtype if one.dtype.kind != "V" else "f4"))
    return f"{one!r:.0} shape {shape}"


def _other_dtype(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    dtype = chance.choice(["f2", "f8", ">f4", "i1", "u8", "?", "c8", "S4", "V2"])
    _replaced(one, data=np.zeros(one.shape, dtype))
    return f"dtype {dtype}"


def _missing(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    name = one.name
    del h5[name]
    return f"without {name!r}"


def _swapped(h5: h5py.File, one: h5py.Dataset, chance: Random) -> str:
    other = chance.choice(_datasets(h5))
    first, second = one.name, other.name
    h5.move(first, "/aside")
    if second != first:
        h5.move(second, first)
    h5.move("/aside", second)
    return f"{first!r} and {second!r} swapped"


_HDF5_TRICKS = (
    _link, _virtual, _external, _bomb, _never_written, _alias, _other_shape, _other_dtype,
    _missing, _swapped,
)  # fmt: skip


def _hdf5(chance: Random, data: bytes) -> tuple[bytes, str]:
    with io.BytesIO(data) as content:
        with h5py.File(content, "a") as h5:
            trick = chance.choice(_HDF5_TRICKS)
            what = trick(h5, chance.choice(_datasets(h5)), chance)
        return content.getvalue(), what


# --- archives -----------------------------------------------------------------


def members(data: bytes) -> dict[str, bytes]:
    """The members of an archive, whatever their CRC-32."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                member._expected_crc = None
                found[name] = member.read()
    return found


def archived(parts: list[tuple[Any, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, data in parts:
            archive.writestr(name, data)
    return content.getvalue()


def _inside(spoil: Callable[[Random, bytes], tuple[bytes, str]], name: str) -> Any:
    def inside(chance: Random, data: bytes) -> tuple[bytes, str]:
        parts = members(data)
        parts[name], what = spoil(chance, parts[name])
        return archived([*parts.items()]), f"{name}: {what}"

    inside.__name__ = spoil.__name__
    return inside


def _zip(chance: Random, data: bytes) -> tuple[bytes, str]:
    parts = [*members(data).items()]
    weights = dict(parts)[MEMBER]
    name = chance.choice([
        "../evil", "/tmp/evil", "assets/../../evil", "assets\\..\\evil", "C:/evil", "assets/a\0b",
        "assets/" + "x" * 3000, "model.weights.npz", "assets/", "assets/evil", "evil.py",
    ])  # fmt: skip
    trick = chance.randrange(7)
    if trick == 0:
        return archived(parts, chance.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])), "packed"
    if trick == 1:
        return archived([*parts, (name, b"evil")]), f"a member {name[:40]!r}"
    if trick == 2:
        return archived([*parts, (MEMBER, weights[::-1])]), "two weights"
    if trick == 3:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = 0o120777 << 16
        return archived([*parts, (link, os.fsencode(CANARY))]), "a link"
    if trick == 4:
        chance.shuffle(parts)
        return archived(parts), "members in another order"
    if trick == 5:
        others = [(n, d) for n, d in parts if n != chance.choice(parts)[0]]
        return archived(others), "a member less"
    return _zip_bomb(data), "256 MiB of nothing"


@functools.lru_cache(maxsize=4)
def _zip_bomb(data: bytes) -> bytes:
    """An archive that is small and unpacks to much. It takes a second to make."""
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in members(data).items():
            archive.writestr(part, content if part == MEMBER else bytes(1 << 28))
    return bomb.getvalue()


_HEADERS = {b"PK\3\4": 30, b"PK\1\2": 46, b"PK\5\6": 22}


def _headers(chance: Random, data: bytes) -> tuple[bytes, str]:
    """A number in one of the archive's headers, for what readers trust differently."""
    changed, places = bytearray(data), []
    for mark, size in _HEADERS.items():
        at = data.find(mark)
        while at >= 0:
            places.append((at, size))
            at = data.find(mark, at + 1)
    at, size = chance.choice(places)
    place = at + chance.randrange(4, size - 2)
    word = chance.choice([0, 1, 8, 0xFFFF, chance.randrange(65536)])
    changed[place : place + 2] = struct.pack("<H", word)
    return bytes(changed), f"{word} at byte {place - at} of {data[at : at + 4]!r}"


# --- JSON ---------------------------------------------------------------------


def _json(chance: Random, data: bytes) -> tuple[bytes, str]:
    if chance.random() < 0.1:
        text = chance.choice(["", "[" * 100_000, "null", "[]", "{}", '"x"', "1e999", "9" * 5000])
        return text.encode(), f"{text[:10]!r} as a whole"
    tree = json.loads(data)
    what = nonsense(chance, tree)
    if chance.random() < 0.5:
        what += f", {nonsense(chance, tree)}"
    return json.dumps(tree).encode(), what


def _in_state(spoil: Callable[[Random, bytes], tuple[bytes, str]], name: str) -> Any:
    def in_state(chance: Random, data: bytes) -> tuple[bytes, str]:
        with io.BytesIO(data) as content:
            with h5py.File(content, "a") as h5:
                text, what = spoil(chance, bytes(h5["state"][()]))
                del h5["state"]
                h5.create_dataset("state", data=np.frombuffer(text, dtype=np.uint8))
            return content.getvalue(), what

    in_state.__name__ = name
    return in_state


def _loose_ends(chance: Random, data: bytes) -> tuple[bytes, str]:
    """Nonsense where only a callback or an input can tell that it is some."""
    tree = json.loads(data)
    part = chance.choice(["callbacks", "callbacks", "callbacks", "guard", "data", "generators"])
    what = nonsense(chance, tree[part])
    return json.dumps(tree).encode(), f"{part}: {what}"


# By what they ask for. They have numbers of their own, and are none of those of `mutate`.
NAMED: Mapping[str, tuple[tuple[str, Callable[[Random, bytes], tuple[bytes, str]]], ...]] = {
    "numbers": ((MODEL, _inside(sized.numbers, "config.json")), (CONFIG, sized.numbers)),
    "metrics": ((MODEL, _inside(sized.metrics, "config.json")), (CONFIG, sized.metrics)),
    "shared": ((MODEL, _inside(sized.shared, "config.json")), (CONFIG, sized.shared)),
    "overlapping": (
        (MODEL, _inside(sized.overlapping, MEMBER)), (WEIGHTS, sized.overlapping),
        (STATE, sized.overlapping),
    ),
    "deep_names": (
        (MODEL, _inside(sized.deep_names, MEMBER)), (WEIGHTS, sized.deep_names),
        (STATE, sized.deep_names),
    ),
    "arrays_for_lists": ((STATE, sized.arrays_for_lists),),
    "base_attributes": ((STATE, sized.base_attributes(CANARY)),),
}  # fmt: skip


_ANY = (_bits, _metadata, _cut, _longer, _moved)
_KINDS: Mapping[str, tuple[Callable[[Random, bytes], tuple[bytes, str]], ...]] = {
    MODEL: (
        *_ANY, _zip, _headers, _inside(_json, "config.json"), _inside(_hdf5, MEMBER),
        _inside(_metadata, MEMBER), _inside(_bits, MEMBER), _inside(_json, "config.json"),
    ),
    WEIGHTS: (*_ANY, _hdf5, _hdf5, _metadata),
    CONFIG: (_bits, _cut, _json, _json),
    STATE: (
        *_ANY, _metadata, _hdf5, _in_state(_json, "state"), _in_state(_json, "state"),
        *[_in_state(_loose_ends, "loose")] * 4,
    ),
}  # fmt: skip
