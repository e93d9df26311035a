"""What is written behind the training: in order, bounded, never lost, never silent."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import FEATURES, data, fit, history, mlp, same
from doubles import FailingUpload, Gate, Killed, RaiseAt, StopHere, tracking_server
from sqlalchemy import event
from sqlalchemy.engine import Engine

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, MlflowCheckpoint, PendingSave, captured, drain, parcel, snapshot
from mlflow_ckpt.captured import Captured
from mlflow_ckpt.delivery import Delivery
from mlflow_ckpt.errors import NoCheckpoints, SaveFailed, StoreError
from mlflow_ckpt.ground import open_journal
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.pending import SaveRequest
from mlflow_ckpt.record import MetricRow, Position, Run, Series
from mlflow_ckpt.spool import Spool
from mlflow_ckpt.store import Store, _draft
from mlflow_ckpt.worker import Key, Worker, enter, leave, settle
from mlflow_ckpt.writer import Writer

SCRIPT = Path(__file__).with_name("exit_script.py")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate(monkeypatch)
    yield held
    held.open()


@pytest.fixture
def server_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds every commit: what is written waits in the spool."""
    held = Gate(monkeypatch, Store, "commit")
    yield held
    held.open()


@pytest.fixture
def run() -> Iterator[mlflow.ActiveRun]:
    with mlflow.start_run() as active:
        yield active


def ours(*, but: Collection[threading.Thread] = ()) -> list[str]:
    threads = (t for t in threading.enumerate() if t not in but)
    return [t.name for t in threads if t.name.startswith("mlflow-ckpt")]


def writer_of(run: mlflow.ActiveRun, **arguments: Any) -> Writer:
    store = Store()
    found = store.run(run.info.run_id)
    store.set_series(found, Series(name="ckpt"))
    spool = arguments.setdefault("spool", Spool())
    return Writer(store, found, open_journal(store, found, "ckpt", spool), **arguments)


def journal_of(run_id: str, series: str = "manual") -> Journal:
    return Journal(Spool().folder() / run_id / series)


def kinds(journal: Journal) -> tuple[list[str], list[str]]:
    """What waits, and what was refused."""
    return [e.kind for e in journal.waiting()], [e.kind for e in journal.refused()]


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that happens on another thread."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def request(model: keras.Model, step: int = 1, **fields: Any) -> SaveRequest:
    return SaveRequest(
        series=fields.pop("series", Series(name="ckpt")),
        position=Position(series="ckpt", kind="epoch", epoch=step, step=step),
        snapshot=fields.pop("snapshot", None) or snapshot.capture(model),
        state=None,
        rows=[MetricRow(key="ckpt_step", value=step, timestamp=1, step=step)],
        metrics={},
        **fields,
    )


def row(step: int, key: str = "loss", value: float = 1.0) -> MetricRow:
    return MetricRow(key=key, value=value, timestamp=1, step=step)


# --- the thread ---------------------------------------------------------------


@pytest.mark.pure
def test_a_worker_does_its_jobs_in_order_on_one_thread_that_ends_by_itself() -> None:
    done: list[tuple[int, str]] = []
    earlier = threading.enumerate()  # A lease of the test before may still be on its way back.
    worker = Worker(("uri", "run"))
    for round_ in range(3):
        for i in range(5):
            worker.put(lambda i=i: done.append((i, threading.current_thread().name)))  # type: ignore[misc]
        assert worker.join(30)
        assert done == [(i, "mlflow-ckpt") for i in range(5)] * (round_ + 1)
        assert ours(but=earlier) == []


@pytest.mark.pure
def test_settle_waits_for_all_who_write_to_one_run_and_for_nobody_else() -> None:
    gates, done = [threading.Event(), threading.Event()], []
    workers = [Worker(("uri", "run")), Worker(("uri", "other"))]
    for worker, gate_ in zip(workers, gates, strict=True):
        worker.put(lambda gate_=gate_: done.append(gate_.wait(30)))  # type: ignore[misc]
    threading.Timer(0.05, gates[0].set).start()
    settle(("uri", "run"))
    assert done == [True]
    assert not workers[1].join(0)
    gates[1].set()
    assert workers[1].join(30)


