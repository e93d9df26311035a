"""How two configs differ, layer by layer; and that the numbers Keras gives are no difference."""

from __future__ import annotations

import copy
import json
import random
import re
from typing import Any

import keras
import pytest
from keras import layers
from mutations import nonsense
from zoo import ZOO, registered

from mlflow_ckpt.config_change import architecture, compiled, optimizer
from mlflow_ckpt.contrast import Contrast

pytestmark = pytest.mark.pure

QUICK = {
    "functional-with-shared-layers",
    "nested",
    "recurrent",
    "mixed-precision",
    "two-optimizers",
}
KINDS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ZOO]


def config(model: keras.Model) -> dict[str, Any]:
    """What lies in its file."""
    found: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(model)))
    return found


def functional(
    *, units: int = 8, extra: bool = False, compile: Any = ("adam", "mse"), **options: Any
) -> dict[str, Any]:
    x = given = keras.Input((6,))
    x = layers.Dense(units, **options)(x)
    if extra:
        x = layers.Dropout(0.5)(x)
    model = keras.Model(given, layers.Dense(3, name="head")(x))
    model.compile(*compile)
    return config(model)


def sequential(*parts: Any) -> dict[str, Any]:
    model = keras.Sequential([keras.Input((6,)), *parts])
    model.compile("adam", "mse")
    return config(model)


def told(found: list[Contrast]) -> list[tuple[str, Any, Any]]:
    """What differs, without the numbers of layers."""
    return [(_plain(each.where), _plain(each.a), _plain(each.b)) for each in found]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"_\d+(?=\.|$)", "", value)


# --- the same -----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_code_makes_the_same_model(kind: str) -> None:
    """In one process, whose second model has other names and object IDs."""
    a, b = (config(ZOO[kind]().model) for _ in range(2))
    assert architecture(a, b) == []
    assert compiled(a, b, but=()) == [] or compiled(a, b, but=("optimizer",)) == []
    assert optimizer(a, "optimizer") == optimizer(b, "optimizer")


# --- different ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param({}, {"units": 9}, [("dense.units", 8, 9)], id="units"),
        pytest.param(
            {"activation": "relu"},
            {"activation": "tanh"},
            [("dense.activation", "relu", "tanh")],
            id="activation",
        ),
        pytest.param(
            {},
            {"kernel_initializer": "he_normal"},
            [("dense.kernel_initializer.class", "GlorotUniform", "HeNormal")],
            id="class-of-an-argument",
        ),
        pytest.param(
            {"kernel_regularizer": keras.regularizers.L2(0.1)},
            {"kernel_regularizer": keras.regularizers.L2(0.2)},
            [("dense.kernel_regularizer.l2", 0.1, 0.2)],
            id="argument-of-an-argument",
        ),
        pytest.param(
            {},
            {"dtype": "mixed_float16"},
            [("dense.dtype", "float32", "mixed_float16")],
            id="dtype-policy",
        ),
        pytest.param(
            {}, {"trainable": False}, [("dense.trainable", True, False)], id="frozen"
        ),
        pytest.param(
            {},
            {"extra": True},
            [("head.inputs", ["dense"], ["dropout"]), ("dropout", None, "Dropout")],
            id="a-layer-more",
        ),
    ],
)  # fmt: skip
def test_what_differs_is_named_by_layer_and_argument(
    a: dict[str, Any], b: dict[str, Any], expected: list[Any]
) -> None:
    assert told(architecture(functional(**a), functional(**b))) == expected
    back = [(where, new, old) for where, old, new in expected]
    assert sorted(told(architecture(functional(**b), functional(**a)))) == sorted(back)


def test_layers_with_names_of_their_own_are_found_wherever_they_stand() -> None:
    p, q = layers.Dense(6, name="p"), layers.Dense(6, name="q", activation="relu")
    one, other = sequential(p, q), sequential(q, p)
    assert told(architecture(one, other)) == [
        ("model.layers", ["input_layer", "p", "q"], ["input_layer", "q", "p"])
    ]


