"""The numbers of a fit: whose time is counted, where, and how often."""

from __future__ import annotations

import tracemalloc
from dataclasses import FrozenInstanceError
from typing import Any

import keras
import mlflow
import pytest
from builders import fit, mlp

from mlflow_ckpt import Every, MlflowCheckpoint, Stats, stats
from mlflow_ckpt.stats import LAST, Meter


class Clock:
    """A clock that the test moves, in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stats, "perf_counter", lambda: self.now)


def step(meter: Meter, clock: Clock, seconds: float) -> float:
    meter.step_began()
    clock.now += seconds
    return meter.step_ended()


def save(meter: Meter, clock: Clock, seconds: float) -> None:
    began = clock.now
    clock.now += seconds
    meter.saved(began)


@pytest.mark.pure
@pytest.mark.parametrize(
    ("next_step", "stall_ms"),
    [
        pytest.param(0.010, 4.0, id="a-usual-step"),
        pytest.param(0.030, 24.0, id="a-longer-one"),
        pytest.param(0.001, 4.0, id="a-shorter-one-gives-nothing-back"),
        pytest.param(None, 4.0, id="none-follows"),
    ],
)
def test_a_stall_is_the_hook_and_the_excess_of_the_next_step(
    next_step: float | None, stall_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    for seconds in (0.9, 0.010, 0.010):
        step(meter, clock, seconds)
    save(meter, clock, 0.004)
    clock.now += 60.0  # A validation between two epochs is no step.
    if next_step is not None:
        step(meter, clock, next_step)
    meter.finish()
    assert meter.stats().stall_ms == pytest.approx((stall_ms,))


@pytest.mark.pure
def test_the_first_hook_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    for seconds in (0.5, 0.002, 0.004, 0.006):
        save(meter, clock, seconds)
    meter.finish()
    found = meter.stats()
    assert found.first_hook_ms == pytest.approx(500.0)
    assert found.hook_ms == pytest.approx((2.0, 4.0, 6.0))
    assert found.median_hook_ms == pytest.approx(4.0)
    assert found.stall_ms == pytest.approx((500.0, 2.0, 4.0, 6.0))


@pytest.mark.pure
def test_steps_behind_a_checkpoint_are_not_what_they_are_compared_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    meter = Meter()
    step(meter, clock, 0.010)
    for _ in range(20):
        save(meter, clock, 0.001)
        step(meter, clock, 0.050)
    assert meter.stats().median_stall_ms == pytest.approx(41.0)


@pytest.mark.pure
def test_the_sequences_are_bounded_and_the_totals_are_not() -> None:
    meter = Meter()
    tracemalloc.start()
    for _ in range(3 * LAST):
        meter.committed(lag_s=1.0, write_s=0.5, size=10)
        meter.saved(meter.step_ended())
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    found = meter.stats()
    assert (found.saves, found.bytes) == (3 * LAST, 30 * LAST)
    assert len(found.lag_s) == len(found.checkpoint_bytes) == LAST
    assert len(found.hook_ms) == len(found.stall_ms) == LAST
    assert grown < 512 * LAST


@pytest.mark.pure
def test_before_any_fit_there_is_nothing_to_tell() -> None:
    found = MlflowCheckpoint().stats()
    assert found == Stats()
    assert (found.median_hook_ms, found.median_stall_ms, found.median_lag_s) == (None, None, None)
    assert found.metrics() == {}
    with pytest.raises(FrozenInstanceError):
        found.saves = 1  # type: ignore[misc]


def test_a_fit_tells_what_its_checkpoints_cost_while_it_runs_and_after_it() -> None:
    class Watch(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            seen.append(callback.stats())

    seen: list[Stats] = []
    callback = MlflowCheckpoint(save_freq=Every(epochs=2), keep=None)
    with mlflow.start_run():
        fit(mlp(), callback, Watch(), epochs=5)
    assert [s.strategy for s in seen[:3]] == [None, None, "copy-on-write"]
    found = callback.stats()
    assert (found.saves, found.skipped, found.failed, found.reason) == (3, 0, 0, None)
    assert found.first_hook_ms is not None
    assert (len(found.hook_ms), len(found.stall_ms), len(found.lag_s)) == (2, 3, 3)
    assert all(
        stall >= hook
        for stall, hook in zip(found.stall_ms, (found.first_hook_ms, *found.hook_ms), strict=True)
    )
    assert all(lag >= write for lag, write in zip(found.lag_s, found.write_s, strict=True))
    assert found.bytes == sum(found.checkpoint_bytes) > 0


def costs(run_id: str) -> dict[str, list[int]]:
    client = mlflow.MlflowClient()
    return {
        key: [m.step for m in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
        if "ckpt/" in key
    }


def test_the_run_says_what_its_checkpoints_cost_once_for_each_step(another_process: Any) -> None:
    def train(epochs: int) -> None:
        keras.utils.set_random_seed(1)
        with mlflow.start_run(run_id=run_id):
            fit(mlp(), MlflowCheckpoint(), epochs=epochs)
        another_process()

    with mlflow.start_run() as run:
        run_id = run.info.run_id
    names = ("ckpt/bytes", "ckpt/lag_s", "ckpt/skipped", "ckpt/stall_ms")
    train(2)
    assert costs(run_id) == {name: [4] for name in names}
    train(2)  # Nothing is left to train: nothing was saved.
    assert costs(run_id) == {name: [4] for name in names}
    train(3)
    assert costs(run_id) == {name: [4, 6] for name in names}


def test_of_checkpoints_that_still_wait_the_run_gets_what_they_took() -> None:
    """The server was away for the whole fit: how long a commit takes is not known."""
    waiting = Stats(stall_ms=(1.0, 3.0, 8.0), skipped=2)
    assert waiting.metrics() == {"ckpt/stall_ms": 3.0, "ckpt/skipped": 2.0}
    assert Stats().metrics() == {}


def test_a_second_series_says_it_under_its_own_name() -> None:
    callback = MlflowCheckpoint(name="light", save_weights_only=True)
    with mlflow.start_run() as run:
        fit(mlp(), MlflowCheckpoint(), callback, epochs=1)
    found = mlflow.get_run(run.info.run_id).data.metrics
    assert found["light/ckpt/bytes"] == callback.stats().bytes
    assert found["ckpt/bytes"] > found["light/ckpt/bytes"]
