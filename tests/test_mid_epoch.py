"""Broken off inside an epoch, beyond one callback and one input: what is left of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import mlflow
import pytest
import tensorflow as tf
from builders import data, history, mlp, same
from doubles import StopHere

from mlflow_ckpt import MlflowCheckpoint, list_checkpoints

Forget = Callable[[], None]

BATCH, BATCHES = 8, 8
X, Y = data()


class Counts(keras.callbacks.Callback):
    """Count the batches and validations of one process; stop it in one of its validations."""

    def __init__(self, stop_in_validation: int = 0) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.validations = 0
        self._stop = stop_in_validation

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Each process counts for itself."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches.append(batch)

    def on_test_begin(self, logs: Any = None) -> None:
        self.validations += 1
        if self.validations == self._stop:
            raise StopHere("validation")


class StopAfter(Counts):
    """Stop after so many batches of this process."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._after = batches

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, logs)
        if len(self.batches) == self._after:
            raise StopHere(f"batch {batch}")


def of_unknown_length() -> tf.data.Dataset:
    """Eight batches; nobody can know how many before they are read."""
    counted = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(len(X), seed=1)
    return counted.filter(lambda x, y: y < 99).batch(BATCH)


def train(
    run_id: str | None,
    counts: Counts,
    *,
    ours: list[MlflowCheckpoint],
    unknown_length: bool = False,
) -> tuple[str, keras.Model, dict[str, list[float]] | None]:
    keras.utils.set_random_seed(3)
    model = mlp()
    given = {"x": of_unknown_length()} if unknown_length else {"x": X, "y": Y, "batch_size": BATCH}
    with mlflow.start_run(run_id=run_id) as run:
        try:
            fitted = model.fit(
                **given,
                shuffle=not unknown_length,
                epochs=3,
                validation_data=(X[:16], Y[:16]),
                verbose=0,
                callbacks=[*ours, counts],
            )
        except StopHere:
            return run.info.run_id, model, None
    return run.info.run_id, model, fitted.history


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_where_only_the_validation_is_left_nothing_is_trained(another_process: Forget) -> None:
    def ours() -> list[MlflowCheckpoint]:
        return [MlflowCheckpoint(save_freq=1, keep=None)]

    another_process()
    _, reference, whole = train(None, Counts(), unknown_length=True, ours=ours())
    another_process()
    run_id, *_ = train(None, Counts(2), unknown_length=True, ours=ours())
    newest = list_checkpoints(run_id).sort_values("step").iloc[-1]
    assert (newest["kind"], newest["step"]) == ("batch", 2 * BATCHES)

    another_process()
    counts = Counts()
    _, model, result = train(run_id, counts, unknown_length=True, ours=ours())
    assert counts.batches == list(range(BATCHES))  # of the third epoch
    assert counts.validations == 2
    assert same(model, reference)
    assert result == whole
    assert [step for step, _ in history(run_id)["val_loss"]] == [1, 2, 3]
    assert mlflow.get_run(run_id).data.tags["ckpt.resume_exact"] == "true"


@pytest.mark.parametrize(
    "stop", [11, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (10, 13))]
)
def test_two_series_that_save_at_different_batches_go_on_from_the_newer(
    stop: int, another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    def ours() -> list[MlflowCheckpoint]:
        return [
            MlflowCheckpoint(save_freq=3, keep=None, name="often"),
            MlflowCheckpoint(save_freq=5, keep=None, name="seldom"),
        ]

    newest_step = {10: 9, 11: 10, 13: 12}[stop]  # the stop comes before the save of its batch
    another_process()
    whole_id, reference, whole = train(None, Counts(), ours=ours())
    another_process()
    run_id, *_ = train(None, StopAfter(stop), ours=ours())
    another_process()
    counts = Counts()
    _, model, result = train(run_id, counts, ours=ours())
    assert counts.batches == [step % BATCHES for step in range(newest_step, 3 * BATCHES)]
    assert same(model, reference)
    assert result == whole
    assert curves(run_id) == curves(whole_id)
    assert (
        f"goes on at step {newest_step}, as another series of this fit" in capsys.readouterr().out
    )
    steps = [set(zip(r["series"], r["step"], strict=True)) for r in map(frame, (run_id, whole_id))]
    assert steps[0] == steps[1]
    tags = mlflow.get_run(run_id).data.tags
    assert (tags["ckpt.resume_exact"], tags["ckpt.resume_count"]) == ("true", "1")


def curves(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All that is not a measurement of what checkpoints cost."""
    return {key: rows for key, rows in history(run_id).items() if "ckpt/" not in key}


def frame(run_id: str) -> dict[str, list[Any]]:
    return list_checkpoints(run_id)[["series", "step"]].to_dict("list")


def test_a_loop_of_ones_own_begins_the_epoch_again_and_says_so(another_process: Forget) -> None:
    def loop(run_id: str | None, stop: int | None) -> tuple[str, list[tuple[int, int]]]:
        keras.utils.set_random_seed(3)
        model, trained = mlp(), []
        with mlflow.start_run(run_id=run_id) as run:
            ours = MlflowCheckpoint(save_freq=3, keep=None, monitor=None)
            listed = keras.callbacks.CallbackList(
                [ours], model=model, epochs=3, steps=BATCHES, verbose=0
            )
            listed.on_train_begin()
            for epoch in range(getattr(model, "_initial_epoch", None) or 0, 3):
                listed.on_epoch_begin(epoch)
                for batch in range(BATCHES):
                    listed.on_train_batch_begin(batch)
                    part = slice(batch * BATCH, (batch + 1) * BATCH)
                    loss = model.train_on_batch(X[part], Y[part])
                    trained.append((epoch, batch))
                    listed.on_train_batch_end(batch, {"loss": float(loss[0])})
                    if len(trained) == stop:
                        return run.info.run_id, trained
                listed.on_epoch_end(epoch, {"loss": float(loss[0])})
            listed.on_train_end()
        return run.info.run_id, trained

    another_process()
    run_id, _ = loop(None, 13)
    another_process()
    _, trained = loop(run_id, None)
    assert trained == [(epoch, batch) for epoch in (1, 2) for batch in range(BATCHES)]
    told = mlflow.get_run(run_id).data.tags["ckpt.resume_exact"]
    assert told == "false: the epoch that was broken off was begun again"
