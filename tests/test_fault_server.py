"""A tracking server that is away, dies or never answers, while `fit` trains on.

What a run shows afterwards must be what it shows when nothing happened. The server is MLflow's
own, behind a proxy that fails on request. With `-s` the slow tests print what they measured.
"""

from __future__ import annotations

import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from doubles import tracking_server
from fault_driver import Training, assert_like, new_run, shown, undisturbed, waiting
from fault_training import Plan, train
from faults import (
    Answer,
    AnswerAfter,
    BlackHole,
    Decide,
    DropAnswer,
    Fault,
    Hang,
    Proxy,
    Refuse,
    ServerProcess,
    TruncateAnswer,
    TruncateRequest,
    always,
    fast_retries,
    never,
    no_retries,
)

from mlflow_ckpt import syncing
from mlflow_ckpt.spool import Spool

Served = tuple[Any, Proxy]


class At(keras.callbacks.Callback):
    """Do something at the begin of epochs (from 0)."""

    def __init__(self, actions: dict[int, Callable[[], object]], batch_s: float = 0.0) -> None:
        super().__init__()
        self.actions = actions
        self.batch_s = batch_s

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.actions.get(epoch, lambda: None)()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        time.sleep(self.batch_s)


class Flap(keras.callbacks.Callback):
    """In each of the first five epochs the server is away for two batches of four."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__()
        self.proxy = proxy
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if self.epoch < 5 and batch in (1, 3):
            (self.proxy.down if batch == 1 else self.proxy.up)()


@pytest.fixture
def served(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Served]:
    """A server on a thread of this process, behind a proxy that MLflow points to."""
    fast_retries(monkeypatch, retries=1)
    database = tmp_path / "served.db"
    database.write_bytes(empty_database.read_bytes())
    before = mlflow.get_tracking_uri()
    with tracking_server(database, tmp_path / "served") as server, Proxy(server.uri) as proxy:
        mlflow.set_tracking_uri(proxy.uri)
        try:
            yield server, proxy
        finally:
            proxy.fault = never
            proxy.up()
            mlflow.set_tracking_uri(before)


def deliver(run_id: str) -> None:
    """What `mlflow-ckpt sync` does."""
    for synced in syncing.sync(run_id):
        assert synced.error is None, synced.error
        assert synced.refused == ()
    assert waiting(run_id) == []


def test_a_server_that_is_away_from_the_first_batch_to_the_last_gets_everything_by_sync(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    whole, run_id = undisturbed(), new_run()
    plan = Plan(run_id=run_id, uri=proxy.uri, active=True, drain_s=1.0, pauses=["0:0"])
    with Training(plan) as training:
        training.paused("0:0")
        proxy.down()
        training.go()
        code = training.ended()
    # MLflow itself could not end the run of its `with` block, and says so.
    assert code == 1, training.text
    assert "fit returned" in training.text
    assert re.search(
        r"the server is away.*3 checkpoints and \d+ other entries wait in .* The next fit with "
        rf"this run ID delivers them, or: mlflow-ckpt sync {run_id}",
        training.text,
    )
    proxy.up()
    assert shown(run_id)["status"] == "RUNNING"
    assert shown(run_id)["curves"] == {}
    deliver(run_id)
    assert_like(run_id, whole, status="FINISHED")


def test_a_server_that_goes_and_comes_five_times_gets_everything_in_the_same_fit(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    whole, run_id = undisturbed(), new_run()
    train(Plan(run_id=run_id, uri=proxy.uri, batch_s=0.1), Flap(proxy))
    assert waiting(run_id) == []
    assert_like(run_id, whole)


def test_a_server_that_never_answers_holds_no_batch_up(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    _, proxy = served
    whole = undisturbed()
    began = time.monotonic()
    train(Plan(run_id=new_run(), uri=proxy.uri, batch_s=0.02))
    normal = time.monotonic() - began
    run_id = new_run()
    hang = At({0: lambda: setattr(proxy, "fault", always(Hang()))})
    began = time.monotonic()
    train(Plan(run_id=run_id, uri=proxy.uri, batch_s=0.02, drain_s=1.0), hang)
    took = time.monotonic() - began
    print(f"undisturbed {normal:.2f} s, with a server that hangs {took:.2f} s")
    assert took - 1.0 < 2 * normal + 2.0
    assert (
        "6 checkpoints and" in capsys.readouterr().out
    )  # Not yet known to be away: none is dropped.
    proxy.fault = never
    deliver(run_id)
    assert_like(run_id, whole)


@pytest.mark.slow
def test_a_killed_training_is_continued_and_completed_without_a_server(served: Served) -> None:
    _, proxy = served
    whole, run_id = undisturbed(), new_run()
    plan = {"run_id": run_id, "uri": proxy.uri, "drain_s": 1.0}
    with Training(Plan(**plan, pauses=["1:2", "4:1"])) as training:
        training.paused("1:2")
        proxy.down()
        training.go()
        training.paused("4:1")
        training.kill()
    with Training(Plan(**plan)) as training:
        assert training.ended() == 0, training.text
    assert "the tracking server does not answer. Training goes on" in training.text
    # The epoch that was on its way to the disk when the kill came is trained again.
    assert re.search(r"continues after epoch [34], step (12|16)", training.text), training.text
    assert "3 checkpoints and" in training.text
    proxy.up()
    deliver(run_id)
    assert_like(run_id, whole, "tags")  # it says of itself that it was continued


def test_a_drain_is_over_in_its_time_and_says_what_waits_where(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    _, proxy = served
    run_id = new_run()
    began: list[float] = []

    class Ends(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            began.append(time.monotonic())

    down = At({0: proxy.down})
    train(Plan(run_id=run_id, uri=proxy.uri, drain_s=3.0), down, Ends())
    took = time.monotonic() - began[0]
    assert 3.0 <= took < 6.0
    said = capsys.readouterr().out
    assert "waits for the server, at most 3 s" in said
    found = re.search(
        rf"run {run_id}, series 'ckpt': the server is away \((?P<why>.+)\)\. 3 checkpoints and "
        rf"(?P<others>\d+) other entries wait in (?P<where>.+)\. The next fit with this run ID "
        rf"delivers them, or: mlflow-ckpt sync {run_id}",
        said.replace("\n", " "),
    )
    assert found is not None, said
    assert Path(found["where"]) == Spool().folder() / run_id / "ckpt"
    kinds = waiting(run_id)
    assert kinds.count("checkpoint") == len(kinds) - int(found["others"])


def chaos(seed: int, share: float) -> Decide:
    """Some request in `share` of them fails, in one of many ways."""
    dice = random.Random(seed)
    faults: list[Fault] = [
        Refuse(), DropAnswer(), TruncateRequest(10), TruncateAnswer(3), Answer(500), Answer(503),
        Answer(429), AnswerAfter(500), AnswerAfter(503),
    ]  # fmt: skip
    return lambda index, request: dice.choice(faults) if dice.random() < share else None


@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 14))]
)
def test_a_server_that_fails_at_random_gets_everything_once(
    seed: int, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, proxy = served
    whole, run_id = undisturbed(), new_run()
    if seed % 2:
        no_retries(monkeypatch)
    begin = At({0: lambda: setattr(proxy, "fault", chaos(seed, 0.3))})
    train(Plan(run_id=run_id, uri=proxy.uri, drain_s=2.0), begin)
    proxy.fault = never
    if waiting(run_id):
        deliver(run_id)
    assert_like(run_id, whole)


# --- servers of their own, which take long to start -------------------------------------------


@pytest.mark.slow
def test_a_server_that_is_killed_five_times_gets_everything_in_the_same_fit(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kills break off is asked again: by MLflow's retries, or by ours."""
    fast_retries(monkeypatch, retries=1)
    with ServerProcess(tmp_path / "server", database=empty_database) as server:
        mlflow.set_tracking_uri(server.uri)
        whole = undisturbed(30)
        run_id = new_run()
        restarts: list[float] = []
        enough = threading.Event()

        def restart() -> None:
            dice = random.Random(5)
            for _ in range(5):
                if enough.wait(dice.uniform(0.1, 1.5)):
                    return
                began = time.monotonic()
                server.restart()
                restarts.append(time.monotonic() - began)

        thread = threading.Thread(target=restart)
        plan = Plan(run_id=run_id, uri=server.uri, epochs=30, batch_s=0.4, drain_s=120.0)
        try:
            train(plan, At({0: thread.start}))
        finally:
            enough.set()
            thread.join()
        assert len(restarts) == 5, f"the training was too short: {restarts}"
        print(f"5 kills; the server was away for {sum(restarts):.1f} s in all")
        assert waiting(run_id) == []
        assert_like(run_id, whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "black hole"])
