"""Whether a model fits a checkpoint: decided before anything is assigned, and said precisely."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest
from builders import FEATURES, Gan, Subclassed, fit, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import Input, layers, optimizers

from mlflow_ckpt.errors import ModelMismatch, ModelNotBuilt
from mlflow_ckpt.fingerprint import (
    build_optimizers,
    check_architecture,
    describe,
    io_spec,
    optimizers_of,
)

pytestmark = pytest.mark.pure


def dense(*units: int, **options: Any) -> keras.Model:
    """A stack of Dense layers on three inputs, not compiled."""
    return keras.Sequential([Input((3,)), *(layers.Dense(n, **options) for n in units)])


def gan() -> Gan:
    model = Gan()
    model.compile(optimizers.Adam(), optimizers.SGD(momentum=0.9))
    return model


def trained(model: keras.Model) -> keras.Model:
    """Let every optimizer of `model` make its variables."""
    for _, optimizer in optimizers_of(model):
        optimizer.build(model.trainable_variables)
    return model


def recorded(model: keras.Model) -> Any:
    """The fingerprint as a reader has it: from JSON."""
    return json.loads(json.dumps(describe(model)))


def check(model: keras.Model, other: keras.Model, **options: Any) -> None:
    check_architecture(model, recorded(other), source="checkpoint c", **options)


def build(model: keras.Model, other: keras.Model) -> None:
    build_optimizers(model, recorded(other), source="checkpoint c")


MISFITS = [
    (
        [4, 2],
        [5, 2],
        r"checkpoint c: variable 0 '\w+/\w+/kernel' \(in the checkpoint '\w+/\w+/kernel'\)\. "
        r"Expected: shape \(3, 5\)\. Received: shape \(3, 4\)\. Build the model as",
    ),
    ([4, 2, 3], [4, 2, 1], r"variable 4 .*: shape \(2, 1\)\. Received: shape \(2, 3\)"),
    (
        [2],
        [2, 1],
        r"Expected: 4 variables\. Received: 2\. .*the checkpoint has: '.*l' shape \(2, 1\)",
    ),
    ([2, 2], [2], r"Expected: 2 variables\. Received: 4\. .*the model has: '.*l' shape \(2, 2\)"),
]


@pytest.mark.parametrize(("units", "expected", "text"), MISFITS)
def test_the_first_variable_that_does_not_fit_is_named(
    units: list[int], expected: list[int], text: str
) -> None:
    with pytest.raises(ModelMismatch, match=text):
        check(dense(*units), dense(*expected))


def test_a_model_that_was_never_built_is_told_how_to_build() -> None:
    with pytest.raises(ModelNotBuilt, match=r"holds 2 variables .* none yet\. Call it once on a"):
        check(Subclassed(), dense(2))


def test_only_a_resume_is_strict_about_dtypes() -> None:
    check(dense(2, dtype="bfloat16"), dense(2))
    text = r"Expected: shape \(3, 2\) float32\. Received: shape \(3, 2\) bfloat16"
    with pytest.raises(ModelMismatch, match=text):
        check(dense(2, dtype="bfloat16"), dense(2), strict_dtype=True)


def test_the_digests_ignore_names_and_see_everything_else() -> None:
    one, two = describe(trained(mlp())), describe(trained(mlp()))
    assert one["variables"] != two["variables"], "Keras numbers its names per process"
    assert (one["architecture"], one["optimizer"]) == (two["architecture"], two["optimizer"])
    assert describe(mlp(units=9))["architecture"] != one["architecture"]
    assert describe(trained(mlp(optimizer="sgd")))["optimizer"] != one["optimizer"]


def test_a_subclassed_model_is_described_as_fit_built_it() -> None:
    model = Subclassed()
    model.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
    fit(model, epochs=1)
    found = describe(model)
    assert found["class"] == "Subclassed"
    assert [shape for _, shape, _ in found["variables"]] == [[8, 4], [4], [4, 3], [3]]
    assert found["optimizers"][0]["trains"] == [0, 1, 2, 3]


@pytest.mark.parametrize("frozen", [False, True], ids=["all-trained", "part-frozen"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: optimizers.Adam(amsgrad=True), id="adam"),
        pytest.param(lambda: optimizers.SGD(use_ema=True), id="ema"),
        pytest.param(lambda: optimizers.Adam(gradient_accumulation_steps=4), id="accumulation"),
        pytest.param(lambda: optimizers.LossScaleOptimizer(optimizers.Adam()), id="loss-scale"),
    ],
)
def test_an_unbuilt_optimizer_gets_the_recorded_variables(make: Any, frozen: bool) -> None:
    old, new = mlp(optimizer=make()), mlp(optimizer=make())
    old.layers[0].trainable = not frozen
    trained(old)
    for _ in range(2):  # The second time, it is built already.
        build(new, old)
        assert describe(new)["optimizer"] == describe(old)["optimizer"]
    assert describe(new)["optimizers"][0]["trains"] == ([2, 3] if frozen else [0, 1, 2, 3])


def test_a_gan_gets_both_optimizers_each_on_its_own_half() -> None:
    old, new = gan(), gan()
    old.train_step(np.ones((2, FEATURES), dtype=np.float32))
    build(new, old)
    found = {o["attribute"]: (o["class"], o["trains"]) for o in describe(new)["optimizers"]}
    assert found["d_optimizer"] == ("Adam", [2, 3])
    assert found["g_optimizer"] == ("SGD", [0, 1])
    assert describe(new)["optimizer"] == describe(old)["optimizer"]


def test_an_optimizer_that_had_not_run_may_still_run_after_the_load() -> None:
    model = mlp(run_eagerly=True)
    build(model, mlp())
    fit(model, epochs=1)
    assert len(model.optimizer.variables) == 10


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: mlp(optimizer="sgd"), r"`model\.optimizer`\. Expected: Adam\. Received: SGD\. "),
        (lambda: dense(8), r"Expected: Adam\. Received: none\. .* load_weights\(model, run_id"),
        (
            lambda: mlp(optimizer=optimizers.Adam(amsgrad=True)),
            r"\(Adam\)\. Expected: 10 optimizer variables\. Received: 14.*Check its arguments",
        ),
        (lambda: trained(mlp(units=9)), r"Expected: 10 .* Received: 10, or other shapes"),
    ],
    ids=["another-class", "not-compiled", "another-argument", "another-shape"],
)
def test_an_optimizer_that_does_not_fit_is_named(make: Any, text: str) -> None:
    with pytest.raises(ModelMismatch, match=text):
        build(make(), trained(mlp()))


def fed(*shapes: tuple[int | None, ...], **options: Any) -> keras.Model:
    inputs = [Input(shape, name=f"in{n}", **options) for n, shape in enumerate(shapes)]
    return keras.Model(inputs, [layers.Dense(2)(tensor) for tensor in inputs])


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: fed((3,)), [[None, "float32", [-1, 3]]]),
        (lambda: fed((3,), (4,)), [["in0", "float32", [-1, 3]], ["in1", "float32", [-1, 4]]]),
        (lambda: fed((None, 3), dtype="int32"), [[None, "int32", [-1, -1, 3]]]),
        (lambda: fed((3,), batch_size=4), None),
        (Subclassed, None),
        (lambda: keras.Sequential([layers.Dense(2)]), None),
    ],
    ids=["single", "two", "open-length", "fixed-batch", "subclassed", "not-built"],
)
def test_what_a_model_says_of_its_inputs(make: Any, inputs: Any) -> None:
    spec = io_spec(make())
    assert (spec and spec["inputs"]) == inputs
    assert json.loads(json.dumps(spec)) == spec


UNITS = st.lists(st.integers(1, 3), max_size=3)


@settings(deadline=None, max_examples=30)
@given(UNITS, UNITS)
def test_stacks_fit_exactly_if_their_shapes_agree(left: list[int], right: list[int]) -> None:
    if left == right:
        return check(dense(*left), dense(*right))
    with pytest.raises((ModelMismatch, ModelNotBuilt)):
        check(dense(*left), dense(*right))
