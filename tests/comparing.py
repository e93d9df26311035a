"""Hold the engine's files against those that Keras writes of the same state.

Equal means: every group, dataset and attribute of the HDF5 file with its type and bytes,
the archive's members, the config as JSON, the assets. Only the date may differ.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS
from mlflow_ckpt.snapshot import Capturer, Snapshot, Strategy

BORROWED: Strategy = "copy-on-write"
COPIED: Strategy = "host-copy"


def attributes(item: Any) -> dict[str, Any]:
    """Attributes of an HDF5 object: value and stored type."""
    types = {name: h5py.h5a.open(item.id, name.encode()).get_type().encode() for name in item.attrs}
    return {name: (item.attrs[name], kind) for name, kind in types.items()}


def tree(data: bytes) -> dict[str, Any]:
    """Every group, dataset and attribute of an HDF5 file, with the bytes."""
    found: dict[str, Any] = {}

    def visit(group: h5py.Group) -> None:
        found[group.name] = attributes(group)
        for name, item in group.items():
            assert isinstance(group.get(name, getlink=True), h5py.HardLink)
            if isinstance(item, h5py.Group):
                visit(item)
                continue
            assert (item.chunks, item.external, item.is_virtual) == (None, None, False)
            kind = item.id.get_type().encode()
            content = np.asarray(item[()]).tobytes()
            found[item.name] = (item.shape, item.dtype, kind, content, attributes(item))

    with h5py.File(io.BytesIO(data)) as file:
        visit(file)
    return found


def members(path: Path) -> dict[str, bytes]:
    """Content of a sound archive whose members are stored as they are."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(set(names)) == len(names)
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            assert_local_header(path, info)
        return {name: archive.read(name) for name in names}


def assert_local_header(path: Path, info: zipfile.ZipInfo) -> None:
    """Hold a member's own header against the directory: `zipfile` reads only the latter."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        (magic, _, flags, method, _, _, crc, packed, size, name, extra) = struct.unpack(
            "<LHHHHHLLLHH", file.read(30)
        )
        assert (magic, method, flags) == (0x04034B50, zipfile.ZIP_STORED, info.flag_bits)
        assert file.read(name).decode() == info.filename
        file.seek(extra, io.SEEK_CUR)
        if not flags & 1 << 3:
            assert (crc, packed, size) == (info.CRC, info.file_size, info.file_size)
            return
        file.seek(info.file_size, io.SEEK_CUR)
        expected = (0x08074B50, info.CRC, info.file_size, info.file_size)
        assert struct.unpack("<LLLL", file.read(16)) == expected


def differences(ours: Any, theirs: Any, at: str = "") -> list[str]:
    """Paths within two trees of mappings and lists at which they differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        alone = [f"{at}/{key} (in one only)" for key in ours.keys() ^ theirs.keys()]
        both = [key for key in ours if key in theirs]
        return alone + [d for k in both for d in differences(ours[k], theirs[k], f"{at}/{k}")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{at}/{i}")]
    return [] if ours == theirs else [at]


def assert_equal(ours: Any, theirs: Any, what: str) -> None:
    found = differences(ours, theirs)
    assert not found, f"Keras writes another {what} at {found}"


def assert_same_tree(ours: bytes, theirs: bytes) -> None:
    """Hold one `.weights.h5` against another."""
    assert_equal(tree(ours), tree(theirs), "dataset or attribute")


def assert_same_archive(ours: Path, theirs: Path) -> None:
    """Hold one `.keras` file against another."""
    mine, other = members(ours), members(theirs)
    assert sorted(mine) == sorted(other), "Keras writes other members"
    assert_same_tree(mine.pop(MEMBER), other.pop(MEMBER))
    assert_equal(*(json.loads(m.pop("config.json")) for m in (mine, other)), "config")
    metadata, expected = (json.loads(m.pop("metadata.json")) for m in (mine, other))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d@\d\d:\d\d:\d\d", metadata.pop("date_saved"))
    expected.pop("date_saved")
    assert_equal(metadata, expected, "metadata")
    assert_equal(mine, other, "asset")


class SideBySide:
    """One model, both formats, written by the engine and by Keras.

    Attributes:
        ours, theirs: Folders that each hold the three files after `check`.
    """

    def __init__(self, model: keras.Model, folder: Path, strategy: Strategy) -> None:
        self.model, self.folder, self.strategy = model, folder, strategy
        self.capturers = [
            Capturer(model, weights_only=weights_only, strategy=strategy)
            for weights_only in (False, True)
        ]
        self.round = 0

    def capture(self) -> None:
        """Take the state with the engine, then let Keras save it."""
        self.round += 1
        self.ours = self.folder / f"ours-{self.round}"
        self.theirs = self.folder / f"theirs-{self.round}"
        self.snapshots = [capturer.capture() for capturer in self.capturers]
        (self.theirs / "data").mkdir(parents=True)
        self.model.save(self.theirs / MODEL)
        self.model.save_weights(self.theirs / WEIGHTS)
        config = json.dumps(keras.saving.serialize_keras_object(self.model))
        (self.theirs / CONFIG).write_text(config, encoding="utf-8")

    def check(self) -> None:
        """Write what was captured and compare."""
        assert [s.strategy for s in self.snapshots] == [self.strategy] * 2
        for snapshot in self.snapshots:
            assert_digested(snapshot, self.ours)
        assert_same_archive(self.ours / MODEL, self.theirs / MODEL)
        assert_same_tree(*((d / WEIGHTS).read_bytes() for d in (self.ours, self.theirs)))
        configs = [json.loads((d / CONFIG).read_bytes()) for d in (self.ours, self.theirs)]
        assert_equal(*configs, "config")


def assert_digested(snapshot: Snapshot, folder: Path) -> None:
    """Write a snapshot; what it says about its files must be so."""
    for entry in snapshot.write(folder):
        data = (folder / entry.path).read_bytes()
        assert (entry.size, entry.digest) == (len(data), digest_bytes(data))
