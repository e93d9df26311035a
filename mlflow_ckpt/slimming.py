"""Take out of a `.keras` file what only training needs, without making its model.

    config.json       without how the model, or one in it, was compiled
    model.weights.h5  without the groups of the optimizers
    all else          as it is

So no class of the user's is needed, and no memory for the tensors. What is left loads as the
whole file does, without a loss, a metric or an optimizer of the user's.

The file is looked through before HDF5 opens it, as for a load, and so is the one that was
written: every dataset that stays has the bytes it had. Where an optimizer holds what is no state
of one, such as a layer that Keras came to there first, the whole file stays as it is: its model
could not be filled without it. An optimizer that the class makes itself, and not `compile`, keeps
what it has before it is built, or Keras would warn of it. Sizes are in bytes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from mlflow_ckpt import plain_json
from mlflow_ckpt.archive import Archive
from mlflow_ckpt.errors import IntegrityError, ModelNotLoadable
from mlflow_ckpt.mapped import MappedWeights
from mlflow_ckpt.members import MEMBER, MODEL
from mlflow_ckpt.say import first_line
from mlflow_ckpt.stream import CHUNK, Stream

_CONFIG, _COMPILED = "config.json", "compile_config"
# What Keras's optimizers store: their own variables, and those of optimizers that they wrap.
_STATE = re.compile(r"((inner_optimizer|optimizers/[^/]+)/)*vars/\d+")
_OPTIMIZER, _VARIABLES, _STEPS = "optimizer", "vars", "vars/0"
_UNBUILT = ("/iteration", "/learning_rate")


@dataclass(frozen=True, kw_only=True)
class Slimmed:
    """What became of a model file.

    Attributes:
        before, after: Its bytes.
        kept: Why the state of its optimizers is still in it; empty: it is not.
    """

    before: int
    after: int
    kept: str = ""


class _NoState(Exception):
    """An optimizer holds something that may belong to the model."""


def slim(file: BinaryIO, root: Path, recorded: Mapping[str, Any]) -> Slimmed:
    """Write the model of a verified `.keras` file, slimmed, to `data/model.keras` below `root`.

    Args:
        recorded: The fingerprint of that model, which names its optimizers.

    Raises:
        ModelNotLoadable: If the file is not what Keras writes.
        IntegrityError: If what was written is not what stays of it.
        OSError: If the disk is full or fails.
    """
    target = root / MODEL
    target.parent.mkdir(parents=True, exist_ok=True)
    with MappedWeights(file) as source:
        config, compiled = _config_of(source)
        names = {name for each in compiled for name in _names(each)}
        made = {_OPTIMIZER, *(key for each in compiled if isinstance(each, dict) for key in each)}
        attributes = {
            each["attribute"]: 0 if each["attribute"] in made else _unbuilt(each)
            for each in recorded.get("optimizers", [])
        }
        kept = ""
        try:
            dropped = dict(_optimizers(source.h5, attributes, names))
        except _NoState as error:
            dropped, kept = {}, str(error)
        if kept or not (dropped or compiled):
            file.seek(0)
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy, CHUNK)
        else:
            _write(source, target, json.dumps(config).encode(), dropped)
    return Slimmed(before=file.seek(0, 2), after=target.stat().st_size, kept=kept)


# --- what goes ----------------------------------------------------------------


def _config_of(source: MappedWeights) -> tuple[Any, list[Any]]:
    """The config of a model that was never compiled, and how it and models in it were."""
    try:
        config = plain_json.loads(source.member(_CONFIG))
    except ValueError as error:
        raise ModelNotLoadable(
            f"Expected a {_CONFIG} as Keras writes it. Received: {first_line(error)} Take another "
            "checkpoint."
        ) from error
    compiled = []
    for node in _objects(config):
        if node.get(_COMPILED):
            compiled.append(node[_COMPILED])
            node[_COMPILED] = None  # as Keras does where it is not to compile
    return config, compiled


def _objects(config: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of which Keras makes an object, from the outside in."""
    row = [config]
    while row:
        each = row.pop()
        if isinstance(each, dict):
            if "class_name" in each and "config" in each:
                yield each
            row.extend(each.values())
        elif isinstance(each, list):
            row.extend(each)


def _names(compiled: Any) -> Iterator[str]:
    """What the optimizers of a compilation are called, beside its losses and metrics."""
    for node in _objects(compiled):
        name = node["config"].get("name") if isinstance(node["config"], dict) else None
        if isinstance(name, str):
            yield name


def _unbuilt(optimizer: Mapping[str, Any]) -> int:
    """How many variables a recorded optimizer has before it is built."""
    paths = [str(path) for path, _, _ in optimizer["variables"]]
    return next((i for i, p in enumerate(paths) if not p.endswith(_UNBUILT)), len(paths))


