"""SIGKILL at every instant of filling, delivering and pruning a spool: nothing torn, nothing lost.

After each kill somebody looks, before anything is mended: all that resolves is whole, and the
machine can resume from the newest checkpoint that was appended. Then a new process finishes,
which may be killed as well, and run and spool are held against what the dead were told.

    kill_worker    the campaign: who is killed, and when
    kill_roles     what they do until then
    kill_points    instants by name
    kill_checks    what must hold
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kill_checks
import kill_roles
import pytest
from doubles import tracking_server

from mlflow_ckpt.contents import entry_data
from mlflow_ckpt.manifest import Manifest
from mlflow_ckpt.record import MetricRow, Position

WORKER = Path(__file__).with_name("kill_worker.py")


def campaign(
    folder: Path, database: Path, *, kills: int, seed: int, stores: tuple[str, ...], rehearse: bool
) -> dict[str, Any]:
    """Let processes die; returns what came of it."""
    plan_file, outcome_file = folder / "plan.json", folder / "outcome.json"
    with ExitStack() as after:
        server = None
        if "http" in stores:
            (folder / "server.db").write_bytes(database.read_bytes())
            server = after.enter_context(
                tracking_server(folder / "server.db", folder / "served")
            ).uri
        plan = {
            "folder": str(folder),
            "database": str(database),
            "server": server,
            "kills": kills,
            "seed": seed,
            "stores": stores,
            "rehearse": rehearse,
        }
        plan_file.write_text(json.dumps(plan))
        command = [sys.executable, str(WORKER), str(plan_file), str(outcome_file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3_600, check=False)
    assert done.returncode == 0, f"{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}"
    outcome: dict[str, Any] = json.loads(outcome_file.read_text())
    table = report(outcome)
    (folder / "kills.txt").write_text(table)
    print(table)
    assert not outcome["failures"], "\n\n".join(outcome["failures"])
    assert sum(outcome["kills"].values()) >= kills
    return outcome


def report(outcome: dict[str, Any]) -> str:
    """Counts for a person."""
    by_point: Counter[str] = Counter()
    by_role: Counter[str] = Counter()
    for key, count in outcome["kills"].items():
        store, role, point = key.split("|")
        by_point[point] += count
        by_role[f"{store}, {role}"] += count
    lines = [f"{sum(by_point.values()):5d} kills in {outcome['seconds']:.0f} s"]
    for name in ("misses", "looks", "recoveries", "worlds"):
        lines.append(f"{outcome[name]:5d} {name}")
    lines.append(f"{len(outcome['failures']):5d} failures")
    for counts in (by_role, by_point):
        lines += ["", *(f"{count:5d} {name}" for name, count in sorted(counts.items()))]
    return "\n".join(lines)


def test_nothing_is_torn_or_lost_by_15_kills(tmp_path: Path, empty_database: Path) -> None:
    stores = ("links", "handed")
    campaign(tmp_path, empty_database, kills=15, seed=1, stores=stores, rehearse=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "kills"), [("links", 160), ("handed", 120), ("copies", 60), ("http", 100)]
)
def test_nothing_is_torn_or_lost_by_440_kills(
    tmp_path: Path, empty_database: Path, store: str, kills: int
) -> None:
    outcome = campaign(
        tmp_path, empty_database, kills=kills, seed=kills, stores=(store,), rehearse=True
    )
    points = {key.split("|")[2].partition(" ")[2] for key in outcome["kills"]}
    assert "the clock" in points
    assert len(points) >= 15, points


def test_they_say_of_a_checkpoint_what_the_writer_says() -> None:
    """They build their entries themselves, because the writer's module brings Keras."""
    position = Position(series="ckpt", kind="epoch", epoch=1, step=4, fit=1)
    row = MetricRow(key="loss", value=0.5, timestamp=1, step=1)
    diverged = MetricRow(key="accuracy", value=float("nan"), timestamp=1, step=1)
    request = SimpleNamespace(
        position=position,
        series=kill_checks.SERIES,
        rows=[row],
        curve=[row, diverged],
        metrics={"loss": 0.5, "accuracy": float("nan")},
        snapshot=SimpleNamespace(weights_only=False, strategy="host-copy"),
    )
    manifest = Manifest(files=[], checkpoint={})
    theirs = entry_data(request, manifest, kill_checks.KEEP)  # type: ignore[arg-type]
    ours = kill_roles.entry_data(position, manifest, [row, diverged])
    created = "created_at"
    assert repr(ours | {created: 0}) == repr(theirs | {created: 0})
