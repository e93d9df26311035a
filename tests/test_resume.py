"""Continue a run by its ID: what is restored, when nothing is trained, what is refused."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import stored
from builders import Gan, Subclassed, data, fit, history, mlp, same
from doubles import RaiseAt, Remembering, StopHere

import mlflow_ckpt as ckpt
from mlflow_ckpt import Every, MlflowCheckpoint, Resume
from mlflow_ckpt.errors import (
    CheckpointNotFound,
    ConfigError,
    DigestMismatch,
    LeaseHeld,
    ModelMismatch,
    NoCheckpoints,
    ResumeError,
    ResumeMismatch,
    SelectorError,
)
from mlflow_ckpt.owner import Owner
from mlflow_ckpt.store import Store

pytestmark = pytest.mark.backends

Forget = Callable[[], None]


def train(run_id: str | None, build: Callable[[], Any], epochs: int, **arguments: Any) -> Any:
    """What a script does: seed, build, fit; return the run ID, the model and the History."""
    keras.utils.set_random_seed(11)
    model = build()
    extra = arguments.pop("callbacks", [])
    checkpoint = MlflowCheckpoint(**arguments.pop("checkpoint", {}))
    with mlflow.start_run(run_id=run_id) as run:
        result = fit(model, checkpoint, *extra, epochs=epochs, **arguments)
    return run.info.run_id, model, result


def interrupted(build: Callable[[], Any], forget: Forget, *, at: int, **arguments: Any) -> str:
    """Break a training off inside epoch `at` (from 1), as if the process had died there."""
    with mlflow.start_run() as run:
        pass
    callbacks = [*arguments.pop("callbacks", []), RaiseAt(at)]
    with pytest.raises(StopHere):
        train(run.info.run_id, build, 20, callbacks=callbacks, **arguments)
    forget()
    return str(run.info.run_id)


def subclassed() -> keras.Model:
    model = Subclassed()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def scheduled() -> keras.Model:
    return mlp(optimizer=keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 12)))


def averaged() -> keras.Model:
    return mlp(optimizer=keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))


def accumulating() -> keras.Model:
    return mlp(optimizer=keras.optimizers.Adam(gradient_accumulation_steps=2))


def scaled() -> keras.Model:
    inner = keras.optimizers.Adam()
    return mlp(optimizer=keras.optimizers.LossScaleOptimizer(inner, initial_scale=2.0))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(mlp, id="dropout-mlp"),
        pytest.param(subclassed, id="subclassed-built-by-fit"),
        pytest.param(scheduled, id="learning-rate-schedule"),
        pytest.param(averaged, id="ema"),
        pytest.param(accumulating, id="gradient-accumulation", marks=pytest.mark.slow),
        pytest.param(scaled, id="loss-scaling"),
    ],
)
def test_a_resumed_run_ends_like_one_that_was_never_interrupted(
    build: Callable[[], Any], another_process: Forget
) -> None:
    reference_run, reference, expected = train(None, build, 6)
    another_process()
    run_id = interrupted(build, another_process, at=4)
    _, model, result = train(run_id, build, 6)
    assert same(model, reference)
    assert result.history == expected.history
    assert history(run_id) == history(reference_run)


def test_two_optimizers_of_a_gan_are_both_restored(another_process: Forget) -> None:
    x, _ = data()

    def gan(run_id: str | None, *extra: Any) -> tuple[str, Gan]:
        keras.utils.set_random_seed(5)
        model = Gan()
        model.compile(keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02, momentum=0.9))
        checkpoint = MlflowCheckpoint(monitor="d_loss", mode="min")
        with mlflow.start_run(run_id=run_id) as run:
            model.fit(x, epochs=5, verbose=0, callbacks=[checkpoint, *extra])
        return run.info.run_id, model

    _, reference = gan(None)
    another_process()
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        gan(run.info.run_id, RaiseAt(4))
    another_process()
    run_id, model = gan(run.info.run_id)
    assert same(model, reference)
    assert ckpt.resolve(run_id, "latest").step == 10
    assert same(ckpt.load_model(run_id), model)


def test_other_callbacks_go_on_where_they_were(another_process: Forget) -> None:
    def callbacks() -> list[Any]:
        return [
            keras.callbacks.EarlyStopping(patience=9, min_delta=10.0, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(patience=2, min_delta=10.0, cooldown=1),
            Remembering(),
        ]

    def facts(found: list[Any]) -> list[Any]:
        stop, reduce, own = found
        return [
            stop.wait,
            stop.best,
            stop.best_epoch,
            reduce.wait,
            reduce.cooldown_counter,
            own.losses,
        ]

    expected = callbacks()
    _, reference, _ = train(None, mlp, 7, callbacks=expected)
    another_process()
    run_id = interrupted(mlp, another_process, at=5, callbacks=callbacks())
    found = callbacks()
    _, model, _ = train(run_id, mlp, 7, callbacks=found)
    assert facts(found) == facts(expected)
    assert same(model, reference)


def test_the_best_so_far_survives(another_process: Forget) -> None:
    run_id = interrupted(mlp, another_process, at=4, checkpoint={"save_best_only": True})
    before = ckpt.resolve(run_id, "best")
    train(run_id, mlp, 4, checkpoint={"save_best_only": True}, callbacks=[Worse()])
    assert ckpt.resolve(run_id, "best") == before
    assert ckpt.resolve(run_id, "latest").epoch == 4


class Worse(keras.callbacks.Callback):
    """Report a validation loss far above any real one."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["val_loss"] = 1e9


