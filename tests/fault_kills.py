"""Kill one `fit` after the other, until their run is complete; hold it against one in peace.

    python fault_kills.py <plan.json> <outcome.json>

One process imports Keras and MLflow and forks a child for everything: to train, to look at what
a kill has left, to compare. TensorFlow begins its threads with its first operation, so the
parent makes none, and a kill costs what it interrupts and not an import. Each child that
trains does what the same script does when it is started again with the same run ID.

    plan      folder, database (migrated, empty), server (URI or null), kills, seed
    outcome   see `Outcome`
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import children
import keras
import kill_points as points
import mlflow
import numpy as np
from builders import data, fit, mlp, weights
from fault_driver import shown, verify
from kill_checks import whole
from mlflow import MlflowClient

from mlflow_ckpt import Every, Keep, MlflowCheckpoint, loader
from mlflow_ckpt import writer as writers
from mlflow_ckpt.delivery import Delivery
from mlflow_ckpt.ending import Ending
from mlflow_ckpt.ground import Ground, reach
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.lease import Lease
from mlflow_ckpt.record import DIVERGENCE_TAG, RESUME_EXACT_TAG
from mlflow_ckpt.resumption import Resumption
from mlflow_ckpt.retention import Retention
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store

EPOCHS = 10
LEASH = 2  # epochs that a process trains which is to be killed early
HANG_S = 300.0
SERIES = "ckpt"
SELECTORS = ("latest", "best", "final")
# Epochs that this process has begun; an attribute of a callback would be resumed with it.
BEGUN = itertools.count()
# Tags of one attempt, or of the way that a run took.
OF_ONE_WAY = ("ckpt.resume", "ckpt.fit", "ckpt.lease")

points.POINTS.update(
    {
        "snapshot written": ((writers, "write_files"),),
        "lease": ((Lease, "acquire"),),
        "resume point": ((Ground, "resume_point"),),
        "restore": ((Resumption, "restore"),),
        "first epoch": ((Resumption, "go_on"),),
        "commit": ((Store, "commit"),),
        "prune": ((Retention, "apply"),),
        "delete": ((Store, "delete"),),
        "deliver rows": ((Delivery, "_rows"),),
        "deliver series": ((Delivery, "_series"),),
        "deliver tags": ((Delivery, "_tags"),),
    }
)
# These come when nothing is left to train.
AT_THE_END = {
    "end record": ((Ending, "record"),),
    "end delivery": ((Ending, "deliver"),),
    "deliver final": ((Delivery, "_final"),),
    "deliver end": ((Delivery, "_end"),),
    "set_terminated": ((MlflowClient, "set_terminated"),),
}
points.POINTS.update(AT_THE_END)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A training.

    Attributes:
        steps: Batches from checkpoint to checkpoint; `None` saves each epoch.
        pace_s: What each batch takes longer: delivery then keeps up with it.
        dataset: Whether it trains on a seeded `tf.data`, with callbacks that have a state.
    """

    steps: int | None = None
    pace_s: float = 0.0
    dataset: bool = False


KINDS = (Kind(), Kind(steps=3, pace_s=0.01), Kind(steps=5, dataset=True), Kind(pace_s=0.02))


@dataclass(frozen=True, kw_only=True)
class World:
    """One run with its spool and its server."""

    folder: Path
    uri: str
    run_id: str
    kind: Kind

    @property
    def spool(self) -> Spool:
        return Spool(dir=self.folder / "spool")


# --- in the children --------------------------------------------------------------------------


class Pace(keras.callbacks.Callback):
    """Slows each batch down, and kills a process that got too far without its instant.

    Args:
        leash: Epochs that it may train; `None` for all.
    """

    def __init__(self, world: World, leash: int | None) -> None:
        super().__init__()
        self.world = world
        self.leash = leash

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if next(BEGUN) == self.leash:
            (self.world.folder / "leash").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.world.kind.pace_s)


def train(world: World, leash: int | None = None) -> None:
    """What the user's script does each time it is started, until its interpreter has ended."""
    script(world, Pace(world, leash))
    end = time.monotonic() + 60
    while threads := [t.name for t in threading.enumerate() if t.name.startswith("mlflow-ckpt")]:
        assert time.monotonic() < end, f"still there: {threads}"
        time.sleep(0.02)


def script(world: World, pace: Pace) -> None:
    keras.utils.set_random_seed(5)
    model, kind = mlp(), world.kind
    checkpoint = MlflowCheckpoint(
        save_freq=Every(steps=kind.steps) if kind.steps else "epoch",
        keep=Keep(last=2, best=1),
        spool=world.spool,
    )
    with mlflow.start_run(run_id=world.run_id):
        if not kind.dataset:
            fit(model, checkpoint, pace, epochs=EPOCHS, batch_size=8)
            return
        import tensorflow as tf

        x, y = data()
        pairs = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(64, seed=9).batch(8)
        callbacks = [
            checkpoint,
            pace,
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
            keras.callbacks.EarlyStopping(patience=50, restore_best_weights=True),
        ]
        model.fit(pairs, epochs=EPOCHS, validation_data=(x, y), verbose=0, callbacks=callbacks)


