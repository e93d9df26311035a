"""Signals and exceptions that hit a running `fit` anywhere: what is saved, and what is left.

Most of them are raised in this process, at a place that the test names; some come from outside
and hit a process at random. Each fit is then continued by the same code, and must end as the
one that nothing has ever hit.
"""

from __future__ import annotations

import collections
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import mlflow
import pytest
from doubles import Gate, StopHere, tracking_server
from faults import Hang, Proxy, always, never
from signal_checks import (
    INT,
    KINDS,
    TERM,
    At,
    Breaks,
    Unreadable,
    is_exact,
    new_run,
    newest_step,
    nothing_is_left,
    reference,
    status,
    stop,
)
from signal_script import BATCHES, seeded, train

import mlflow_ckpt as ckpt
from mlflow_ckpt import syncing
from mlflow_ckpt.journal import Journal
from mlflow_ckpt.spool import Spool

SCRIPT = Path(__file__).with_name("signal_script.py")
TWO = ("ckpt", "often")
WORDS = ("begun", "batch", "test", "epoch", "returned")
# Seconds that a process may take beyond its grace, to end and to be seen to have ended.
SLACK_S = 15.0

Forget = Callable[[], None]


def sends(hook: str, call: int, *signals: signal.Signals) -> At:
    """Send signals to this process at a call of a hook."""
    return At(hook, call, lambda: [signal.raise_signal(one) for one in signals])


def raises(hook: str, call: int) -> At:
    def act() -> None:
        raise StopHere(hook)

    return At(hook, call, act)


# --- SIGTERM, at a place that is known ------------------------------------------------


def stopped_and_continued(
    place: At, forget: Forget, trained: int | None, series: Sequence[str] = ("ckpt",)
) -> str:
    """Have SIGTERM hit a fit of two epochs, look at what it has left, and continue it.

    Args:
        trained: The batches that were trained then; `None` asks the callback.

    Returns:
        The run.
    """
    expected, _ = reference(2, tuple(series))
    forget()
    run_id = new_run()
    assert stop(SystemExit, run_id, place, series=series) == "143"
    assert status(run_id) == "KILLED"
    nothing_is_left(run_id)
    done = place.calls.count("on_train_batch_end") if trained is None else trained
    for name in series:
        assert newest_step(run_id, name) == done, "no batch is lost"
    forget()
    again = At("none", 0, lambda: None)
    model = train(run_id, again, series=series)
    assert again.calls.count("on_train_batch_end") == 2 * BATCHES - done, "nor trained twice"
    is_exact(run_id, model, expected, series)
    nothing_is_left(run_id, model)
    return run_id


EVERYWHERE = [
    pytest.param("on_epoch_begin", 1, 1, id="before-the-first-batch"),
    pytest.param("on_train_batch_begin", 2, 2, id="batch-begin"),
    pytest.param("on_train_batch_end", 6, 6, id="batch-end"),
    pytest.param("on_train_batch_end", 4, 4, id="last-batch"),
    pytest.param("on_test_batch_begin", 1, 4, id="validation"),
    pytest.param("on_test_batch_end", 8, 8, id="last-validation-batch"),
    pytest.param("on_test_end", 1, 4, id="validation-end"),
    pytest.param("on_epoch_end", 1, 4, id="epoch-end"),
    pytest.param("on_epoch_end", 2, 8, id="last-epoch-end"),
    pytest.param("on_train_end", 1, 8, id="train-end"),
]
DEFAULT = {"batch-end", "validation", "last-epoch-end"}


@pytest.mark.parametrize(
    ("hook", "call", "trained"),
    [
        pytest.param(*one.values, id=one.id, marks=() if one.id in DEFAULT else pytest.mark.slow)
        for one in EVERYWHERE
    ],
)
def test_sigterm_saves_every_batch_and_the_next_start_ends_as_if_nothing_had_been(
    hook: str, call: int, trained: int, another_process: Forget
) -> None:
    stopped_and_continued(sends(hook, call, TERM), another_process, trained)


@pytest.mark.parametrize(
    ("hook", "call"),
    [
        pytest.param("on_test_batch_end", 2, id="validation"),
        pytest.param("on_train_batch_end", 5, id="batch-end", marks=pytest.mark.slow),
        pytest.param("on_epoch_end", 1, id="epoch-end", marks=pytest.mark.slow),
        pytest.param("on_train_end", 1, id="train-end", marks=pytest.mark.slow),
    ],
)
def test_two_series_of_one_fit_stop_together(hook: str, call: int, another_process: Forget) -> None:
    run_id = stopped_and_continued(sends(hook, call, TERM), another_process, None, TWO)
    steps = ckpt.list_checkpoints(run_id).groupby("series")["step"].apply(sorted)
    assert steps["ckpt"] == steps["often"]