def test_epochs_that_were_logged_but_not_saved_are_not_logged_again(
    another_process: Forget,
) -> None:
    every = {"save_freq": Every(epochs=3)}
    run_id = interrupted(mlp, another_process, at=6, checkpoint=every)
    logged = {k: v for k, v in history(run_id).items() if k != "ckpt_step"}
    assert [s for s, _ in logged["loss"]] == [1, 2, 3, 4, 5]
    train(run_id, mlp, 8, checkpoint=every)
    curves = history(run_id)
    for key, rows in logged.items():
        assert [s for s, _ in curves[key]] == list(range(1, 9))
        assert curves[key][:5] == rows
    assert "ckpt.resume_divergence" not in mlflow.get_run(run_id).data.tags


def test_a_replay_that_differs_is_reported_and_not_drawn_twice(another_process: Forget) -> None:
    every = {"save_freq": Every(epochs=3)}
    run_id = interrupted(mlp, another_process, at=6, checkpoint=every)
    x, y = data()
    train(run_id, mlp, 6, checkpoint=every, validation_data=(x[:16], y[:16]))
    steps = [s for s, _ in history(run_id)["val_loss"]]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert "val_loss@4: logged" in mlflow.get_run(run_id).data.tags["ckpt.resume_divergence"]


# --- finished, shortened, lengthened ------------------------------------------


class CountEpochs(keras.callbacks.Callback):
    """Count the epochs that were really trained."""

    trained = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.trained += 1


def rerun(run_id: str, epochs: int, **arguments: Any) -> tuple[int, Any, Any]:
    counter = CountEpochs()
    extra = [*arguments.pop("callbacks", []), counter]
    _, model, result = train(run_id, mlp, epochs, callbacks=extra, **arguments)
    return counter.trained, model, result