def look(world: World) -> None:
    """Right after a kill, before anybody has mended anything: nothing is torn, nothing lost."""
    store = Store()
    ground = reach(store, world.run_id, SERIES, world.spool)
    try:
        series = ground.run.series.get(SERIES)
        if series is None:
            assert ground.journal.copy() is None
            return
        committed = verify(world.run_id)
        point = ground.resume_point(series)
        if point is not None:
            whole(store, point)
    finally:
        ground.release()
    step = point.step if point else 0
    note = world.folder / "step"
    before = int(note.read_text()) if note.exists() else 0
    newest = max((c.step for c in committed), default=0)
    assert step >= max(before, newest), f"resumes at {step}; was at {before}, server has {newest}"
    note.write_text(str(step))
    names = [c.name for c in committed if c.kind != "final"]
    assert len(set(names)) == len(names), f"twice: {names}"
    if newest:
        loader.load_model(world.run_id, "latest")


def note_whole(world: World) -> None:
    """Keep what the run in peace came to, for the others to be held against."""
    (world.folder / "whole.json").write_text(json.dumps(picture(world)))
    arrays = {
        f"{name}/{i:03d}": value
        for name in SELECTORS
        for i, value in enumerate(weights(loader.load_model(world.run_id, name)))
    }
    np.savez(world.folder / "whole.npz", **arrays)


def picture(world: World) -> dict[str, Any]:
    """What must be the same, however often it was killed; as JSON has it."""
    found = shown(world.run_id)
    found.pop("costs")
    for tags in (found["tags"], *(model["tags"] for model in found["models"].values())):
        for key in [key for key in tags if key.startswith(OF_ONE_WAY)]:
            del tags[key]
    found["checkpoints"] = [[c.name, c.kind, c.step, c.final] for c in verify(world.run_id)]
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def compare(world: World, peace: Path) -> None:
    """Hold a run that was killed and completed against the one in peace."""
    client = MlflowClient()
    run = client.get_run(world.run_id)
    assert DIVERGENCE_TAG not in run.data.tags, run.data.tags[DIVERGENCE_TAG]
    assert run.data.tags.get(RESUME_EXACT_TAG, "true") == "true"
    for key in run.data.metrics:
        steps = [m.step for m in client.get_metric_history(world.run_id, key)]
        assert len(set(steps)) == len(steps), f"{key} has a step twice: {steps}"
    ours, theirs = picture(world), json.loads((peace / "whole.json").read_text())
    for name, expected in theirs.items():
        assert ours[name] == expected, f"{name}: {ours[name]}, expected {expected}"
    with np.load(peace / "whole.npz") as arrays:
        for name in SELECTORS:
            expected = [arrays[key] for key in arrays.files if key.startswith(f"{name}/")]
            found = weights(loader.load_model(world.run_id, name))
            assert len(found) == len(expected)
            assert all(map(np.array_equal, found, expected)), f"{name} differs"
    leases = [key for key in run.data.tags if key.startswith("ckpt.lease")]
    assert not leases, f"left: {leases}"
    journal = Journal.create(world.spool.folder(), world.run_id, SERIES, {})
    waiting = [entry.kind for entry in journal.waiting()]
    assert not waiting, f"still waits: {waiting}"
    left = {p.name for p in journal.path.iterdir()} - {"journal.json", "lock", "copy"}
    inside = {p.name for p in (journal.path / "making").iterdir()} | {
        p.name for p in (journal.path / "refused").iterdir()
    }
    assert (left, inside) == ({"making", "refused"}, set())
    models = client.search_logged_models([run.info.experiment_id])
    ids = {m.model_id for m in models if m.source_run_id == world.run_id}
    kept = {c.model_id for c in verify(world.run_id)}
    assert ids == kept, f"on the server beside its checkpoints: {ids - kept}"
    if world.uri.startswith("sqlite"):
        folders = {p.parent.name for p in world.folder.glob("artifacts/models/*/artifacts")}
        assert folders == kept, f"files of no checkpoint: {folders - kept}"


# --- the parent -------------------------------------------------------------------------------


