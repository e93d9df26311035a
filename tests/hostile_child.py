"""Read spoilt checkpoints in a process of its own, and say what came of each.

    python hostile_child.py make <folder>     train, and leave two checkpoints in <folder>/base
    python hostile_child.py read <folder>     case numbers on stdin, one line of JSON for each;
                                              `<kind> <number>` for a mutation of that kind,
                                              `clean <number>` for none
    python hostile_child.py prove <folder>    do what the watch is for; print what it noted

A case may end the process or hold it up: whoever started it sees which case that was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import h5py
import keras
import mlflow
import numpy as np
from builders import data, fit, mlp
from hostile_watch import Watch
from mutations import NAMED, archived, members, mutate, mutate_as, nonsense
from zoo import optimizers_of, values_of

import mlflow_ckpt as ckpt
from mlflow_ckpt import MlflowCheckpoint, fingerprint, keras_internals, rehydrate, training_state
from mlflow_ckpt.digests import digest_bytes
from mlflow_ckpt.errors import CheckpointError, IntegrityError
from mlflow_ckpt.fit_state import FitState
from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS
from mlflow_ckpt.manifest import FILENAME, FileEntry, Manifest, read_bounded
from mlflow_ckpt.training_state import PATH as STATE

WHOLE, PARTS, CLEAN = "whole", "parts", "clean"
_FILES = {WHOLE: (MODEL, STATE), PARTS: (WEIGHTS, CONFIG)}
_SLACK = 256 << 20


class Remembers(keras.callbacks.Callback):
    """A user's callback, whose attributes are state."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # What a state may put there, only its owner can judge.
        seen = getattr(self, "seen", [])
        self.seen = [*(seen if isinstance(seen, list) else []), float(logs["loss"])]
        self.best = {"epoch": epoch, "random": np.random.default_rng(epoch)}


class OwnLogger(keras.callbacks.CSVLogger):
    """A user's callback whose base class writes a file."""


class OwnCheckpoint(keras.callbacks.ModelCheckpoint):
    """A user's callback whose base class writes files."""


def make(folder: Path) -> None:
    """Train two short runs; keep a checkpoint of each kind."""
    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    os.environ["MLFLOW_CKPT_SPOOL"] = str(folder / "spool")
    client = mlflow.MlflowClient()
    where = (folder / "artifacts").as_uri()
    mlflow.set_experiment(experiment_id=client.create_experiment("x", artifact_location=where))
    for kind in (WHOLE, PARTS):
        keras.utils.set_random_seed(7)
        with mlflow.start_run() as run:
            saver = MlflowCheckpoint(save_freq=1, save_weights_only=kind == PARTS, keep=None)
            fit(mlp(), saver, *callbacks(folder), epochs=2)
        found = ckpt.resolve(run.info.run_id, "step=3")
        source = Path(unquote(urlsplit(found.artifact_uri).path))
        shutil.copytree(source, folder / "base" / kind)


