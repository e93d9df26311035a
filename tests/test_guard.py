"""What is not as it was is refused with its name, before anything is assigned."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
from builders import CLASSES, FEATURES, data, mlp
from doubles import RaiseAt, StopHere

from mlflow_ckpt import EpochData, MlflowCheckpoint, Resume, guard
from mlflow_ckpt.errors import ModelMismatch, ResumeMismatch

Forget = Callable[[], None]
Arguments = dict[str, Any]


def loss(**arguments: Any) -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True, **arguments)


def train(
    run_id: str | None,
    build: Callable[[], keras.Model] = mlp,
    *,
    allow: tuple[str, ...] = (),
    stop: int = 0,
    epochs: int = 3,
    **arguments: Any,
) -> tuple[str, keras.Model]:
    """Fit for three epochs of four batches, saved at each third batch."""
    keras.utils.set_random_seed(5)
    model = build()
    x, y = data()
    resume = Resume(which="latest", allow=allow) if run_id and allow else "auto"
    callbacks = [MlflowCheckpoint(save_freq=3, monitor=None, resume=resume), RaiseAt(stop)]
    given = {"x": x, "y": y, "batch_size": 16, **arguments}
    with mlflow.start_run(run_id=run_id) as run:
        try:
            model.fit(epochs=epochs, verbose=0, callbacks=callbacks, **given)
        except StopHere:
            assert stop
    return run.info.run_id, model


@pytest.fixture
def broken_off(another_process: Forget) -> str:
    """A run that ends with a checkpoint inside its second epoch, after step 6."""
    run_id, _ = train(None, stop=3)
    another_process()
    return run_id


def wider() -> Arguments:
    x, y = data()
    return {"x": x.astype(np.float64), "y": y.astype(np.float32)}


def fewer() -> Arguments:
    x, y = data()
    return {"x": x[:48], "y": y[:48]}


CHANGES: dict[str, tuple[str, Callable[[], keras.Model], Callable[[], Arguments], str]] = {
    "optimizer-class": (
        "optimizer",
        lambda: mlp(optimizer="sgd"),
        dict,
        'model.optimizer.class: "Adam" in the checkpoint, "SGD" now',
    ),
    "optimizer-argument": (
        "optimizer",
        lambda: mlp(optimizer=keras.optimizers.Adam(clipnorm=1.0)),
        dict,
        "model.optimizer.clipnorm: nothing in the checkpoint, 1.0 now",
    ),
    "loss": (
        "loss",
        lambda: compiled(loss(ignore_class=2)),
        dict,
        "loss: ",
    ),
    "batch-size": ("batch_size", mlp, lambda: {"batch_size": 8}, "input.batch_size: 16"),
    "element-spec": ("element_spec", mlp, wider, "input.element_spec: "),
}


def compiled(chosen: Any) -> keras.Model:
    model = mlp()
    model.compile("adam", chosen, metrics=["accuracy"])
    return model


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_refused_and_nothing_is_assigned(change: str, broken_off: str) -> None:
    part, build, arguments, text = CHANGES[change]
    kept: list[keras.Model] = []

    def building() -> keras.Model:
        kept.append(build())
        return kept[0]

    with pytest.raises(ResumeMismatch, match=rf"allow=\(.*'{part}'") as caught:
        train(broken_off, building, **arguments())
    assert any(text in line for line in caught.value.differences)
    keras.utils.set_random_seed(5)
    pairs = zip(build().get_weights(), kept[0].get_weights(), strict=True)
    assert all(np.array_equal(fresh, found) for fresh, found in pairs)
    assert "ckpt.resume_count" not in mlflow.get_run(broken_off).data.tags


@pytest.mark.parametrize("change", CHANGES)
def test_an_allowed_difference_goes_on_and_is_told(change: str, broken_off: str) -> None:
    part, build, arguments, _ = CHANGES[change]
    allow = ("batch_size", "cardinality") if part == "batch_size" else (part,)
    train(broken_off, build, allow=allow, **arguments())
    tags = mlflow.get_run(broken_off).data.tags
    assert tags["ckpt.resume_exact"].startswith("false: changed: ")
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(broken_off, "loss")] == [
        1,
        2,
        3,
    ]


def test_the_words_of_a_refusal(broken_off: str) -> None:
    with pytest.raises(ResumeMismatch) as caught:
        train(broken_off, **fewer())
    name = f"checkpoint ckpt-0001-00000006 of run {broken_off}"
    assert str(caught.value) == (
        f"This fit is not the one that wrote {name}:\n"
        "  input.cardinality: 4 in the checkpoint, 3 now\n"
        "  input.samples: 64 in the checkpoint, 48 now\n"
        "Change it back; or accept it with MlflowCheckpoint(resume=Resume(which='latest', "
        "allow=('cardinality',))); or start a new run from there with ckpt.fork or "
        "ckpt.warm_start."
    )


def test_an_epoch_begins_anew_where_its_batches_are_others(
    broken_off: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(broken_off, allow=("cardinality",), **fewer())
    assert "its first 2 batches are trained again" in capsys.readouterr().out
    tag = mlflow.get_run(broken_off).data.tags["ckpt.resume_exact"]
    assert "the epoch that was broken off was begun again" in tag


def test_another_architecture_keeps_what_fits_if_that_is_allowed(
    broken_off: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def new_head() -> keras.Model:
        model = keras.Sequential(
            [
                keras.Input((FEATURES,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(CLASSES + 2),
            ]
        )
        model.compile("adam", loss(), metrics=["accuracy"])
        return model

    with pytest.raises(ModelMismatch, match=r"allow=\('architecture',\)"):
        train(broken_off, new_head)
    train(broken_off, new_head, allow=("architecture",))
    assert "not restored" in capsys.readouterr().out
    assert mlflow.get_run(broken_off).data.tags["ckpt.resume_exact"].startswith("false: ")


def test_epochs_and_learning_rate_are_no_difference(another_process: Forget) -> None:
    run_id, _ = train(None)
    another_process()
    slower = lambda: mlp(optimizer=keras.optimizers.Adam(0.5))  # noqa: E731
    _, model = train(run_id, slower, epochs=4)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)


def test_another_seed_of_an_input_is_a_difference(another_process: Forget) -> None:
    x, y = data()

    def given(seed: int) -> Arguments:
        return {"x": EpochData(x, y, batch_size=16, seed=seed), "y": None, "batch_size": None}

    run_id, _ = train(None, stop=3, **given(1))
    another_process()
    with pytest.raises(ResumeMismatch, match=r"input.order.seed: 1 in the checkpoint, 2 now"):
        train(run_id, **given(2))


# --- losses, as they are told from each other ------------------------------------


def described(chosen: Any) -> Any:
    model = mlp()
    model.compile("adam", chosen)
    return guard.describe(model, None)["loss"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param("mse", "mean_squared_error", True, id="names"),
        pytest.param("mse", keras.losses.MeanSquaredError(), True, id="class"),
        pytest.param("mse", keras.losses.mean_squared_error, True, id="function"),
        pytest.param(["mse"], "mse", True, id="list"),
        pytest.param("mse", "mae", False, id="others"),
        pytest.param(loss(), loss(), True, id="equal-arguments"),
        pytest.param(loss(), "sparse_categorical_crossentropy", False, id="other-arguments"),
        pytest.param(loss(), loss(reduction="sum"), False, id="other-reduction"),
        pytest.param(lambda y, p: p, lambda y, p: p, True, id="lambdas-cannot-be-told"),
        pytest.param(
            functools.partial(keras.losses.huber, delta=1.0),
            functools.partial(keras.losses.huber, delta=2.0),
            False,
            id="partial",
        ),
    ],
)
def test_which_losses_are_the_same(one: Any, other: Any, same: bool) -> None:
    assert (described(one) == described(other)) is same


def test_no_address_of_an_object_is_compared() -> None:
    class Schedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> Any:
            return 0.1

    def facts() -> Any:
        return guard.describe(mlp(optimizer=keras.optimizers.SGD(Schedule())), None)

    assert facts() == facts()
