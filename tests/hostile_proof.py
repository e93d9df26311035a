"""Do in earnest each thing that the watch is there for. Everything stays in the test's folder."""

from __future__ import annotations

import ctypes
import importlib
import marshal
import os
import pickle
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
from hostile_watch import Watch


def _lambda(folder: Path) -> Callable[[], Any]:
    """Run the code of a `Lambda` layer, as Keras does."""
    path = folder / "work" / "lambda.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)]).save(path)
    return lambda: keras.saving.load_model(path, safe_mode=False)


def _code(folder: Path) -> Callable[[], Any]:
    stored = marshal.dumps(compile("6 * 7", "x", "eval"))
    return lambda: types.FunctionType(marshal.loads(stored), {})()


def _module(folder: Path) -> Callable[[], Any]:
    """Load a module by its name, which fires no event `import`."""
    (folder / "work" / "planted.py").write_text("x = 1\n")
    sys.path.append(str(folder / "work"))
    return lambda: importlib.import_module("planted")


class _Reduced:
    def __reduce__(self) -> tuple[Any, ...]:
        return len, ("x",)


def _pickle(folder: Path) -> Callable[[], Any]:
    stored = pickle.dumps(_Reduced())
    return lambda: pickle.loads(stored)


def _connect() -> None:
    with socket.socket() as made:
        made.connect_ex(("127.0.0.1", 1))


def _h5(path: Path, fill: Callable[[h5py.File], Any]) -> Path:
    with h5py.File(path, "w") as h5:
        fill(h5)
    return path


def _hdf5(path: Path, canary: Path, kind: str) -> Callable[[], Any]:
    """Read something of an HDF5 file that lies in another one."""

    def fill(h5: h5py.File) -> None:
        if kind == "link":
            h5["x"] = h5py.ExternalLink(str(canary), "y")
        elif kind == "bytes":
            h5.create_dataset("x", shape=(4,), dtype="u1", external=[(str(canary), 0, 4)])
        else:
            layout = h5py.VirtualLayout(shape=(1,), dtype="f4")
            layout[...] = h5py.VirtualSource(str(canary), "y", shape=(1,))
            h5.create_virtual_dataset("x", layout)

    _h5(path, fill)

    def read() -> None:
        # The canary is no HDF5 file, which the library finds out by reading it.
        with h5py.File(path) as h5, suppress(OSError, KeyError):
            h5["x"][()]

    return read


def prove(folder: Path, watch: Watch) -> dict[str, Any]:
    """What the watch noted of each deed, by its name; and whether it sees what C does."""
    work, canary = folder / "work", folder / "outside" / "sentinel"
    beside = folder / "work-beside"
    beside.mkdir()
    for name in ("file", "other", "third", "fourth"):
        (beside / name).write_text("x")
    for name in ("empty", "full"):
        (beside / name).mkdir()
    (beside / "full" / "x").write_text("x")
    (work / "inside").write_text("x")
    (work / "way-out").symlink_to(beside)
    (work / "link").symlink_to(beside / "third")
    at = os.open(beside, os.O_RDONLY)
    vocabulary = keras.layers.StringLookup
    deeds: dict[str, Callable[[], Any]] = {
        "nothing": lambda: (work / "inside").write_text("y"),
        "remove-inside": (work / "inside").unlink,
        "lambda": _lambda(folder),
        "code": _code(folder),
        "eval": lambda: eval("6 * 7"),
        "module": _module(folder),
        "pickle": _pickle(folder),
        "library": lambda: ctypes.CDLL("libm.so.6"),
        "process": lambda: subprocess.run(["true"], check=True),
        "shell": lambda: os.system("true"),
        "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
        "connect": _connect,
        "read": lambda: Path("/etc/hostname").exists() and Path("/etc/passwd").read_bytes(),
        "write": lambda: (beside / "made").write_text("x"),
        "write-through-a-link": lambda: (work / "way-out" / "made2").write_text("x"),
        "write-to-a-link": lambda: (work / "link").write_text("x"),
        "remove": (beside / "file").unlink,
        "remove-below": lambda: os.unlink("other", dir_fd=at),
        "rename": lambda: (beside / "third").rename(beside / "renamed"),
        "rename-into": lambda: (beside / "fourth").rename(work / "taken"),
        "mkdir": (beside / "folder").mkdir,
        "rmdir": (beside / "empty").rmdir,
        "symlink": lambda: (beside / "link").symlink_to("/"),
        "hard-link": lambda: os.link(beside / "renamed", beside / "hard"),
        "truncate": lambda: os.truncate(beside / "renamed", 0),
        "chmod": lambda: (beside / "renamed").chmod(0o600),
        "touch": lambda: os.utime(beside / "renamed"),
        "rmtree": lambda: shutil.rmtree(beside / "full"),
        "canary": canary.read_bytes,
        "hdf5-link": _hdf5(work / "link.h5", canary, "link"),
        "hdf5-bytes": _hdf5(work / "bytes.h5", canary, "bytes"),
        "hdf5-virtual": _hdf5(work / "virtual.h5", canary, "virtual"),
        "tensorflow": lambda: tf.io.read_file(str(canary)),
        "vocabulary": lambda: vocabulary(vocabulary=str(canary)),
        "tensorflow-writes": lambda: tf.io.write_file(str(canary.parent / "new"), "x"),
        "numpy": lambda: np.fromfile(canary, dtype="u1"),
    }
    seen: dict[str, Any] = {}
    for name, deed in deeds.items():
        try:
            watch.during(deed)
        except Exception as error:  # noqa: BLE001 (it is reported)
            seen[name] = [f"FAILED: {error!r:.200}"]
            continue
        seen[name] = list(watch.seen)
    os.close(at)
    seen["sees_c"] = watch.sees_c
    return seen
