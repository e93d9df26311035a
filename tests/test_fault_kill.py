"""A `fit` that is killed again and again ends like one that was left in peace.

Each chain kills the processes of one run, the resumed ones too, at instants of a schedule
and by the clock, until it is complete: see `fault_kills.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from doubles import tracking_server

SCRIPT = Path(__file__).with_name("fault_kills.py")


def campaign(folder: Path, database: Path, *, kills: int, seed: int, http: bool) -> dict[str, Any]:
    """Kill so many; returns what came of it."""
    plan, outcome = folder / "plan.json", folder / "outcome.json"
    with ExitStack() as after:
        server = None
        if http:
            (folder / "server.db").write_bytes(database.read_bytes())
            server = after.enter_context(
                tracking_server(folder / "server.db", folder / "served")
            ).uri
        plan.write_text(
            json.dumps(
                {
                    "folder": str(folder / "worlds"),
                    "database": str(database),
                    "server": server,
                    "kills": kills,
                    "seed": seed,
                }
            )
        )
        command = [sys.executable, str(SCRIPT), str(plan), str(outcome)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=7_200, check=False)
    assert done.returncode == 0, f"{done.stdout[-2_000:]}\n{done.stderr[-4_000:]}"
    found: dict[str, Any] = json.loads(outcome.read_text())
    return found


def test_killed_twice_and_completed(tmp_path: Path, empty_database: Path) -> None:
    found = campaign(tmp_path, empty_database, kills=2, seed=1, http=False)
    assert not found["failures"], "\n\n".join(found["failures"])
    assert sum(found["kills"].values()) == 2


@pytest.mark.slow
def test_killed_seventy_times_and_completed(tmp_path: Path, empty_database: Path) -> None:
    found = campaign(tmp_path, empty_database, kills=70, seed=2, http=True)
    count = sum(found["kills"].values())
    print(
        f"\n{count} kills in {len(found['chains'])} runs {found['chains']}, of which "
        f"{found['resumed']} of resumed processes; {found['misses']} processes came to their end "
        f"before; {found['seconds']:.0f} s"
    )
    for name, number in sorted(found["kills"].items()):
        print(f"    {number:4} {name}")
    assert not found["failures"], "\n\n".join(found["failures"])
    assert count >= 70
    assert max(found["chains"]) >= 6
    assert found["resumed"] >= count / 2