def test_a_finished_run_trains_nothing_and_restores_its_end(
    another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, reference, expected = train(None, averaged, 3)
    before = list(ckpt.list_checkpoints(run_id)["model_id"])
    another_process()
    counter = CountEpochs()
    _, model, result = train(run_id, averaged, 3, callbacks=[counter])
    assert counter.trained == 0
    assert same(model, reference)
    assert result.history == expected.history
    assert list(ckpt.list_checkpoints(run_id)["model_id"]) == before
    assert "already complete at epoch 3; nothing to train" in capsys.readouterr().out


def test_fewer_epochs_than_reached_train_nothing(another_process: Forget) -> None:
    run_id, reference, _ = train(None, mlp, 4)
    another_process()
    trained, model, _ = rerun(run_id, 2)
    assert trained == 0
    assert same(model, reference)


def test_more_epochs_continue(another_process: Forget) -> None:
    long_run, reference, _ = train(None, mlp, 6)
    another_process()
    run_id, _, _ = train(None, mlp, 4, checkpoint={"save_freq": Every(epochs=3)})
    another_process()
    trained, model, _ = rerun(run_id, 6, checkpoint={"save_freq": Every(epochs=3)})
    assert trained == 2
    assert same(model, reference)
    assert history(run_id)["val_loss"] == history(long_run)["val_loss"]
    table = ckpt.list_checkpoints(run_id)
    assert list(table.loc[table["is_final"], "epoch"]) == [6]


def test_a_run_that_stopped_early_stays_stopped(another_process: Forget) -> None:
    def stop() -> Any:
        return keras.callbacks.EarlyStopping(patience=2, min_delta=10.0, restore_best_weights=True)

    run_id, reference, _ = train(None, mlp, 9, callbacks=[stop()])
    another_process()
    trained, model, _ = rerun(run_id, 9, callbacks=[stop()])
    assert trained == 0
    assert same(model, reference)


def test_killed_after_the_last_epoch_still_gets_its_end_state(another_process: Forget) -> None:
    class Die(keras.callbacks.Callback):
        def on_train_end(self, logs: Any = None) -> None:
            raise StopHere("before the end state was saved")

    with mlflow.start_run() as run:
        pass
    run_id = run.info.run_id
    with pytest.raises(StopHere):
        train(run_id, averaged, 3, callbacks=[Die()])
    another_process()
    _, reference, _ = train(None, averaged, 3)
    another_process()
    counter = CountEpochs()
    _, model, _ = train(run_id, averaged, 3, callbacks=[counter])
    assert counter.trained == 0
    assert same(model, reference)
    assert same(ckpt.load_model(run_id, "final"), reference)


def test_a_script_with_two_fits_continues_inside_the_second(another_process: Forget) -> None:
    def script(run_id: str | None, stop_at: int | None) -> tuple[str, Any]:
        keras.utils.set_random_seed(11)
        model = mlp()
        with mlflow.start_run(run_id=run_id) as run:
            fit(model, MlflowCheckpoint(), epochs=3)
            fit(model, MlflowCheckpoint(), *([RaiseAt(stop_at)] if stop_at else []), epochs=4)
        return run.info.run_id, model

    reference_run, reference = script(None, None)
    another_process()
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        script(run.info.run_id, 3)
    another_process()
    run_id, model = script(run.info.run_id, None)
    assert same(model, reference)
    assert history(run_id) == history(reference_run)
    another_process()
    assert same(script(run_id, None)[1], reference)


# --- what the user asks for ---------------------------------------------------


def test_an_explicit_selector_is_obeyed(another_process: Forget) -> None:
    run_id, _, _ = train(None, mlp, 4)
    another_process()
    trained, _, _ = rerun(run_id, 4, checkpoint={"resume": "epoch=2"})
    assert trained == 2
    assert [s for s, _ in history(run_id)["loss"]] == [1, 2, 3, 4]


def test_an_explicit_selector_that_finds_nothing_raises(another_process: Forget) -> None:
    with pytest.raises(NoCheckpoints):
        train(None, mlp, 2, checkpoint={"resume": "latest"})
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    with pytest.raises(CheckpointNotFound, match="epoch=2"):
        train(run_id, mlp, 2, checkpoint={"resume": Resume(which="epoch=9")})


def test_resume_false_never_writes_a_second_first_epoch(another_process: Forget) -> None:
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    with pytest.raises(ResumeError, match="pass name='ckpt2'"):
        train(run_id, mlp, 2, checkpoint={"resume": False})


@pytest.mark.parametrize("initial_epoch", [0, 3], ids=["left-out", "agrees"])
def test_an_initial_epoch_that_agrees(initial_epoch: int, another_process: Forget) -> None:
    run_id = interrupted(mlp, another_process, at=4)
    train(run_id, mlp, 5, initial_epoch=initial_epoch)
    assert [s for s, _ in history(run_id)["loss"]] == [1, 2, 3, 4, 5]


def test_an_initial_epoch_that_disagrees_is_refused(another_process: Forget) -> None:
    run_id = interrupted(mlp, another_process, at=4)
    with pytest.raises(ResumeError, match="Leave initial_epoch out"):
        train(run_id, mlp, 5, initial_epoch=1)


def test_saved_by_hand_is_no_resume_point(another_process: Forget) -> None:
    with mlflow.start_run() as run:
        ckpt.save(mlp(), series="ckpt", epoch=5)
    with pytest.raises(ResumeError, match="saved by hand"):
        train(run.info.run_id, mlp, 2, checkpoint={"resume": "latest"})


def test_a_checkpoint_inside_an_epoch_goes_on_at_the_next_batch(
    another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    quarters = {"checkpoint": {"save_freq": 3}, "batch_size": 16}
    reference_run, reference, expected = train(None, mlp, 3, **quarters)
    another_process()
    counter = CountBatches(die_at=7)
    run_id = with_callbacks_interrupted([counter], quarters)
    another_process()
    counter = CountBatches()
    _, model, result = train(run_id, mlp, 3, callbacks=[counter], **quarters)
    assert "continues in epoch 2 after its batch 2, step 6" in capsys.readouterr().out
    assert counter.batches == [2, 3, 0, 1, 2, 3]
    assert same(model, reference)
    assert result.history == expected.history
    assert history(run_id) == history(reference_run)
    tags = mlflow.get_run(run_id).data.tags
    origin = next(c for c in Store().checkpoints(*series_of(run_id)) if c.step == 6)
    assert tags["ckpt.resumed_from"] == f"step=6 model={origin.model_id}"
    assert (tags["ckpt.resume_count"], tags["ckpt.resume_exact"]) == ("1", "true")


class CountBatches(keras.callbacks.Callback):
    """Note the index of every batch that begins; break off at the end of one (from 1)."""

    def __init__(self, die_at: int = 0) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.die_at = die_at

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.batches.append(batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if len(self.batches) == self.die_at:
            raise StopHere(f"batch {self.die_at}")

    def checkpoint_state(self) -> dict[str, Any]:
        return {}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """It counts what this process trains."""


def with_callbacks_interrupted(callbacks: list[Any], arguments: dict[str, Any]) -> str:
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        train(run.info.run_id, mlp, 3, callbacks=callbacks, **arguments)
    return str(run.info.run_id)


def series_of(run_id: str) -> tuple[Any, Any]:
    run = Store().run(run_id)
    return run, run.series["ckpt"]


@pytest.mark.parametrize("force", [False, True])
def test_a_series_that_another_process_writes_is_taken_over_only_by_force(
    force: bool, another_process: Forget, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    model = mlp()
    untouched = [np.array(w) for w in model.get_weights()]
    with elsewhere(run_id, beats=not force), mlflow.start_run(run_id=run_id):
        if force:
            fit(model, MlflowCheckpoint(resume=Resume(force=True)), epochs=3)
        else:
            with pytest.raises(LeaseHeld, match=r"Resume\(force=True\)"):
                fit(model, MlflowCheckpoint(), epochs=3)
    said = capsys.readouterr().out
    assert ("taken over by force from host elsewhere, pid 4711" in said) is force
    assert list(ckpt.list_checkpoints(run_id)["epoch"]) == ([1, 2, 3] if force else [1, 2])
    same_weights = all(map(np.array_equal, untouched, model.get_weights()))
    assert same_weights is not force


@contextmanager
def elsewhere(run_id: str, *, beats: bool) -> Iterator[None]:
    """A process on another machine holds the series; `beats` says whether it moves."""
    owner = {**Owner.me().to_dict(), "host": "elsewhere", "boot": "another", "pid": 4711}
    store, over = Store(), threading.Event()
    tag = store.lease_tag(store.run(run_id), "ckpt")

    def write(count: int) -> None:
        tag.write(json.dumps(owner | {"nonce": "theirs", "beat": count}))

    def beat() -> None:
        for count in itertools.count(2):
            if over.wait(0.2):
                return
            write(count)

    write(1)
    thread = threading.Thread(target=beat)
    if beats:
        thread.start()
    yield
    over.set()
    if beats:
        thread.join()


@pytest.mark.parametrize("allow", [("optimiser",), "loss"], ids=["unknown", "no-tuple"])
def test_what_may_differ_is_checked_at_once(allow: Any) -> None:
    with pytest.raises(ConfigError, match="Received: allow="):
        Resume(allow=allow)


def test_resume_reads_its_selector_at_once() -> None:
    with pytest.raises(SelectorError, match="Received: 'sometimes'"):
        Resume(which="sometimes")


# --- refused, with nothing assigned -------------------------------------------


@pytest.mark.parametrize(
    ("build", "text"),
    [
        pytest.param(lambda: mlp(units=9), r"Expected: shape \(8, 8\) float32", id="wider-layer"),
        pytest.param(
            lambda: mlp(optimizer="sgd"),
            'model.optimizer.class: "Adam" in the checkpoint, "SGD" now',
            id="optimizer",
        ),
        pytest.param(
            lambda: mlp(optimizer=keras.optimizers.Adam(amsgrad=True)), "amsgrad", id="amsgrad"
        ),
    ],
)
def test_another_model_is_refused(
    build: Callable[[], Any], text: str, another_process: Forget
) -> None:
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    before = ckpt.list_checkpoints(run_id)
    model = build()
    untouched = [np.array(w) for w in model.get_weights()]
    with (
        mlflow.start_run(run_id=run_id),
        pytest.raises((ModelMismatch, ResumeMismatch), match=text),
    ):
        fit(model, MlflowCheckpoint(), epochs=4)
    assert all(np.array_equal(a, b) for a, b in zip(untouched, model.get_weights(), strict=True))
    assert ckpt.list_checkpoints(run_id).equals(before)


def test_a_rotten_file_is_named_and_nothing_is_assigned(another_process: Forget) -> None:
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    stored.DAMAGE["flipped"](ckpt.resolve(run_id), "data/model.keras")
    with pytest.raises(DigestMismatch, match=r"data/model\.keras"):
        train(run_id, mlp, 4, checkpoint={"resume": "epoch=2"})


def test_a_longer_fit_replaces_the_end_state_of_the_shorter_one(another_process: Forget) -> None:
    run_id, _, _ = train(None, averaged, 2)
    another_process()
    _, model, _ = train(run_id, averaged, 4)
    table = ckpt.list_checkpoints(run_id)
    assert list(table.loc[table["kind"] == "final", "epoch"]) == [4]
    assert list(table.loc[table["is_final"], "epoch"]) == [4]
    assert same(ckpt.load_model(run_id, "final"), model)


def test_a_new_monitor_has_no_best_yet(another_process: Forget) -> None:
    run_id, _, _ = train(None, mlp, 2)
    another_process()
    best = {"monitor": "val_accuracy", "save_best_only": True}
    train(run_id, mlp, 4, checkpoint=best)
    table = ckpt.list_checkpoints(run_id)
    assert (
        table["metrics.val_accuracy"].max() == ckpt.resolve(run_id, "best").metrics["val_accuracy"]
    )


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(1, id="newest-last"),
        pytest.param(-1, id="newest-first", marks=pytest.mark.slow),
    ],
)
def test_two_series_of_one_fit_go_on_from_the_newest_of_both(
    order: int, another_process: Forget
) -> None:
    def both(run_id: str | None, *extra: Any) -> tuple[str, keras.Model]:
        keras.utils.set_random_seed(11)
        model = mlp()
        callbacks = [
            MlflowCheckpoint(name="full", save_freq=Every(epochs=2)),
            MlflowCheckpoint(name="light", save_weights_only=True),
        ][::order]
        with mlflow.start_run(run_id=run_id) as run:
            fit(model, *callbacks, *extra, epochs=6)
        return run.info.run_id, model

    reference_run, reference = both(None)
    another_process()
    with mlflow.start_run() as run:
        pass
    with pytest.raises(StopHere):
        both(run.info.run_id, RaiseAt(4))
    another_process()
    run_id, model = both(run.info.run_id)
    assert same(model, reference)
    assert history(run_id) == history(reference_run)
    for series in ("full", "light"):
        ours, theirs = (ckpt.list_checkpoints(r, series) for r in (run_id, reference_run))
        assert list(ours["name"]) == list(theirs["name"])
        assert list(ours["is_final"]) == list(theirs["is_final"])
    another_process()
    assert same(both(run_id)[1], reference)


def test_a_log_that_is_no_number_has_no_curve() -> None:
    class Vector(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["per_class"] = np.ones(3)
            logs["scalar"] = np.float32(2.0)

    with mlflow.start_run() as run:
        fit(mlp(), Vector(), MlflowCheckpoint(), epochs=1)
    metrics = mlflow.get_run(run.info.run_id).data.metrics
    assert "per_class" not in metrics
    assert metrics["scalar"] == 2.0