def _optimizers(
    group: h5py.Group, attributes: Mapping[str, int], names: Collection[str]
) -> Iterator[tuple[str, int]]:
    """Paths of the groups that hold the state of an optimizer, and how many variables stay.

    Those of the model itself are recorded, by attribute. Those of a model in it are not: Keras
    stores them as `optimizer`, under a name that its compilation gave.

    Raises:
        _NoState: If a recorded one holds something else.
    """
    for name, item in group.items():
        if not isinstance(item, h5py.Group) or name == _VARIABLES:
            continue
        if group.name == "/" and name in attributes:
            if not _is_state(item):
                raise _NoState(f"`model.{name}` stores more than variables of an optimizer")
            yield item.name, attributes[name]
        elif name == _OPTIMIZER and _called(item) in names and _is_state(item):
            yield item.name, 0
        else:
            yield from _optimizers(item, attributes, names)


def _called(group: h5py.Group) -> Any:
    return group[_VARIABLES].attrs.get("name") if _VARIABLES in group else None


def _is_state(group: h5py.Group) -> bool:
    """Whether everything in a group is a variable of an optimizer, whose first counts steps."""
    paths = list[str]()
    group.visititems(lambda path, item: paths.append(path) if _holds_data(item) else None)
    steps = group.get(_STEPS)
    counts = isinstance(steps, h5py.Dataset) and steps.shape == () and steps.dtype.kind in "iu"
    return counts and all(map(_STATE.fullmatch, paths))


def _holds_data(item: Any) -> bool:
    return isinstance(item, h5py.Dataset)


# --- what stays ---------------------------------------------------------------


def _write(source: MappedWeights, target: Path, config: bytes, dropped: Mapping[str, int]) -> None:
    with tempfile.TemporaryDirectory(prefix="mlflow-ckpt-") as folder:
        weights = Path(folder) / MEMBER
        with h5py.File(weights, "w") as file:
            _copy(source.h5, file, dropped)
        with weights.open("rb") as file, Stream(target) as stream:
            archive = Archive(stream, time.localtime())
            for name in source.members:
                archive.add(name, config if name == _CONFIG else source.member(name))
            archive.begin(MEMBER, weights.stat().st_size)
            while chunk := file.read(CHUNK):
                stream.write(chunk)
            archive.end()
            archive.close()
    _check(source, target, dropped)


def _copy(source: h5py.Group, target: h5py.Group, dropped: Mapping[str, int]) -> None:
    for name, text in source.attrs.items():
        target.attrs[name] = text
    for name, item in source.items():
        if isinstance(item, h5py.Dataset):
            source.copy(item, target, name)
        elif item.name not in dropped:
            _copy(item, target.create_group(name), dropped)
        elif first := dropped[item.name]:
            _copy_first(item[_VARIABLES], target.create_group(f"{name}/{_VARIABLES}"), first)


def _copy_first(source: h5py.Group, target: h5py.Group, count: int) -> None:
    for name, text in source.attrs.items():
        target.attrs[name] = text
    for index in range(count):
        source.copy(source[str(index)], target, str(index))


def _check(source: MappedWeights, target: Path, dropped: Mapping[str, int]) -> None:
    """Hold what was written against what it is a part of.

    Raises:
        IntegrityError: If they differ. The file is removed.
    """
    gone = tuple(f"{path}/" for path in dropped)
    expected = {each.path for each in source.stored if not each.path.startswith(gone)}
    expected |= {f"{p}/{_VARIABLES}/{i}" for p, count in dropped.items() for i in range(count)}
    with target.open("rb") as file, MappedWeights(file) as found:
        stored = {each.path for each in found.stored}
        wrong = sorted(expected ^ stored) or [
            path for path in sorted(expected) if not _same(source, found, path)
        ]
    if wrong:
        target.unlink()
        raise IntegrityError(
            f"Expected {wrong[0]!r} in the slim copy as it is in the checkpoint. Received: another "
            "one. Try again, or register the whole checkpoint: slim=False, or --full."
        )


def _same(source: MappedWeights, found: MappedWeights, path: str) -> bool:
    """Whether a dataset is the same in both files: its shape, its type, and every byte."""
    old, new = source.h5[path], found.h5[path]
    if (old.shape, old.dtype, dict(old.attrs)) != (new.shape, new.dtype, dict(new.attrs)):
        return False
    start, there, size = old.id.get_offset(), new.id.get_offset(), old.nbytes
    return all(
        bytes(source.content[start + at : start + min(at + CHUNK, size)])
        == bytes(found.content[there + at : there + min(at + CHUNK, size)])
        for at in range(0, size, CHUNK)
    )