def test_a_real_server_that_never_answers_holds_no_batch_up(
    how: str, empty_database: Path, tmp_path: Path
) -> None:
    """With MLflow's own patience: 120 s for each attempt, eight attempts."""
    with (
        ServerProcess(tmp_path / "server", database=empty_database) as server,
        Proxy(server.uri) as proxy,
        BlackHole() as hole,
    ):
        mlflow.set_tracking_uri(proxy.uri)
        took: dict[str, float] = {}
        exits: dict[str, float] = {}
        runs = {"undisturbed": new_run(), how: new_run()}
        for name, run_id in runs.items():
            plan = Plan(
                run_id=run_id, uri=proxy.uri, batch_s=0.05, epochs=12, drain_s=1.0, pauses=["0:1"]
            )
            with Training(plan) as training:
                training.paused("0:1")
                if name != "undisturbed":
                    _hang(how, server, proxy, hole)
                training.go()
                began = time.monotonic()
                found = training.until(r"fit returned after ([\d.]+) s")
                took[name] = time.monotonic() - began
                assert training.ended() == 0, training.text
                exits[name] = time.monotonic() - began - took[name]
            assert float(found[1]) > 0
        print(f"{how}: " + ", ".join(f"{n} {s:.2f} s" for n, s in took.items()))
        print("from the return of fit to the end of the process: " + repr(exits))
        assert took[how] - 1.0 < 2 * took["undisturbed"] + 2.0
        assert exits[how] < 20.0
        _answer(server, proxy)
        deliver(runs[how])
        assert_like(runs[how], undisturbed(12))


def _hang(how: str, server: ServerProcess, proxy: Proxy, hole: BlackHole) -> None:
    if how == "stopped":
        assert server._process is not None
        server._process.send_signal(signal.SIGSTOP)
    else:
        proxy._upstream = ("127.0.0.1", int(hole.uri.rpartition(":")[2]))


def _answer(server: ServerProcess, proxy: Proxy) -> None:
    assert server._process is not None
    server._process.send_signal(signal.SIGCONT)
    proxy._upstream = ("127.0.0.1", int(server.uri.rpartition(":")[2]))