def test_another_class_is_told_by_its_name_alone() -> None:
    one = sequential(layers.Dense(6, name="p"))
    other = sequential(layers.Dropout(0.5, name="p"))
    assert told(architecture(one, other)) == [("p.class", "Dense", "Dropout")]


def test_a_sequential_model_and_a_functional_one_are_compared_by_their_layers() -> None:
    one = sequential(layers.Dense(8), layers.Dense(3, name="head"))
    assert told(architecture(one, functional())) == [("model.class", "Sequential", "Functional")]


def test_layers_in_a_model_in_a_model_are_named_with_it() -> None:
    def nested(units: int) -> dict[str, Any]:
        inner = keras.Sequential([keras.Input((6,)), layers.Dense(units)], name="inner")
        return sequential(inner, layers.Dense(2))

    assert told(architecture(nested(3), nested(4))) == [("inner/dense.units", 3, 4)]


def test_layers_around_layers_are_told_with_them() -> None:
    one, other = (
        sequential(layers.Reshape((2, 3)), layers.Bidirectional(layers.LSTM(n))) for n in (3, 4)
    )
    found = {where for where, _, _ in told(architecture(one, other))}
    assert "bidirectional.layer.units" in found


def test_connections_of_a_shared_layer_count() -> None:
    def shared(twice: bool) -> dict[str, Any]:
        given = keras.Input((6,))
        dense = layers.Dense(6)
        x = dense(given)
        return config(keras.Model(given, dense(x) if twice else x))

    found = told(architecture(shared(False), shared(True)))
    assert found == [
        ("model.inputs", ["input_layer", "dense"], ["input_layer", ["dense", 1, 0]]),
        ("dense.inputs", ["input_layer"], ["input_layer", "dense"]),
    ]


def test_loss_and_metrics_are_compared_apart_from_the_optimizer() -> None:
    one, other = functional(), functional(compile=("sgd", "mae", None, ["mse"]))
    assert architecture(one, other) == []
    assert told(compiled(one, other, but=("optimizer",))) == [
        ("compile.loss", "mse", "mae"),
        ("compile.metrics", None, ["mse"]),
    ]


def test_an_optimizer_is_its_class_and_arguments_without_the_present_rate() -> None:
    found = optimizer(functional(compile=(keras.optimizers.SGD(0.5, momentum=0.9),)), "optimizer")
    assert (found["class"], found["momentum"]) == ("SGD", 0.9)
    assert "learning_rate" not in found
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    found = optimizer(functional(compile=(keras.optimizers.SGD(schedule),)), "optimizer")
    assert (found["learning_rate"]["class"], found["learning_rate"]["decay_steps"]) == (
        "CosineDecay",
        100,
    )
    assert optimizer(functional(), "d_optimizer") is None
    assert optimizer({"compile_config": {"optimizer": "adam"}}, "optimizer") == {"class": "adam"}


@registered
class Block(keras.Model):
    """A model whose config has arguments of its own, and no layers."""

    def __init__(self, width: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width = width

    def call(self, x: Any) -> Any:
        return x

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "width": self.width}


def test_a_model_of_the_users_own_is_compared_by_its_arguments() -> None:
    assert told(architecture(config(Block(1)), config(Block(2)))) == [("model.width", 1, 2)]


# --- what a stranger wrote ----------------------------------------------------


def test_nonsense_in_a_config_is_a_difference_or_none_but_no_failure() -> None:
    good = functional(extra=True)
    for number in range(400):
        spoilt = copy.deepcopy(good)
        chance = random.Random(number)
        for _ in range(chance.randint(1, 3)):
            nonsense(chance, spoilt)
        for one, other in ((good, spoilt), (spoilt, good), (spoilt, spoilt)):
            found = [*architecture(one, other), *compiled(one, other, but=("optimizer",))]
            json.dumps([each.to_dict() for each in found], allow_nan=False)
            optimizer(other, "optimizer")