def callbacks(folder: Path) -> list[keras.callbacks.Callback]:
    return [
        keras.callbacks.EarlyStopping(patience=9, restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(patience=9),
        keras.callbacks.CSVLogger(str(folder / "log.csv")),
        Remembers(),
    ]


def derived(folder: Path) -> list[keras.callbacks.Callback]:
    """Callbacks that are in no checkpoint, and for which a spoilt one may have a state."""
    return [
        OwnLogger(str(folder / "own.csv")),
        OwnCheckpoint(str(folder / "own.weights.h5"), save_weights_only=True),
    ]


# --- one case -----------------------------------------------------------------


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


class Wrong(Exception):
    """A case did not end as it must."""


def spoil(name: str, base: Path, root: Path) -> dict[str, Any]:
    """Lay down the files of a case; say what they are."""
    named, _, digits = name.rpartition(" ")
    number = int(digits)
    kind = (WHOLE, PARTS)[number % 3 == 0]
    if named in NAMED and not any(path in _FILES[kind] for path, _ in NAMED[named]):
        kind = WHOLE
    old = (base / kind / FILENAME).read_bytes()
    files = {path: (base / kind / path).read_bytes() for path in _FILES[kind]}
    # Of the named ones nothing is learnt where their digest gives them away.
    fits = bool(named) or random.Random(f"fits {number}").random() < 0.75
    if named == CLEAN:
        changed, what, new, same = _FILES[kind][number // 3 % 2], "clean", old, True
    elif not named and number % 13 == 0:
        tree = json.loads(old)
        what = f"manifest: {nonsense(random.Random(number), tree)}"
        new, changed, same = json.dumps(tree).encode(), FILENAME, False
    else:
        mutation = mutate_as(named, number, files) if named else mutate(number, files)
        changed, what = mutation.path, mutation.what
        new, same = old, mutation.files == files
        files = mutation.files
        if same:
            fits = True
        if fits:
            new = _fitting(old, files)
    for path, content in {**files, FILENAME: new}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    digest = digest_bytes(new if fits else old)
    bytes_ = sum(map(len, files.values())) + len(new)
    return {"kind": kind, "path": changed, "what": what, "fits": fits, "digest": digest,
            "bytes": bytes_, "same": new == old and fits}  # fmt: skip


def _fitting(old: bytes, files: Mapping[str, bytes]) -> bytes:
    tree = json.loads(old)
    for entry in tree["files"]:
        if entry["path"] in files:
            content = files[entry["path"]]
            entry.update(size=len(content), digest=digest_bytes(content))
    return json.dumps(tree).encode()


def read(root: Path, about: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Open and read a case as the package does; return what came out."""
    manifest = Manifest.parse(read_bounded(root), digest=about["digest"])
    entries: list[FileEntry] = [e for p in _FILES[about["kind"]] if (e := manifest.entry(p))]
    opened = {entry.path: entry.open(root) for entry in entries}
    found: dict[str, Any] = {}
    try:
        if about["path"] == STATE or (about["path"] == FILENAME and number % 2 and STATE in opened):
            if STATE not in opened:
                return found
            found["state"] = training_state.read(opened[STATE])
            _into_a_fit(found["state"], root)
            return found
        if number % 4 == 0:
            model = mlp()
            model.optimizer.build(model.trainable_variables)
            fingerprint.check_architecture(model, manifest.model, source="x")
            rehydrate.load_weights(model, opened, source="x")
            found["weights"] = values_of(model)[: len(model.weights)]
            return found
        model = rehydrate.read_model(
            opened, custom_objects=None, compile=True, safe_mode=True, source="x",
            recorded=manifest.model,
        )  # fmt: skip
        found["model"] = values_of(model)
        return found
    finally:
        for file in opened.values():
            file.close()


class _Resumes(keras.callbacks.Callback):
    """Restores a state as a resume does: before training, and once inside the epoch."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._state = state

    def on_train_begin(self, logs: Any = None) -> None:
        siblings = keras_internals.calling_callback_list().callbacks
        feed = keras_internals.find_feed(self.model)
        self.fit_state = FitState(self.model, siblings, feed)
        found = self.fit_state.differences(self._state)
        batch = self._state["batch"] if self.fit_state.same_input(self._state, found) else 0
        self.fit_state.restore(self._state, callbacks=True, place=bool(batch), batch=batch)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 0:
            self.fit_state.feed.begin()
            self.fit_state.restore_inside(self._state)


def _into_a_fit(state: Mapping[str, Any], root: Path) -> None:
    x, y = data()
    resumes = _Resumes(state)
    model = mlp(run_eagerly=True)
    try:
        model.fit(x, y, epochs=1, verbose=0, validation_data=(x, y),
                  callbacks=[*callbacks(root), *derived(root), resumes])  # fmt: skip
    finally:
        if hasattr(resumes, "fit_state"):
            resumes.fit_state.release()


# --- what would have been right -----------------------------------------------


def check(found: Mapping[str, Any], root: Path, aside: Path) -> None:
    """Hold what we read against what Keras and h5py read."""
    if "state" in found and not _same(found["state"], _plain_state(root / STATE)):
        raise Wrong("another state than h5py reads")
    if "weights" in found:
        model = mlp()
        model.optimizer.build(model.trainable_variables)
        keras.saving.load_weights(
            model, _weights(root, aside), objects_to_skip=optimizers_of(model)
        )
        if values_of(model)[: len(model.weights)] != found["weights"]:
            raise Wrong("other weights than Keras loads")
    if "model" in found and values_of(_by_keras(root, aside)) != found["model"]:
        raise Wrong("another model than Keras loads")


def _by_keras(root: Path, aside: Path) -> keras.Model:
    if (root / MODEL).exists():
        # Keras heeds a CRC-32 only where it happens to read a member to its end at once.
        (aside / "m.keras").write_bytes(archived([*members((root / MODEL).read_bytes()).items()]))
        return keras.saving.load_model(aside / "m.keras")
    config = json.loads((root / CONFIG).read_bytes())
    model = keras.saving.deserialize_keras_object(config)
    model.load_weights(_weights(root, aside))
    return model


def _weights(root: Path, aside: Path) -> Path:
    path = aside / "m.weights.h5"
    if (root / MODEL).exists():
        path.write_bytes(members((root / MODEL).read_bytes())[MEMBER])
    else:
        shutil.copy(root / WEIGHTS, path)
    return path


def _plain_state(path: Path) -> Any:
    with h5py.File(path) as h5:

        def decode(value: Any) -> Any:
            if isinstance(value, list):
                return [decode(v) for v in value]
            if not isinstance(value, dict):
                return value
            if set(value) == {"$array"}:
                return np.asarray(h5["arrays"][value["$array"]][()])
            if set(value) == {"$tuple"}:
                return tuple(decode(v) for v in value["$tuple"])
            return {k.replace("$$", "$", 1) if k.startswith("$$") else k: decode(v)
                    for k, v in value.items()}  # fmt: skip

        return decode(json.loads(bytes(h5["state"][()])))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and (one.dtype, one.shape) == (other.dtype, other.shape)
            and one.tobytes() == other.tobytes()
        )
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(v, other[k]) for k, v in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other or one != one)


# --- the loop -----------------------------------------------------------------


def run(name: str, folder: Path, watch: Watch) -> dict[str, Any]:
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    root, aside, temporary = work / "case", work / "aside", work / "tmp"
    for each in (root, aside, temporary):
        each.mkdir(parents=True)
    about, number = spoil(name, folder / "base", root), int(name.rpartition(" ")[2])
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    began, found, outcome = time.perf_counter(), None, "right"
    keras.utils.set_random_seed(3)
    try:
        found = watch.during(lambda: read(root, about, number))
    except CheckpointError as error:
        outcome = f"refused: {type(error).__name__}"
        if not about["fits"] and not isinstance(error, IntegrityError):
            outcome = f"WRONG: parsed before its digest: {error!r:.200}"
        if about["same"]:
            outcome = f"WRONG: an unchanged file was refused: {error!r:.200}"
    except BaseException as error:  # noqa: BLE001 (it is reported)
        outcome = f"WRONG: {error!r:.300}"
    seconds, grown = time.perf_counter() - began, _memory("VmHWM") - before
    if found is not None:
        if not about["fits"]:
            outcome = "WRONG: read under a wrong digest"
        else:
            keras.utils.set_random_seed(3)
            try:
                check(found, root, aside)
            except Exception as error:  # noqa: BLE001 (it is reported)
                outcome = f"WRONG: {error!r:.300}"
    if watch.seen:
        outcome = f"WRONG: {watch.seen[:3]}"
    if grown > 2 * about["bytes"] + _SLACK:
        outcome = f"WRONG: {grown >> 20} MiB for {about['bytes'] >> 10} KiB"
    left = [p.name for p in temporary.iterdir()]
    if left:
        outcome = f"WRONG: left behind {left[:3]}"
    keras.backend.clear_session(free_memory=False)
    return {"case": name, "outcome": outcome, "seconds": seconds, "grown": grown,
            **{k: about[k] for k in ("kind", "path", "what", "fits")}}  # fmt: skip


def watch_in(folder: Path) -> Watch:
    """Watch, once what is loaded at a first reading is there."""
    (folder / "work").mkdir(exist_ok=True)
    watch = Watch(folder / "work", readable=[folder], canary=folder / "outside")
    for number in range(12):
        run(f"{CLEAN} {number}", folder, watch)
    return watch


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "make":
        make(folder)
        return
    os.environ["MLFLOW_CKPT_SPOOL"] = str(folder / "spool")
    warnings.simplefilter("ignore")
    watch = watch_in(folder)
    if mode == "prove":
        import hostile_proof

        sys.stdout.write(json.dumps(hostile_proof.prove(folder, watch)))
        return
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        answer = json.dumps(run(line.strip(), folder, watch))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
