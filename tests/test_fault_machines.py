"""Two processes on one run, many that read, a clock that jumps, and disks that take no more.

Every process is a real one; the tracking server runs in this one, so that what limits a
training does not limit its server. With `-s` the slow tests print what they measured.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from doubles import RaiseAt, StopHere, tracking_server
from fault_driver import (
    WAIT_S,
    Seen,
    Training,
    assert_like,
    assert_weights,
    new_run,
    shown,
    undisturbed,
    verify,
    waiting,
)
from fault_training import Plan, train
from faults import fast_retries

import mlflow_ckpt
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool

READERS = Path(__file__).with_name("fault_readers.py")
HOUR_S = 3600.0


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking server of this test's own, which MLflow points to."""
    fast_retries(monkeypatch, retries=2, timeout_s=20)
    database = tmp_path / "served.db"
    shutil.copy(empty_database, database)
    before = mlflow.get_tracking_uri()
    with tracking_server(database, tmp_path / "served") as server:
        mlflow.set_tracking_uri(server.uri)
        yield server.uri
        mlflow.set_tracking_uri(before)


def assert_equal(run_id: str, whole: Seen) -> None:
    """As a run with which nothing happened, but for tags that tell of a resume."""
    assert_like(run_id, whole, "tags", "links")
    assert "ckpt.resume_divergence" not in mlflow.get_run(run_id).data.tags


def wait_for_epoch(run_id: str, epoch: int) -> None:
    """Wait until its checkpoint is committed, and nothing waits."""
    end = time.monotonic() + WAIT_S
    while waiting(run_id) or mlflow_ckpt.resolve(run_id).epoch < epoch:
        assert time.monotonic() < end, waiting(run_id)
        time.sleep(0.05)


# --- two processes on one run -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("lease_s", "refused_s", "taken_s"),
    [
        pytest.param((3.0, 1.0), 5.0, (2.5, 10.0), id="short"),
        pytest.param(None, 13.0, (29.0, 45.0), id="as-it-is", marks=pytest.mark.slow),
    ],
)
def test_of_two_processes_one_writes(
    uri: str,
    lease_s: tuple[float, float] | None,
    refused_s: float,
    taken_s: tuple[float, float],
) -> None:
    """The second is refused while the first lives, and takes over when it is quiet."""
    whole, run_id = undisturbed(), new_run()
    plan = {"run_id": run_id, "uri": uri, "lease_s": lease_s}
    with (
        Training(Plan(**plan, pauses=["2:1"])) as first,
        Training(Plan(**plan, pauses=["start"])) as second,
        Training(Plan(**plan, pauses=["start"])) as third,
    ):
        first.paused("2:1")
        second.paused("start")
        second.go()
        second.until("waits up to .* for a sign of life of host .*, which may still write to it")
        began = time.monotonic()
        second.until("LeaseHeld: .*which is alive")
        refused = time.monotonic() - began
        assert second.ended() == 1
        assert refused < refused_s
        before = shown(run_id)

        first.signal(signal.SIGSTOP)
        assert shown(run_id) == before, "who was refused has written something"
        third.paused("start")
        third.go()
        third.until("waits up to")
        began = time.monotonic()
        third.until("taken over from host .*: no sign of life")
        taken = time.monotonic() - began
        assert third.ended() == 0, third.text
        assert "continues after epoch 2" in third.text
        assert taken_s[0] < taken < taken_s[1]
        after = shown(run_id)

        first.signal(signal.SIGCONT)
        first.go()
        assert first.ended() == 1
        assert re.search("LeaseLost: .*Expected to be its only writer", first.text), first.text
        print(f"refused after {refused:.1f} s, taken over after {taken:.1f} s")
    assert shown(run_id) == after, "who was taken over has written something"
    assert_equal(run_id, whole)


@pytest.mark.slow
def test_a_dead_process_is_taken_over_from_at_once(uri: str) -> None:
    whole, run_id = undisturbed(), new_run()
    with (
        Training(Plan(run_id=run_id, uri=uri, pauses=["3:2"])) as first,
        Training(Plan(run_id=run_id, uri=uri, pauses=["start"])) as second,
    ):
        first.paused("3:2")
        second.paused("start")
        first.kill()
        began = time.monotonic()
        second.go()
        second.until("taken over from host .*, which has died")
        took = time.monotonic() - began
        assert second.ended() == 0, second.text
    print(f"taken over after {took:.2f} s")
    assert took < 10.0
    assert_equal(run_id, whole)


@pytest.mark.slow
@pytest.mark.parametrize("round", range(3))
def test_two_processes_that_begin_at_once_train_a_run_once(uri: str, round: int) -> None:
    """One of them trains to the end; the other one is refused, or finds the run complete."""
    whole, run_id = undisturbed(), new_run()
    plan = Plan(run_id=run_id, uri=uri, batch_s=0.3, lease_s=(6.0, 2.0), pauses=["start"])
    with Training(plan) as one, Training(plan) as other:
        for training in (one, other):
            training.paused("start")
        one.go()
        other.go()
        codes = sorted([one.ended(), other.ended()])
        text = one.text + other.text
    assert codes == [0, 1], text
    assert "LeaseHeld" in text or "LeaseLost" in text
    assert_equal(run_id, whole)


