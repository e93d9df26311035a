"""Many processes that resolve and read checkpoints while one commits and prunes; without Keras.

    python fault_readers.py <plan.json> <outcome.json>

    plan      folder, database (migrated, empty), readers, epochs
    outcome   reads, how many of them met a prune between the answer and the files, how often
              the database was busy, the reads of the slowest reader, and seconds

One process imports MLflow and forks the others, each with a store of its own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

# Threads would not survive the forks.
os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent.parent))

import children
import kill_roles as roles
import mlflow
from kill_checks import SERIES, World, whole
from kill_roles import Task
from mlflow import MlflowClient

from mlflow_ckpt.errors import ServerAway
from mlflow_ckpt.record import Checkpoint
from mlflow_ckpt.resolver import resolve
from mlflow_ckpt.store import Store

PATIENCE_S = 500.0


def read(world: World, number: int) -> None:
    """Resolve and verify until the writer is through; some take their time in between."""
    store, which = Store(), ("latest", "best", "oldest")[number % 3]
    dice = random.Random(number)
    counts = {"reads": 0, "gone": 0, "busy": 0}
    newest = -1
    while not (world.folder / "enough").exists():
        try:
            found = choose(store, world, which)
        except ServerAway:  # The database is a file, which somebody holds for a moment.
            counts["busy"] += 1
            continue
        time.sleep(dice.choice([0.0, 0.0, dice.uniform(0.0, 1.0)]))
        try:
            whole(store, found)
        except Exception:
            if store.reread(found, SERIES) is not None:
                raise
            counts["gone"] += 1
            again = choose(store, world, which)
            assert again.model_id != found.model_id, f"{found.name} is gone, and resolves"
        counts["reads"] += 1
        if which == "latest":
            assert found.step >= newest, f"the latest was {newest} before: {found.step}"
            newest = found.step
    (world.folder / f"read-{number}").write_text(json.dumps(counts))


def choose(store: Store, world: World, which: str) -> Checkpoint:
    """What a selector names; `oldest` is the one that is pruned next, or the best."""
    if which != "oldest":
        return resolve(world.run_id, which)
    return store.checkpoints(store.run(world.run_id), SERIES)[0]


def begin(world: World) -> None:
    """A run with some checkpoints, so that there is something to resolve."""
    client = MlflowClient()
    made = client.create_experiment("readers", artifact_location=world.artifacts.as_uri())
    run_id = client.create_run(made).info.run_id
    roles.write(replace(world, run_id=run_id), Task(role="write", epochs=3, deliver="now"))
    (world.folder / "run").write_text(run_id)


def fork(world: World, action: Callable[[], None]) -> int:
    """Do something in a child; where it fails, the readers have read enough."""

    def act() -> None:
        mlflow.set_tracking_uri(world.uri)
        try:
            action()
        except BaseException:
            (world.folder / "enough").touch()
            raise

    return children.fork(world.folder, act)


def wait(world: World, *pids: int) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    errors = [path.read_text() for path in world.folder.glob("error-*")]
    assert not any(codes), "\n".join(errors) or codes


def main(plan_path: str, outcome_path: str) -> None:
    plan: dict[str, Any] = json.loads(Path(plan_path).read_text())
    folder = Path(plan["folder"])
    for name in ("mlflow.db", "warm.db"):
        shutil.copy(plan["database"], folder / name)
    # Loads what MLflow loads late, so that the children need not.
    MlflowClient(tracking_uri=f"sqlite:///{folder / 'warm.db'}").search_experiments()
    roles.HANG_S = PATIENCE_S  # for a database that 20 others read
    assert not {"keras", "tensorflow"} & set(sys.modules)
    assert threading.active_count() == 1
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    world = World(folder=folder, uri=uri, run_id="", store="links", seed=3, lease=False)
    wait(world, fork(world, partial(begin, world)))
    world = replace(world, run_id=(folder / "run").read_text())

    began = time.monotonic()
    readers = [fork(world, partial(read, world, number)) for number in range(plan["readers"])]
    try:
        task = Task(role="write", epochs=plan["epochs"], deliver="now")
        wait(world, fork(world, partial(roles.write, world, task)))
    finally:
        (folder / "enough").touch()
    wait(world, *readers)
    seconds = time.monotonic() - began
    counts = [json.loads((folder / f"read-{n}").read_text()) for n in range(plan["readers"])]
    total = {key: sum(count[key] for count in counts) for key in counts[0]}
    fewest = min(count["reads"] for count in counts)
    Path(outcome_path).write_text(json.dumps({**total, "fewest": fewest, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