class HandsOver:
    """Whoever settles last of two hands over to the other, as a worker does to a deliverer."""

    stuck = False

    def __init__(self, key: Key) -> None:
        self.key = key
        self.other = self
        self.settled = 0
        enter(key, self)

    def settle(self) -> None:
        self.settled += 1
        leave(self.key, self)
        if self.other.settled == 1 and self.settled == 1:
            enter(self.key, self.other)


@pytest.mark.pure
def test_settle_waits_again_for_one_that_another_has_woken() -> None:
    first, second = pair = [HandsOver(("uri", "woken")) for _ in range(2)]
    first.other, second.other = second, first
    settle(("uri", "woken"))
    assert sorted(one.settled for one in pair) == [1, 2]


@pytest.mark.pure
def test_where_no_thread_can_start_the_caller_does_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    done: list[str] = []
    worker = Worker(("uri", "run"))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        worker.put(lambda: done.append(threading.current_thread().name))
    assert done == ["MainThread"]
    assert worker.join(0)


# --- a pending save -----------------------------------------------------------


def test_a_pending_save_tells_when_it_is_committed(run: mlflow.ActiveRun, gate: Gate) -> None:
    gate.close()
    pending = ckpt.save_async(mlp(), step=7)
    assert isinstance(pending, PendingSave)
    assert not pending.done()
    with pytest.raises(TimeoutError, match=r"manual-0000-00000007 is still being.*timeout=0\.01"):
        pending.wait(timeout=0.01)
    gate.open()
    saved = pending.wait(timeout=60)
    assert pending.done()
    assert saved == ckpt.resolve(run.info.run_id)


def test_a_pending_save_raises_what_went_wrong(
    run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingUpload.uploads, FailingUpload.fail_at = 0, 1
    real = _draft.get_artifact_repository
    monkeypatch.setattr(_draft, "get_artifact_repository", FailingUpload)
    pending = ckpt.save_async(mlp())
    for _ in range(2):
        with pytest.raises(SaveFailed, match="No space left on device") as caught:
            pending.wait()
        assert isinstance(caught.value.__cause__, OSError)
    assert kinds(journal_of(run.info.run_id)) == ([], ["checkpoint"])
    monkeypatch.setattr(_draft, "get_artifact_repository", real)
    assert ckpt.save(mlp(), step=2) == ckpt.resolve(run.info.run_id)
    assert kinds(journal_of(run.info.run_id)) == ([], ["checkpoint"]), "until somebody asks again"


def test_a_failure_that_nobody_waited_for_is_raised_by_the_next_save(
    run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    FailingUpload.uploads, FailingUpload.fail_at = 0, 1
    with monkeypatch.context() as patch:
        patch.setattr(_draft, "get_artifact_repository", FailingUpload)
        ckpt.save_async(mlp(), step=1)
        settle((mlflow.get_tracking_uri(), run.info.run_id))
    with pytest.raises(SaveFailed, match="manual-0000-00000001"):
        ckpt.save_async(mlp(), step=2)
    assert ckpt.save_async(mlp(), step=3).wait().step == 3


def test_what_was_captured_is_what_is_written_while_training_goes_on(
    run: mlflow.ActiveRun, gate: Gate
) -> None:
    x, y = data()
    model = mlp()
    model.fit(x, y, epochs=1, verbose=0)
    before = [np.array(w) for w in model.get_weights()]
    gate.close()
    pending = [ckpt.save_async(model) for _ in range(2)]
    model.fit(x, y, epochs=3, verbose=0)
    gate.open()
    assert [p.wait().step for p in pending] == [1, 2]
    loaded = ckpt.load_model(run.info.run_id, "step=1").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(loaded, before, strict=True))
    assert not np.array_equal(model.get_weights()[0], before[0])


def test_a_snapshot_of_the_live_model_is_written_before_submit_returns(
    run: mlflow.ActiveRun,
) -> None:
    model = mlp()
    before = model.get_weights()
    taken = snapshot.Capturer(model, strategy="keras").capture()
    assert not taken.valid_while_training
    writing = writer_of(run)
    pending = writing.submit(request(model, snapshot=taken))
    for variable in model.trainable_variables:
        variable.assign(variable + 1.0)
    pending.wait()
    loaded = ckpt.load_model(run.info.run_id).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(loaded, before, strict=True))
    tags = mlflow.MlflowClient().get_logged_model(pending.wait().model_id).tags
    assert tags["ckpt.capture"] == "keras"


