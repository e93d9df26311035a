"""Many processes on one server: some train, some read what those commit and prune."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import crowd_script
import mlflow
import pytest

import mlflow_ckpt as ckpt

TRAINERS, READERS, SECONDS = 8, 4, 120.0
END_S = 600.0


def start(folder: Path, name: str, plan: dict[str, Any]) -> subprocess.Popen[bytes]:
    (folder / f"{name}.plan").write_text(json.dumps(plan))
    script = Path(crowd_script.__file__)
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, str(script), f"{name}.plan", f"{name}.outcome"],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


@pytest.mark.slow
@pytest.mark.backends("postgres-s3")
def test_readers_find_only_whole_and_right_checkpoints_while_others_train(
    tracking: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    client = mlflow.MlflowClient()
    experiment = mlflow.tracking.fluent._get_experiment_id()
    runs = [client.create_run(experiment).info.run_id for _ in range(TRAINERS)]
    plans = {
        f"train-{n}": {"role": "train", "runs": [run_id], "seconds": SECONDS}
        for n, run_id in enumerate(runs)
    } | {
        f"read-{n}": {"role": "read", "runs": runs, "seconds": SECONDS, "seed": n}
        for n in range(READERS)
    }
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, plan in plans.items():
            processes[name] = start(tmp_path, name, plan)
        codes = {name: process.wait(END_S) for name, process in processes.items()}
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
    said = {n: (tmp_path / f"{n}.log").read_text()[-3000:] for n, code in codes.items() if code}
    assert not said, "\n\n".join(f"{name}: {text}" for name, text in said.items())
    did: Counter[str] = Counter()
    for name in plans:
        outcome = Counter(json.loads((tmp_path / f"{name}.outcome").read_text()))
        did.update({f"{plans[name]['role']}: {key}": value for key, value in outcome.items()})
    print(dict(did))
    assert did["read: looks"] >= 10 * READERS
    for n, run_id in enumerate(runs):
        epochs = json.loads((tmp_path / f"train-{n}.outcome").read_text())["epochs"]
        best = max(range(1, epochs + 1), key=lambda epoch: crowd_script.score(run_id, epoch))
        assert ckpt.resolve(run_id, "best").epoch == best
        assert set(ckpt.list_checkpoints(run_id)["epoch"]) == {best, epochs - 1, epochs}