def fork(world: World, action: Callable[[], None]) -> int:
    """Do something in a child."""

    def act() -> None:
        log = os.open(world.folder / "output", os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        mlflow.set_tracking_uri(world.uri)
        action()

    return children.fork(world.folder, act)


def ended(world: World, pid: int) -> bool:
    return children.ended(world.folder, pid, HANG_S)


def done(world: World, action: Callable[[], None]) -> None:
    assert not ended(world, fork(world, action)), "killed from outside"


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        kills: By instant.
        resumed: How many of the killed processes went on from a checkpoint.
        misses: Processes that ended before their instant.
        chains: Kills of each run.
        failures: What did not hold, with what it takes to repeat it.
    """

    kills: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    misses: int = 0
    chains: list[int] = field(default_factory=list)
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


class Campaign:
    """Chains of kills, each on a run of its own, until there were enough."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._profiles: dict[tuple[Kind, bool], tuple[Path, dict[str, int], float]] = {}

    def run(self) -> Outcome:
        began, turn = time.monotonic(), 0
        while self.outcome.kills.total() < self.plan["kills"]:
            self._chain(turn)
            turn += 1
            if len(self.outcome.failures) >= 5:
                break
        self.outcome.seconds = time.monotonic() - began
        return self.outcome

    def _chain(self, turn: int) -> None:
        dice = random.Random(f"{self.plan['seed']} {turn}")
        kind = KINDS[turn % len(KINDS)]
        http = self.plan["server"] is not None and turn % 3 == 2
        said = [f"chain {turn} of seed {self.plan['seed']}, {kind}, http {http}"]
        peace, counts, seconds = self._profile(kind, http)
        world, count = self.world(f"chain-{turn}", kind, http), 0
        length = min(dice.randint(6, 10), self.plan["kills"] - self.outcome.kills.total())
        try:
            while count < length:
                late = count >= length - max(1, length // 4)
                if not self._kill(world, dice, counts, seconds, late, said):
                    break
                count += 1
                done(world, lambda: look(world))
            done(world, lambda: train(world))
            said.append("completed")
            done(world, lambda: compare(world, peace))
        except AssertionError as error:
            said.append(f"folder {world.folder}")
            self.outcome.failures.append("\n".join([*said, str(error)]))
        else:
            shutil.rmtree(world.folder)
        self.outcome.chains.append(count)

    def _kill(
        self,
        world: World,
        dice: random.Random,
        counts: dict[str, int],
        seconds: float,
        late: bool,
        said: list[str],
    ) -> bool:
        """Let a process train until it is killed; whether it was."""
        began, leash = world.folder / "began", world.folder / "leash"
        began.unlink(missing_ok=True)
        leash.unlink(missing_ok=True)
        step = world.folder / "step"
        goes_on = step.exists() and int(step.read_text()) > 0
        if not late and dice.random() < 0.25:
            label, delay = "by the clock", dice.uniform(0, seconds * LEASH / EPOCHS)
            said.append(f"killed after {delay:.3f} s")

            def watched() -> None:
                began.touch()
                train(world)

            pid = fork(world, watched)
            while not began.exists():
                time.sleep(0.001)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so the ID is its own
        else:
            at_the_end = late and dice.random() < 0.7
            able = [n for n in sorted(counts) if (n in AT_THE_END) == at_the_end]
            if not goes_on:
                able = [name for name in able if name != "restore"]
            name, when = dice.choice(able), dice.choice(["before", "after"])
            most = counts[name] if at_the_end else max(1, counts[name] * LEASH // EPOCHS)
            nth = dice.randint(1, most)
            label = f"{when} {name}"
            said.append(f"killed {label} {nth}")

            def armed() -> None:
                points.arm(name, when, nth)  # type: ignore[arg-type]
                train(world, None if late else LEASH)

            pid = fork(world, armed)
        if not ended(world, pid):
            self.outcome.misses += 1
            said.append("missed")
            return False
        if leash.exists():
            label = "at an epoch's begin"
            said.append(label)
        self.outcome.kills[label] += 1
        self.outcome.resumed += goes_on
        return True

    def _profile(self, kind: Kind, http: bool) -> tuple[Path, dict[str, int], float]:
        """A run in peace: its folder, how often each instant came, and its seconds."""
        if (kind, http) not in self._profiles:
            world = self.world(f"peace-{len(self._profiles)}", kind, http)
            path = world.folder / "profile"

            def counted() -> None:
                seen, began = points.count(), time.monotonic()
                train(world)
                path.write_text(json.dumps([dict(seen), time.monotonic() - began]))

            done(world, counted)
            done(world, lambda: note_whole(world))
            counts, seconds = json.loads(path.read_text())
            # A process that resumes comes to these, and that one did not.
            counts |= {"restore": 1, "first epoch": 1}
            self._profiles[kind, http] = (world.folder, counts, seconds)
        return self._profiles[kind, http]

    def world(self, name: str, kind: Kind, http: bool) -> World:
        """A fresh run, with a database of its own unless it is on a server."""
        folder = Path(self.plan["folder"]) / name
        folder.mkdir(parents=True)
        uri = self.plan["server"]
        if not http:
            shutil.copy(self.plan["database"], folder / "mlflow.db")
            uri = f"sqlite:///{folder / 'mlflow.db'}"
        unborn = World(folder=folder, uri=uri, run_id="", kind=kind)

        def begin() -> None:
            client = MlflowClient()
            place = None if http else (folder / "artifacts").as_uri()
            experiment = client.create_experiment(name, artifact_location=place)
            (folder / "run").write_text(client.create_run(experiment).info.run_id)

        done(unborn, begin)
        return World(folder=folder, uri=uri, run_id=(folder / "run").read_text(), kind=kind)


def main(plan_path: str, outcome_path: str) -> None:
    plan = json.loads(Path(plan_path).read_text())
    assert threading.active_count() == 1
    outcome = Campaign(plan).run()
    Path(outcome_path).write_text(json.dumps(vars(outcome)))


if __name__ == "__main__":
    main(*sys.argv[1:])