def test_ctrl_c_while_the_live_model_is_written_reaches_the_caller(
    run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    taken = snapshot.Capturer(mlp(), strategy="keras").capture()
    monkeypatch.setattr("mlflow_ckpt.writer.write_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer_of(run).submit(request(mlp(), snapshot=taken))


# --- order, and few requests --------------------------------------------------


def test_rows_that_wait_together_go_out_in_one_request(
    run: mlflow.ActiveRun, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = mlflow.MlflowClient.log_batch

    def counted(self: Any, run_id: str, metrics: Any, **kwargs: Any) -> None:
        sizes.append(len(metrics))
        real(self, run_id, metrics, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", counted)
    writing = writer_of(run)
    gate.close()
    writing.submit(request(mlp()))
    assert gate.reached.wait(60)
    for step in range(1, 1_501):
        writing.log([row(step), row(step, "val_loss", math.nan)])
    writing.log([])
    gate.open()
    assert writing.join()
    assert sizes == [1, 1_000, 1_000, 1_000]
    assert len(history(run.info.run_id)["loss"]) == 1_500


def test_what_was_handed_over_first_is_there_first(
    run: mlflow.ActiveRun, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for name in ("log_rows", "set_series", "commit"):
        real = getattr(Store, name)

        def told(*args: Any, _real: Any = real, _name: str = name) -> Any:
            seen.append(_name)
            return _real(*args)

        monkeypatch.setattr(Store, name, told)
    writing = writer_of(run)
    seen.clear()
    gate.close()
    writing.log([row(1)])
    writing.submit(request(mlp(), 1))
    assert gate.reached.wait(60)
    writing.log([row(2)])
    writing.put(parcel.SERIES, parcel.pack_series(Series(name="ckpt")))
    writing.log([row(3)])
    writing.log([row(4)])
    gate.open()
    assert writing.join()
    assert seen == ["log_rows", "commit", "log_rows", "set_series", "log_rows"]


class Listening(keras.callbacks.Callback):
    """Note every statement that the training thread sends to a database while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []
        self._thread = threading.current_thread()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if not event.contains(Engine, "before_cursor_execute", self._hear):
            event.listen(Engine, "before_cursor_execute", self._hear)

    def on_train_end(self, logs: Any = None) -> None:
        event.remove(Engine, "before_cursor_execute", self._hear)

    def _hear(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if threading.current_thread() is self._thread:
            self.heard.append(statement)


def test_the_thread_that_trains_asks_the_server_nothing(another_process: Any) -> None:
    listening = Listening()
    every = Every(epochs=2)
    with mlflow.start_run() as run:
        with pytest.raises(StopHere):
            fit(mlp(), MlflowCheckpoint(save_freq=every), RaiseAt(4), epochs=6)
        another_process()
        result = fit(mlp(), listening, MlflowCheckpoint(save_freq=every), epochs=6)
    assert len(result.epoch) == 6
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5, 6]
    assert listening.heard == []


def test_what_somebody_else_delivers_is_found(run: mlflow.ActiveRun) -> None:
    """Such as `mlflow-ckpt sync`, before this process has delivered anything."""
    writing = writer_of(run)
    with writing.journal.lock():
        pending = writing.submit(request(mlp()))
        assert writing.join_written(60)
        entry = writing.journal.first()
        assert entry is not None
        delivered = Delivery(Store(), writing.journal)(entry)
    assert pending.wait(60) == delivered == ckpt.resolve(run.info.run_id)
    assert writing.join(60)
    writing.raise_failures(last=True)


# --- busy ---------------------------------------------------------------------


class OpenAt(keras.callbacks.Callback):
    """Close the gate before one epoch (from 1), and open it before another."""

    def __init__(self, gate: Gate, *, close: int, open_: int) -> None:
        super().__init__()
        self.gate, self.close, self.open = gate, close, open_

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch + 1 == self.close:
            settle((mlflow.get_tracking_uri(), mlflow.active_run().info.run_id))
            self.gate.close()
        if epoch + 1 == self.open:
            self.gate.open()


def test_skip_leaves_a_checkpoint_out_and_logs_its_metrics(
    run: mlflow.ActiveRun, gate: Gate
) -> None:
    callback = MlflowCheckpoint(when_busy="skip", keep=None)
    fit(mlp(), OpenAt(gate, close=2, open_=5), callback, epochs=5)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2, 5]
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [1, 2, 3, 4, 5]
    found = callback.stats()
    assert (found.saves, found.skipped, len(found.stall_ms)) == (3, 2, 3)
    assert mlflow.get_run(run.info.run_id).data.metrics["ckpt/skipped"] == 2.0


def test_wait_leaves_none_out(run: mlflow.ActiveRun, gate: Gate) -> None:
    class OpenSoon(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                threading.Timer(0.2, gate.open).start()

    callback = MlflowCheckpoint(keep=None)
    fit(mlp(), OpenSoon(), OpenAt(gate, close=2, open_=99), callback, epochs=4)
    assert list(ckpt.list_checkpoints(run.info.run_id)["epoch"]) == [1, 2, 3, 4]
    assert max(callback.stats().hook_ms) > 150
    assert callback.stats().skipped == 0


def test_an_end_state_is_never_skipped(run: mlflow.ActiveRun) -> None:
    model = mlp(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.5))
    fit(model, MlflowCheckpoint(when_busy="skip"), epochs=2)
    assert ckpt.resolve(run.info.run_id, "final").kind == "final"
    assert same(ckpt.load_model(run.info.run_id, "final"), model)


# --- failures -----------------------------------------------------------------


def test_a_refused_log_surfaces_once_and_later_rows_still_go_out(
    run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = writer_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "log_rows", lambda *_: (_ for _ in ()).throw(StoreError("ill")))
        writing.log([row(1)])
        writing.join()
        writing.call(lambda: 1 / 0)
        writing.join()
    writing.log([row(2)])
    assert writing.join()
    with pytest.raises(StoreError, match="ill") as caught:
        writing.raise_failures()
    assert "ZeroDivisionError" in caught.value.__notes__[0]
    writing.raise_failures()
    assert [s for s, _ in history(run.info.run_id)["loss"]] == [2]
    assert kinds(writing.journal) == ([], ["rows"])


@pytest.mark.parametrize("where", ["disk", "server"])
def test_a_failed_save_logs_its_epoch_all_the_same(
    where: str, run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "model.keras")

    FailingUpload.uploads, FailingUpload.fail_at = 0, 1
    if where == "disk":
        monkeypatch.setattr("mlflow_ckpt.writer.write_files", full)
    else:
        monkeypatch.setattr(_draft, "get_artifact_repository", FailingUpload)
    writing = writer_of(run)
    writing.submit(request(mlp(), curve=[row(1), row(1, "val_loss", math.nan)]))
    assert writing.join()
    assert kinds(writing.journal) == ([], [] if where == "disk" else ["checkpoint"])
    writing.raise_failures()  # Training goes on without it ...
    with pytest.raises(SaveFailed, match="No space left on device") as caught:
        writing.raise_failures(last=True)  # ... and hears of it at its end.
    assert isinstance(caught.value.reason, OSError)
    writing.raise_failures(last=True)
    assert set(history(run.info.run_id)) == {"loss", "val_loss"}


@pytest.mark.parametrize("where", ["writer.write_files", "store.Store.commit"])
def test_even_what_no_handler_sees_ends_the_wait(
    where: str, run: mlflow.ActiveRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(f"mlflow_ckpt.{where}", killed)
    writing = writer_of(run)
    pending = writing.submit(request(mlp()))
    with pytest.raises(Killed):
        pending.wait(60)
    assert writing.join(60)
    waits = ["checkpoint"] if where.endswith("commit") else []
    assert kinds(writing.journal) == (waits, [])
    writing.raise_failures(last=True)  # Who has waited has heard of it.


def test_a_fit_that_raises_leaves_no_thread_and_commits_what_it_captured(
    run: mlflow.ActiveRun, server_gate: Gate
) -> None:
    server_gate.close()
    with pytest.raises(StopHere):
        fit(mlp(), MlflowCheckpoint(), RaiseAt(2), epochs=5)
    assert set(ours()) == {"mlflow-ckpt-deliver", "mlflow-ckpt-lease"}
    assert "checkpoint" in kinds(journal_of(run.info.run_id, "ckpt"))[0], "it is on the disk"
    server_gate.open()
    assert ckpt.resolve(run.info.run_id).epoch == 1, "who reads finds what was captured"
    until(lambda: ours() == [])
    assert kinds(journal_of(run.info.run_id, "ckpt")) == ([], [])


# --- the end of fit -----------------------------------------------------------


@pytest.mark.parametrize("doing", ["writing", "committing"])
def test_a_long_drain_shows_how_far_it_is_and_goes_away(
    doing: str,
    run: mlflow.ActiveRun,
    gate: Gate,
    server_gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(drain, "PATIENCE", 0.05)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    writing = writer_of(run)
    held = gate if doing == "writing" else server_gate
    held.close()
    pending = writing.submit(request(mlp()))
    assert held.reached.wait(60)
    threading.Timer(0.5, held.open).start()
    seconds, done = drain.drain(writing, 60)
    assert seconds > 0.4
    assert done
    assert pending.done()
    shown = capsys.readouterr().out
    assert f"{doing} ckpt-0001-00000001" in shown
    seconds, done = drain.drain(writing, 60)
    assert seconds < 0.05
    assert done
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("environment", [{"FORCE_COLOR": "1", "TERM": "dumb"}, {"TERM": "xterm"}])
def test_a_long_drain_says_one_line_where_nothing_can_be_drawn(
    run: mlflow.ActiveRun,
    server_gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
) -> None:
    monkeypatch.setattr(drain, "PATIENCE", 0.05)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    writing = writer_of(run)
    server_gate.close()
    writing.submit(request(mlp()))
    assert server_gate.reached.wait(60)
    threading.Timer(0.3, server_gate.open).start()
    assert drain.drain(writing, 60)[1]
    said = capsys.readouterr().out
    doing = "committing ckpt-0001-00000001"
    assert said == f"\nmlflow_ckpt: waits for the server, at most 60 s ({doing})\n"


def test_a_drain_ends_in_time_and_what_is_left_is_on_the_disk(
    run: mlflow.ActiveRun, server_gate: Gate
) -> None:
    writing = writer_of(run)
    server_gate.close()
    pending = writing.submit(request(mlp()))
    seconds, done = drain.drain(writing, 0.3)
    assert 0.3 <= seconds < 10
    assert not done
    assert not pending.done()
    assert kinds(writing.journal) == (["checkpoint"], [])
    text = drain.describe_left(writing)
    assert f"1 checkpoints and 0 other entries wait in {writing.journal.path}" in text
    assert f"mlflow-ckpt sync {run.info.run_id}" in text
    server_gate.open()
    assert pending.wait(60) == ckpt.resolve(run.info.run_id)
    assert drain.drain(writing, 60)[1]
    assert kinds(writing.journal) == ([], [])


@pytest.mark.parametrize("method", ["join_written", "join"])
def test_ctrl_c_leaves_the_drain_and_the_writer_goes_on(
    method: str,
    run: mlflow.ActiveRun,
    gate: Gate,
    server_gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pressed(self: Any, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    writing = writer_of(run)
    held = gate if method == "join_written" else server_gate
    held.close()
    pending = writing.submit(request(mlp()))
    with monkeypatch.context() as patch:
        patch.setattr(Writer, method, pressed)
        with pytest.raises(KeyboardInterrupt):
            drain.drain(writing, 0.5)
    held.open()
    assert pending.wait(60) == ckpt.resolve(run.info.run_id)


# --- the end of the process ---------------------------------------------------


def ended(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_a_process_that_dies_of_an_exception_commits_what_it_captured(tracking: str) -> None:
    with mlflow.start_run() as run:
        pass
    result = ended(tracking, run.info.run_id)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: right after a save")
    assert ckpt.resolve(run.info.run_id).step == 1
    assert ckpt.load_model(run.info.run_id).input_shape == (None, FEATURES)
    assert kinds(journal_of(run.info.run_id)) == ([], [])


def test_a_failure_that_the_process_does_not_outlive_is_printed(
    tracking: str, tmp_path: Path
) -> None:
    (tmp_path / "artifacts").mkdir(exist_ok=True)
    (tmp_path / "artifacts" / "models").write_text("in the way")
    with mlflow.start_run() as run:
        pass
    result = ended(tracking, run.info.run_id)
    assert "mlflow_ckpt: The checkpoint manual-0000-00000001 could not be written" in result.stdout
    assert result.returncode == 1
    assert kinds(journal_of(run.info.run_id)) == ([], ["checkpoint"])


def test_a_process_does_not_wait_for_a_server_that_is_away_and_the_next_one_delivers(
    tracking: str,
) -> None:
    with mlflow.start_run() as run:
        pass
    began = time.monotonic()
    result = ended(tracking, run.info.run_id, "away")
    assert time.monotonic() - began < 60
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: right after a save")
    journal = journal_of(run.info.run_id)
    assert f"1 entries wait in the spool at {journal.path}." in result.stdout
    assert kinds(journal) == (["checkpoint"], [])
    with pytest.raises(NoCheckpoints):
        ckpt.resolve(run.info.run_id)
    with mlflow.start_run(run_id=run.info.run_id):
        ckpt.save(mlp(), step=2)
    assert list(ckpt.list_checkpoints(run.info.run_id)["step"]) == [1, 2]
    assert kinds(journal) == ([], [])


def test_so_does_one_whose_server_is_remote(empty_database: Path, tmp_path: Path) -> None:
    database = tmp_path / "server.db"
    shutil.copy(empty_database, database)
    with tracking_server(database, tmp_path / "served") as server:
        mlflow.set_tracking_uri(server.uri)
        mlflow.set_experiment("served")
        with mlflow.start_run() as run:
            pass
        result = ended(server.uri, run.info.run_id)
        assert result.returncode == 1
        assert result.stderr.rstrip().endswith("RuntimeError: right after a save")
        assert ckpt.resolve(run.info.run_id).step == 1


def test_a_void_snapshot_costs_one_checkpoint_and_not_the_training(
    run: mlflow.ActiveRun,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(captured, "_torn", [])
    take, taken = Captured._take_samples, []

    def wrong_at_first(self: Captured) -> dict[int, bytes]:
        taken.append(self)
        samples = take(self)
        return dict.fromkeys(samples, b"?") if len(taken) == 1 else samples

    monkeypatch.setattr(Captured, "_take_samples", wrong_at_first)
    model = mlp()
    callback = MlflowCheckpoint(keep=None)
    fit(model, callback, epochs=3)
    assert [c.epoch for c in Store().checkpoints(*run_and_series(run))] == [2, 3]
    assert [step for step, _ in history(run.info.run_id)["loss"]] == [1, 2, 3]
    assert (callback.stats().strategy, callback.stats().failed) == ("host-copy", 1)
    assert "This checkpoint is void" in capsys.readouterr().out


def run_and_series(run: mlflow.ActiveRun) -> tuple[Run, Series]:
    found = Store().run(run.info.run_id)
    return found, found.series["ckpt"]
