"""Fill, deliver and prune spools in processes that are killed; without Keras and TensorFlow.

    python kill_worker.py <plan.json> <outcome.json>

One process imports MLflow and forks one child for everything: to fill a spool, to deliver
it, to look at what a kill has left, to finish. So a kill costs what it interrupts, and no
start of an interpreter. The parent holds no connection and no thread: each child connects
for itself.

    plan      folder, database (migrated, empty), server (URI or null), kills, seed, stores,
              rehearse: whether to count first how often each fault point comes
    outcome   kills by fault point, misses, checks, failures: see `Outcome`
"""

from __future__ import annotations

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

# Threads would not survive the forks.
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import children
import kill_checks as checks
import kill_points as points
import mlflow
from kill_checks import World
from kill_roles import HANG_S, TASKS, Task, act, drain, finish, watch, write
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_ckpt.store import _draft

WORLD_KILLS = 8  # until a fresh run begins
LOOK = Task(role="look")
# Fault points to which whoever delivers comes three times or more; chosen twice as often.
COMMON = (
    "create_logged_model",
    "database commit",
    "entry note",
    "finalize_logged_model",
    "journal keep_copy",
    "journal remove",
    "log_batch",
    "os.fsync",
    "os.rename",
    "os.replace",
    "tag_model",
)


# --- its children -----------------------------------------------------------------------------


def prepare(world: World, task: Task) -> None:
    """Make this child's store what the world says."""
    mlflow.set_tracking_uri(world.uri)
    if world.store == "copies":

        def no_links(*_: Any, **__: Any) -> None:
            raise OSError(18, "Invalid cross-device link")

        os.link = no_links
    elif world.store == "handed":
        _draft.get_artifact_repository = points.HandedOver
    if task.refuses:
        real = MlflowClient.create_logged_model

        def refuse(client: MlflowClient, *args: Any, **kwargs: Any) -> Any:
            if random.Random(f"{world.seed} {kwargs['name']}").random() < 0.4:
                raise MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)
            return real(client, *args, **kwargs)

        MlflowClient.create_logged_model = refuse


def fork(world: World, action: Callable[[], None], task: Task = LOOK) -> int:
    """Do something in a child."""

    def act() -> None:
        prepare(world, task)
        action()

    return children.fork(world.folder, act)


def ended(world: World, pid: int) -> bool:
    return children.ended(world.folder, pid, HANG_S)


def done(world: World, action: Callable[[], None]) -> None:
    assert not ended(world, fork(world, action)), "killed from outside"


