"""A real SIGKILL in a real process, and the same command again with the run ID."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from builders import history, same

import mlflow_ckpt as ckpt
from mlflow_ckpt import loader

SCRIPT = Path(__file__).with_name("train_script.py")


def script(
    uri: str, run_id: str, epochs: int, kill_after: int, *more: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), uri, run_id, str(epochs), str(kill_after), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def new_run() -> str:
    with mlflow.start_run() as run:
        return str(run.info.run_id)


def test_killed_after_epoch_13_of_20_and_continued(tracking: str) -> None:
    whole, killed = new_run(), new_run()
    assert script(tracking, whole, 20, 0).returncode == 0

    assert script(tracking, killed, 20, 13).returncode == -signal.SIGKILL
    assert list(ckpt.list_checkpoints(killed)["epoch"]) == [5, 10]
    assert ckpt.resolve(killed, "latest").epoch == 10
    assert [s for s, _ in history(killed)["loss"]] == list(range(1, 14))

    resumed = script(tracking, killed, 20, 0)
    assert resumed.returncode == 0, resumed.stderr
    assert "continues after epoch 10, step 20" in resumed.stdout
    assert ckpt.resolve(killed, "latest").epoch == 20
    assert history(killed) == history(whole)
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert [s for s, _ in history(killed)[key]] == list(range(1, 21))
    assert "ckpt.resume_divergence" not in mlflow.get_run(killed).data.tags
    for which in ("latest", "best", "final"):
        assert same(loader.load_model(killed, which), loader.load_model(whole, which))


@pytest.mark.slow
def test_killed_with_everything_on_its_way_and_continued(tracking: str) -> None:
    """Whatever the kill left in the queue is lost; nothing of it is torn, and a resume mends it."""
    whole, killed = new_run(), new_run()
    assert script(tracking, whole, 10, 0).returncode == 0

    assert script(tracking, killed, 10, 6, "at-once").returncode == -signal.SIGKILL
    left = ckpt.list_checkpoints(killed)
    assert set(left["epoch"]) <= {5}
    logged = [s for s, _ in history(killed).get("loss", [])]
    assert logged == list(range(1, len(logged) + 1))
    assert len(logged) >= max(left["epoch"], default=0), "a checkpoint never comes before its rows"

    resumed = script(tracking, killed, 10, 0)
    assert resumed.returncode == 0, resumed.stderr
    assert history(killed) == history(whole)
    assert "ckpt.resume_divergence" not in mlflow.get_run(killed).data.tags
    for which in ("latest", "best", "final"):
        assert same(loader.load_model(killed, which), loader.load_model(whole, which))