@pytest.mark.slow
def test_sigterm_at_every_hook_of_a_fit(another_process: Forget) -> None:
    _, hooks = reference()
    for number in range(1, len(hooks) + 1):
        stopped_and_continued(sends("any", number, TERM), another_process, None)
        keras.utils.clear_session()
    print(f"\nSIGTERM at {len(hooks)} places of one fit: {collections.Counter(hooks)}")


def test_sigterm_while_a_checkpoint_is_being_written_waits_for_it(
    another_process: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = reference(3)
    run_id, gate = new_run(), Gate(monkeypatch)
    gate.close()

    def act() -> None:
        assert gate.reached.wait(30), "the checkpoint of epoch 2 is being written"
        signal.raise_signal(TERM)
        threading.Timer(0.3, gate.open).start()

    stop(SystemExit, run_id, At("on_train_batch_begin", 2 * BATCHES + 2, act), epochs=3)
    assert sorted(ckpt.list_checkpoints(run_id)["step"]) == [8, 10]
    nothing_is_left(run_id)
    another_process()
    is_exact(run_id, train(run_id, epochs=3), expected, ("ckpt",))


# --- Ctrl-C ---------------------------------------------------------------------------


@pytest.mark.slow  # test_notebook.py has one from outside
def test_ctrl_c_saves_and_ends_the_cell(another_process: Forget) -> None:
    expected, _ = reference()
    run_id, model = new_run(), seeded()
    stop(KeyboardInterrupt, run_id, sends("on_train_batch_begin", 6, INT), model=model)
    assert status(run_id) == "FAILED", "MLflow's own verdict of an exception"
    assert newest_step(run_id) == 6
    nothing_is_left(run_id, model)
    # The next cell, in the same process, with the model built again.
    model = train(run_id)
    is_exact(run_id, model, expected, ("ckpt",))
    nothing_is_left(run_id, model)


def test_ctrl_c_twice_ends_it_at_once_and_what_was_saved_before_is_what_remains(
    another_process: Forget,
) -> None:
    expected, _ = reference(3)
    run_id, model = new_run(), seeded()
    place = sends("on_train_batch_begin", 2 * BATCHES + 2, INT, INT)
    stop(KeyboardInterrupt, run_id, place, model=model, epochs=3)
    assert place.calls[-1] == "on_train_batch_begin"
    nothing_is_left(run_id, model)
    assert list(ckpt.list_checkpoints(run_id)["step"]) == [2 * BATCHES]
    model = train(run_id, epochs=3)
    is_exact(run_id, model, expected, ("ckpt",))


@pytest.mark.slow
def test_the_same_model_goes_on_after_ctrl_c(another_process: Forget) -> None:
    expected, _ = reference()
    run_id, model = new_run(), seeded()
    stop(KeyboardInterrupt, run_id, sends("on_test_batch_begin", 2, INT), model=model)
    nothing_is_left(run_id, model)
    train(run_id, model=model)
    is_exact(run_id, model, expected, ("ckpt",))
    nothing_is_left(run_id, model)


# --- exceptions -----------------------------------------------------------------------


def break_data() -> None:
    Unreadable.broken = 2


def break_step() -> None:
    Breaks.left = 7  # four batches, two of the validation


@pytest.mark.parametrize(
    ("kind", "place", "begin", "saved"),
    [
        pytest.param("arrays", ("on_train_batch_begin", 3), None, [2], id="batch-begin"),
        pytest.param("arrays", ("on_test_batch_end", 2), None, [4], id="validation",
                     marks=pytest.mark.slow),
        pytest.param("arrays", ("on_train_batch_end", 3), None, [], id="batch-end",
                     marks=pytest.mark.slow),
        pytest.param("arrays", ("on_epoch_end", 1), None, [], id="epoch-end",
                     marks=pytest.mark.slow),
        pytest.param("data", None, break_data, [], id="data"),
        pytest.param("step", None, break_step, [4], id="step", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_an_exception_saves_what_is_whole_and_the_next_fit_of_the_process_goes_on(
    kind: str,
    place: tuple[str, int] | None,
    begin: Callable[[], None] | None,
    saved: list[int],
    another_process: Forget,
) -> None:
    expected, _ = reference(2, ("ckpt",), kind)
    another_process()
    given = KINDS[kind]()
    run_id, model = new_run(), given.pop("model", None) or seeded()
    if begin is not None:
        begin()
    text = stop(Exception, run_id, *([raises(*place)] if place else []), model=model, **given)
    assert (place[0] if place else kind) in text
    assert status(run_id) == "FAILED"
    nothing_is_left(run_id, model)
    assert list(ckpt.list_checkpoints(run_id)["step"]) == saved
    again = KINDS[kind]()
    model = train(run_id, **again)
    is_exact(run_id, model, expected, ("ckpt",))
    nothing_is_left(run_id, model)


# --- processes ------------------------------------------------------------------------


class Process:
    """A training in a process of its own.

    Attributes:
        words: What it has said so far.
    """

    def __init__(self, folder: Path, *arguments: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        command = [sys.executable, str(SCRIPT), *map(str, arguments)]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.child = subprocess.Popen(command, stdout=out, stderr=err)

    @property
    def words(self) -> list[str]:
        return [line for line in self._out.read_text().split("\n") if line in WORDS]

    @property
    def text(self) -> str:
        return self._out.read_text() + self._err.read_text()

    def wait_for(self, word: str | None, count: int = 1) -> bool:
        """Whether it says a word, or any, so many times before it ends."""
        deadline = time.monotonic() + 180
        while self._said(word) < count and self.child.poll() is None:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.005)
        return self._said(word) >= count

    def _said(self, word: str | None) -> int:
        return sum(one == word or word is None for one in self.words)

    def signal(self, signum: signal.Signals, limit: float) -> tuple[int, float]:
        """Its exit code, and the seconds it took to end."""
        began = time.monotonic()
        self.child.send_signal(signum)
        return self.child.wait(limit), time.monotonic() - began


@contextmanager
def process(folder: Path, *arguments: Any) -> Iterator[Process]:
    one = Process(folder, *arguments)
    try:
        yield one
    finally:
        one.child.kill()
        one.child.wait()


GRACE_S = 20.0
EPOCHS = 30


def hit_until_complete(
    uri: str, folder: Path, draw: random.Random, at_most: int
) -> list[tuple[str, float]]:
    """Send SIGTERM to a training at random, again and again, and look each time.

    Returns:
        What each of them hit, and in how many seconds the process had ended.
    """
    run_id, trained, hits = new_run(), 0, list[tuple[str, float]]()
    code = -1
    while code != 0:
        place = folder / f"{len(hits)}"
        with process(place, uri, run_id, EPOCHS, 0.02, GRACE_S) as one:
            # Counted in what it does: the first batch alone may take seconds, and others none.
            done = draw.randint(1, 4 * BATCHES)
            if len(hits) < at_most and one.wait_for(None, done):
                time.sleep(draw.uniform(0.0, 0.06))
                before = one.words
                code, seconds = one.signal(TERM, GRACE_S + SLACK_S)
            else:
                code = one.child.wait(300)
            trained += one.words.count("batch")
            if code == -TERM:
                assert "returned" in one.words, "after the fit it is Python's own"
                return hits
            if code == 0:
                break
            assert code == 143, one.text
        hits.append((where(before, one.words[len(before) :]), seconds))
        assert seconds < GRACE_S + SLACK_S
        assert status(run_id) == "KILLED"
        assert newest_step(run_id) == trained, f"no batch is lost or trained twice: {one.text}"
        assert ckpt.resolve(run_id, "latest").step == trained
    expected, _ = reference(EPOCHS)
    is_exact(run_id, ckpt.load_model(run_id, "final"), expected, ("ckpt",))
    return hits


def where(before: list[str], after: list[str]) -> str:
    """What was hit between these words: the batch that a signal hits still ends."""
    if before[-1] == "begun":
        return "first batch"
    between = "end of an epoch" if before[-1] == "epoch" else "between two batches"
    named = {"batch": "training", "test": "validation", "epoch": "end of an epoch"}
    return named.get(after[0], "end of the fit") if after else between


@pytest.mark.slow
def test_fifty_sigterms_from_outside(tracking: str, tmp_path: Path) -> None:
    draw, hits, runs = random.Random(5), list[tuple[str, float]](), 0
    while len(hits) < 50:
        runs += 1
        hits += hit_until_complete(tracking, tmp_path / str(runs), draw, min(10, 50 - len(hits)))
    counted = collections.Counter(place for place, _ in hits)
    print(f"\n{len(hits)} SIGTERMs on {runs} runs, each exact in the end: {dict(counted)}")
    print(f"slowest end of a process: {max(seconds for _, seconds in hits):.1f} s")


@pytest.mark.slow
def test_a_process_is_stopped_in_its_validation_from_outside(tracking: str, tmp_path: Path) -> None:
    run_id = new_run()
    with process(tmp_path / "one", tracking, run_id, 2, 0.1, 20) as one:
        assert one.wait_for("test", 1)
        code, _ = one.signal(TERM, 20 + SLACK_S)
        assert code == 143, one.text
        assert one.words.count("batch") == BATCHES
        assert one.words.count("test") < BATCHES
    assert (status(run_id), newest_step(run_id)) == ("KILLED", BATCHES)
    expected, _ = reference()
    is_exact(run_id, train(run_id), expected, ("ckpt",))


@pytest.mark.slow
@pytest.mark.parametrize(("presses", "saved"), [(1, True), (2, False)], ids=["once", "twice"])
def test_ctrl_c_in_a_script(tracking: str, tmp_path: Path, presses: int, saved: bool) -> None:
    run_id = new_run()
    with process(tmp_path / "one", tracking, run_id, 2, 3.0, 20) as one:
        assert one.wait_for("batch", 1)
        time.sleep(1.0)  # it sleeps in the hook before the second batch
        if presses == 2:
            one.child.send_signal(INT)
            time.sleep(0.5)
        code, _ = one.signal(INT, 20 + SLACK_S)
        assert code == -INT, one.text
        assert one.words.count("batch") == (2 if saved else 1)
    assert (status(run_id), newest_step(run_id)) == ("FAILED", 2 if saved else 0)
    expected, _ = reference()
    is_exact(run_id, train(run_id), expected, ("ckpt",))


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    """Between the tests and a tracking server."""
    with (
        tracking_server(tmp_path / "mlflow.db", tmp_path / "served") as server,
        Proxy(server.uri) as between,
    ):
        mlflow.set_tracking_uri(between.uri)
        mlflow.set_experiment("served")
        yield between


@pytest.mark.parametrize(
    ("word", "count"),
    [
        pytest.param("batch", 2, id="training"),
        pytest.param("test", 2, id="validation", marks=pytest.mark.slow),
        pytest.param("epoch", 3, id="end", marks=pytest.mark.slow),
    ],
)
def test_within_the_grace_of_a_server_that_hangs_everything_is_on_the_disk(
    word: str, count: int, proxy: Proxy, tmp_path: Path
) -> None:
    grace, run_id = 2.0, new_run()
    with process(tmp_path / "one", proxy.uri, run_id, 3, 0.1, grace) as one:
        assert one.wait_for(word, count)
        proxy.fault = always(Hang())
        time.sleep(1.0 if word == "epoch" else 0.1)
        code, seconds = one.signal(TERM, grace + 60)
        assert code == 143, one.text
        trained = one.words.count("batch")
        print(f"\nSIGTERM in {word}: ended after {seconds:.1f} s, grace {grace} s")
        assert seconds < grace + SLACK_S
    assert f"mlflow-ckpt sync {run_id}" in one.text
    waiting = Journal(Spool().folder() / run_id / "ckpt").waiting()
    newest = [e for e in waiting if e.kind == "checkpoint"][-1]
    assert newest.data["position"]["step"] == trained
    assert waiting[-1].kind == "status"
    proxy.down()
    proxy.fault = never
    proxy.up()
    assert [one.error for one in syncing.sync(run_id)] == [None]
    assert (status(run_id), newest_step(run_id)) == ("KILLED", trained)
    model = train(run_id, epochs=3)
    is_exact(run_id, model, reference(3)[0], ("ckpt",))


@pytest.mark.slow
def test_a_second_sigterm_waits_for_no_server_that_hangs(proxy: Proxy, tmp_path: Path) -> None:
    with process(tmp_path / "one", proxy.uri, new_run(), 3, 0.1, 300) as one:
        assert one.wait_for("batch", 2)
        proxy.fault = always(Hang())
        one.child.send_signal(TERM)
        time.sleep(2.0)
        code, seconds = one.signal(TERM, 60)
    assert code in (143, -TERM)
    assert seconds < SLACK_S