# --- many that read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readers", "epochs"),
    [pytest.param(4, 8, id="four"), pytest.param(20, 40, id="twenty", marks=pytest.mark.slow)],
)
@pytest.mark.pure
def test_who_reads_while_another_prunes_gets_whole_checkpoints(
    readers: int, epochs: int, empty_database: Path, tmp_path: Path
) -> None:
    plan, outcome = tmp_path / "plan.json", tmp_path / "outcome.json"
    fields = {"folder": str(tmp_path), "database": str(empty_database)}
    plan.write_text(json.dumps({**fields, "readers": readers, "epochs": epochs}))
    command = [sys.executable, str(READERS), str(plan), str(outcome)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(outcome.read_text())
    print(f"{readers} readers, {epochs} checkpoints: {found}")
    assert found["fewest"] >= 1


# --- a clock that jumps -----------------------------------------------------------------------


def test_a_clock_that_is_set_back_an_hour_changes_nothing(
    tracking: str, monkeypatch: pytest.MonkeyPatch, another_process: Any
) -> None:
    whole, run_id = undisturbed(), new_run()
    with pytest.raises(StopHere):
        train(Plan(run_id=run_id, uri=tracking), RaiseAt(4))
    another_process()
    now, now_ns = time.time, time.time_ns
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - HOUR_S)
        patch.setattr(time, "time_ns", lambda: now_ns() - int(HOUR_S) * 1_000_000_000)
        train(Plan(run_id=run_id, uri=tracking))
        assert waiting(run_id) == []
        made = {c.epoch: c.created_at / 1_000 for c in verify(run_id)}
        assert made[6] < now() - HOUR_S / 2, "the clock was not set back"
        assert_equal(run_id, whole)
    assert_equal(run_id, whole)


# --- disks that take no more ------------------------------------------------------------------


def assert_went_on(run_id: str, whole: Seen) -> None:
    """The third epoch's checkpoint is lost, the fourth's may be; nothing else is."""
    epochs = [c.epoch for c in verify(run_id)]
    assert 3 not in epochs
    assert epochs[-2:] == [5, 6]
    found, expected = shown(run_id)["curves"], dict(whole.shown["curves"])
    assert set(found.pop("ckpt_step")) < set(expected.pop("ckpt_step"))
    assert found == expected, "the epochs' metrics are all there"
    assert_weights(run_id, whole, "latest", "final")


def test_a_disk_that_is_full_for_a_while_costs_the_checkpoints_of_that_while(uri: str) -> None:
    """Training goes on, what was there before stays, and the end of `fit` says what failed."""
    whole, run_id = undisturbed(), new_run()
    # In the third epoch and the fourth no file may have more than 2,000 bytes.
    limits = {"2": 2_000, "4": -1}
    plan = Plan(run_id=run_id, uri=uri, limits=limits, pauses=["2:0", "4:0"])
    with Training(plan) as training:
        training.paused("2:0")
        wait_for_epoch(run_id, 2)
        before = [c.name for c in verify(run_id)]
        training.go()
        training.paused("4:0")
        assert [c.name for c in verify(run_id)] == before, "the previous ones stay"
        training.go()
        assert training.ended() == 1, training.text
    text = training.text
    assert re.search(r"SaveFailed: .*ckpt-0003-00000012", text), text
    assert "File too large" in text
    assert str(Spool().folder() / run_id / "ckpt") in text
    assert waiting(run_id) == []
    assert_went_on(run_id, whole)
    making = Journal(Spool().folder() / run_id / "ckpt").path / "making"
    assert list(making.iterdir()) == [], "what came to nothing is left on the full disk"


def test_a_spool_that_cannot_be_written_to_is_said_before_the_first_batch(
    uri: str, tmp_path: Path
) -> None:
    (tmp_path / "spool").mkdir(mode=0o555)
    run_id = new_run()
    before = shown(run_id)
    with Training(Plan(run_id=run_id, uri=uri, plain_user=True, pauses=["0:0"])) as training:
        assert training.ended() == 1, training.text
    found = re.search(r"SpoolError: (.*)", training.text)
    assert found is not None, training.text
    assert found[1] == (
        f"The spool {tmp_path / 'spool'} cannot be written to: Permission denied. Name a folder on "
        "a local disk: Spool(dir=...) or MLFLOW_CKPT_SPOOL."
    )
    assert "paused" not in training.text
    assert shown(run_id) == before


@pytest.mark.slow
def test_a_spool_that_is_read_only_for_a_while_costs_the_checkpoints_of_that_while(
    uri: str,
) -> None:
    whole, run_id = undisturbed(), new_run()
    plan = Plan(run_id=run_id, uri=uri, closed=[2, 3], plain_user=True, pauses=["2:0"])
    with Training(plan) as training:
        training.paused("2:0")
        wait_for_epoch(run_id, 2)
        training.go()
        assert training.ended() == 1, training.text
    raised = training.text.rpartition("mlflow_ckpt.errors.")[2]
    assert re.search("ckpt-0003-00000012 .* could not be written to .*: Permission denied", raised)
    assert waiting(run_id) == []
    assert_went_on(run_id, whole)