# --- the campaign -----------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of a campaign.

    Attributes:
        kills: By store, role and fault point.
        misses: Processes that ended before their fault point.
        failures: What did not hold, with what it takes to repeat it.
    """

    kills: Counter[str] = field(default_factory=Counter)
    misses: int = 0
    looks: int = 0
    recoveries: int = 0
    worlds: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(self.kills.values())


class Campaign:
    """Kills, looks, finishes and checks, until there were enough kills."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.outcome = Outcome()
        self._known: dict[tuple[bool, Task], tuple[dict[str, int], float]] = {}
        self._began = time.monotonic()

    def run(self) -> Outcome:
        turn = 0
        while self.outcome.count < self.plan["kills"]:
            seed = self.plan["seed"] * 1_000 + turn
            stores = self.plan["stores"]
            world = self.world(seed, stores[turn % len(stores)])
            said = [f"world {seed}, store {world.store}, lease {world.lease}"]
            dice = random.Random(seed)
            try:
                for _ in range(WORLD_KILLS):
                    if self.outcome.count < self.plan["kills"]:
                        self._kill(world, dice, said)
            except AssertionError as error:
                self.outcome.failures.append("\n".join([*said, str(error)]))
                print(self.outcome.failures[-1], flush=True)
                if len(self.outcome.failures) >= 12:
                    break
            else:
                shutil.rmtree(world.folder)
            turn += 1
        self.outcome.worlds = turn
        self.outcome.seconds = time.monotonic() - self._began
        return self.outcome

    def world(self, seed: int, store: str, name: str = "world") -> World:
        """A fresh run in an experiment of its own."""
        folder = Path(self.plan["folder"]) / f"{name}-{seed}-{store}"
        folder.mkdir(parents=True)
        uri = self.plan["server"] if store == "http" else database(self.plan)
        lease = store != "http" and random.Random(f"{seed} lease").random() < 0.3
        world = World(folder=folder, uri=uri, run_id="", store=store, seed=seed, lease=lease)

        def begin() -> None:
            client = MlflowClient()
            place = None if store == "http" else world.artifacts.as_uri()
            experiment = client.create_experiment(f"{name}-{seed}", artifact_location=place)
            (folder / "run").write_text(client.create_run(experiment).info.run_id)

        done(world, begin)
        return replace(world, run_id=(folder / "run").read_text())

    def _kill(self, world: World, dice: random.Random, said: list[str]) -> None:
        """Kill somebody, look, perhaps kill whoever mends it, finish, check."""
        # Two that hold the lease would wait for each other.
        task = dice.choice(TASKS[1:] if world.lease else TASKS)
        self._attempt(world, task, dice, said)
        while dice.random() < 0.4:
            # The process that mends it may die as well.
            mending = Task(role="drain", refuses=task.refuses)
            self._attempt(world, mending, dice, said)
        done(world, lambda: finish(world))
        said.append("finished")
        self.outcome.recoveries += 1

    def _attempt(self, world: World, task: Task, dice: random.Random, said: list[str]) -> None:
        said.append(f"{task}")
        beside: list[int] = []
        if task.role == "two":
            writing = replace(task, role="write")
            done(world, lambda: write(world, writing))
            beside = [fork(world, lambda: drain(world)), fork(world, lambda: watch(world))]
            victim = Task(role="drain")
        else:
            victim = task
        pid, label = self._begin(world, victim, dice)
        said.append(label)
        try:
            killed = ended(world, pid)
        finally:
            (world.folder / "enough").touch()
            for other in beside:
                assert not ended(world, other)
            (world.folder / "enough").unlink()
        if killed:
            self.outcome.kills[f"{world.store}|{task.role}|{label.rpartition(' ')[0]}"] += 1
        else:
            self.outcome.misses += 1
            said.append("ended before")
        done(world, lambda: checks.nothing_is_torn(world, refuses=task.refuses))
        self.outcome.looks += 1

    def _begin(self, world: World, task: Task, dice: random.Random) -> tuple[int, str]:
        """Start a process that will be killed, and say when; the first of its kind is not."""
        kind = (world.store in ("links", "copies"), task)
        path = world.folder / "counted"
        if path.exists():
            self._known[self._counting] = tuple(json.loads(path.read_text()))
            path.unlink()
        if kind not in self._known and not self.plan["rehearse"]:
            self._known[kind] = (dict.fromkeys(COMMON, 3), 0.5)
        if kind not in self._known:
            self._counting = kind

            def counted() -> None:
                seen, began = points.count(), time.monotonic()
                act(world, task)
                path.write_text(json.dumps([dict(seen), time.monotonic() - began]))

            return fork(world, counted, task), "only to count 1"
        counts, seconds = self._known[kind]
        if dice.random() < 0.25:
            pid = fork(world, lambda: act(world, task), task)
            delay = dice.uniform(0, seconds)
            time.sleep(delay)
            os.kill(pid, signal.SIGKILL)  # it is not waited for yet, so the ID is its own
            return pid, f"by the clock {delay:.4f}"
        often = [name for name in COMMON if name in counts]
        name = dice.choice(sorted([*counts, *often]))
        when, nth = dice.choice(["before", "after"]), dice.randint(1, counts[name])

        def armed() -> None:
            points.arm(name, when, nth)
            act(world, task)

        return fork(world, armed, task), f"{when} {name} {nth}"


def database(plan: dict[str, Any]) -> str:
    return f"sqlite:///{Path(plan['folder']) / 'mlflow.db'}"


def warm_up(campaign: Campaign) -> None:
    """Load what MLflow loads late, and compile what SQLAlchemy compiles, once for all children.

    No connection may be open over a fork, and no thread may be running.
    """
    world = campaign.world(campaign.plan["seed"] * 1_000, "links", "warm")
    mlflow.set_tracking_uri(world.uri)
    write(world, Task(role="write"))
    finish(world)
    for store in (SqlAlchemyStore, RegistryStore):
        for engine in store._engine_map.values():
            engine.dispose()
    opened = {path.resolve().suffix for path in Path("/proc/self/fd").iterdir()}
    assert ".db" not in opened
    assert threading.active_count() == 1
    assert not {"keras", "tensorflow"} & set(sys.modules)


def main(plan_path: str, outcome_path: str) -> None:
    plan = json.loads(Path(plan_path).read_text())
    shutil.copy(plan["database"], Path(plan["folder"]) / "mlflow.db")
    campaign = Campaign(plan)
    warm_up(campaign)
    Path(outcome_path).write_text(json.dumps(vars(campaign.run())))


if __name__ == "__main__":
    main(*sys.argv[1:])
