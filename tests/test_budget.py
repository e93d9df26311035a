"""What a file may ask for: all that a model of Keras's needs, and in proportion to itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers, optimizers
from test_hostile_tricks import load, saved, sequential, with_layer

from mlflow_ckpt import allowance
from mlflow_ckpt.errors import ModelNotLoadable

pytestmark = pytest.mark.pure

SLACK = 1 << 16


@pytest.fixture
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowance, "_SLACK", SLACK)


@keras.saving.register_keras_serializable("budget")
class Registered(layers.Layer):
    def call(self, x: Any) -> Any:
        return x


@keras.saving.register_keras_serializable("budget")
class OwnMeanIoU(keras.metrics.MeanIoU):
    pass


def double(x: Any) -> Any:
    return x * 2


def edited(parts: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    text = json.dumps(json.loads(parts["config.json"]))
    assert old in text
    return {**parts, "config.json": text.replace(old, new).encode()}


# --- variables ------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: "adam", id="adam"),
        pytest.param(lambda: optimizers.LossScaleOptimizer(optimizers.Adam()), id="loss-scale"),
        pytest.param(
            lambda: optimizers.Adam(amsgrad=True, use_ema=True, gradient_accumulation_steps=2),
            id="five-for-each-weight",
        ),
    ],
)
@pytest.mark.usefixtures("little_slack")
def test_a_compiled_model_that_was_never_trained_is_as_large_as_its_optimizer_makes_it(
    optimizer: Any, tmp_path: Path
) -> None:
    model = sequential(layers.Dense(50_000))
    model.compile(optimizer(), "mse")
    assert load(saved(model, tmp_path), tmp_path).optimizer.built


@pytest.mark.usefixtures("little_slack")
def test_metrics_larger_than_the_file_can_be_left_out_or_allowed(tmp_path: Path) -> None:
    model = sequential()
    model.compile("sgd", "mse", metrics=[keras.metrics.MeanIoU(300)])
    parts = saved(model, tmp_path)
    with pytest.raises(
        ModelNotLoadable,
        match=r"more memory.*'mean_io_u.*compile=False leaves out its optimizer and metrics; safe_",
    ):
        load(parts, tmp_path)
    assert not load(parts, tmp_path, compile=False).compiled
    assert load(parts, tmp_path, safe_mode=False).optimizer
    parts = with_layer(tmp_path, module="keras.layers", class_name="Dense", config={"units": 10**6})
    with pytest.raises(ModelNotLoadable) as caught:
        load(parts, tmp_path)
    assert "compile=False" not in str(caught.value)


# --- what is an object ------------------------------------------------------------


class Holder(layers.Layer):
    """Holds data of the user's, which may look like anything."""

    def __init__(self, held: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.held = held

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "held": self.held}

    def call(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    "held",
    [
        {"class_name": "my dog"},
        {"class_name": "TFSMLayer", "filepath": "/tmp/x"},
        {"class_name": "cat", "config": {"vocabulary": "english", "num_classes": 5_000_000}},
        {"a": [{"class_name": "function", "config": "purr"}]},
        {"class_name": 7, "config": {}},
    ],
)
def test_data_that_looks_like_an_object_is_data(held: Any, tmp_path: Path) -> None:
    parts = saved(sequential(Holder(held)), tmp_path)
    assert load(parts, tmp_path, custom_objects={"Holder": Holder}).layers[0].held == held


NUMBERS = {"class_name": "__numpy__", "config": {"value": ["a"], "dtype": "U300000000"}}


@pytest.mark.parametrize(
    ("held", "text"),
    [
        ({**NUMBERS, "module": "x", "registered_name": "budget>Registered"}, "array of numbers"),
        ({"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}, "/etc/passwd"),
        ({"class_name": "TFSMLayer", "config": {"filepath": "/x"}}, "SavedModel"),
        ({"class_name": "__lambda__", "registered_name": "budget>Registered", "module": "x",
          "config": {"value": ["4wEAAAA=", None, None]}}, "a lambda"),
        ({"class_name": "__typespec__", "config": []}, "'__typespec__'"),
        ({"class_name": "my dog", "module": "zoo", "config": {}}, "import what registers it.$"),
        ({"class_name": "Thread", "module": "builtins", "config": {}}, "'Thread'.*not Keras's own"),
    ],
)  # fmt: skip
def test_whatever_keras_would_make_is_looked_at_in_data_too(
    held: Any, text: str, tmp_path: Path
) -> None:
    parts = saved(sequential(Holder(held)), tmp_path)
    with pytest.raises(ModelNotLoadable, match=text):
        load(parts, tmp_path, custom_objects={"Holder": Holder})


def test_the_layers_of_keras_applications_are_keras_own(tmp_path: Path) -> None:
    from keras.src.applications.convnext import LayerScale, StochasticDepth

    parts = saved(sequential(LayerScale(1e-6, 4), StochasticDepth(0.1)), tmp_path)
    assert load(parts, tmp_path).built
    with pytest.raises(ModelNotLoadable, match="'ConvNeXtTiny' of the module"):
        load(edited(parts, '"LayerScale"', '"ConvNeXtTiny"'), tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: layers.Lambda(double), id="lambda"),
        pytest.param(lambda: layers.Dense(4, activation=double), id="activation"),
    ],
)
def test_a_function_that_was_not_given_is_named(make: Any, tmp_path: Path) -> None:
    parts = saved(sequential(make()), tmp_path)
    with pytest.raises(
        ModelNotLoadable, match=r"names 'double', which.*custom_objects=\{'double': double\}"
    ):
        load(parts, tmp_path)
    for name in ("double", "zoo>double"):
        assert load(parts, tmp_path, custom_objects={name: double}).built


def test_a_loss_that_was_not_given_does_not_matter_without_compile(tmp_path: Path) -> None:
    model = sequential()
    model.compile("sgd", loss=double)
    parts = saved(model, tmp_path)
    with pytest.raises(ModelNotLoadable, match="names 'double'"):
        load(parts, tmp_path)
    assert load(parts, tmp_path, compile=False).built


def test_the_reason_of_a_failure_within_a_model_is_told(tmp_path: Path) -> None:
    parts = with_layer(
        tmp_path, module="keras.layers", class_name="Dense", config={"units": 2, "colour": "red"}
    )
    with pytest.raises(ModelNotLoadable, match="colour") as caught:
        load(parts, tmp_path)
    assert "safe_mode" not in str(caught.value)


def test_a_limit_that_safe_mode_does_not_lift_says_nothing_of_it(tmp_path: Path) -> None:
    parts = {**saved(sequential(), tmp_path), "config.json": b"[" * 300 + b"]" * 300}
    with pytest.raises(ModelNotLoadable, match=r"levels.*Take another checkpoint\.") as caught:
        load(parts, tmp_path, safe_mode=False)
    assert "safe_mode" not in str(caught.value)
    assert "custom_objects" not in str(caught.value)


# --- what a config makes Keras do ---------------------------------------------------


def metric(name: str, **config: Any) -> dict[str, Any]:
    module, registered = ("keras.metrics", None)
    if name.startswith("Own"):
        module, registered = "x", f"budget>{name}"
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


@pytest.mark.parametrize(
    "held",
    [
        [metric("AUC", num_thresholds=10**7)],
        [metric("MeanIoU", num_classes=3 * 10**7)],
        [metric("OwnMeanIoU", num_classes=3 * 10**7)],
        [metric("AUC", num_thresholds=400_000)] * 3,
        {"module": "keras.layers", "class_name": "TextVectorization", "config": {"ngrams": 10**9}},
        {"module": "keras.src.layers.convolutional.base_conv", "class_name": "BaseConv",
         "config": {"rank": 10**9, "filters": 1, "kernel_size": 1}},
    ],
)  # fmt: skip
def test_long_lists_are_never_made(held: Any, tmp_path: Path) -> None:
    parts = saved(sequential(Holder(held)), tmp_path)
    with pytest.raises(
        ModelNotLoadable, match="at most 1000000 for num_thresholds, .*compile=False.*safe_mode=Fa"
    ):
        load(parts, tmp_path, custom_objects={"Holder": Holder})


def unstacked(axis: int) -> keras.Model:
    x = keras.Input((axis,))
    return keras.Model(x, layers.Dense(2)(keras.ops.stack(keras.ops.unstack(x, axis=1)[:2], 1)))


def nested(depth: int) -> keras.Model:
    """A model that calls one twice that calls one twice, and so on."""
    model: Any = layers.Activation("relu")
    for _ in range(depth):
        x = keras.Input((None,))
        model = keras.Model(x, model(model(x)))
    x = keras.Input((4,))
    return keras.Model(x, model(x))


def test_a_model_of_few_lines_and_much_work_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = saved(unstacked(4), tmp_path)
    with pytest.raises(ModelNotLoadable, match=r"more work than its file explains.*safe_mode=Fal"):
        load(edited(parts, "[null, 4]", "[null, 1000000]"), tmp_path)
    parts = saved(nested(6), tmp_path)
    assert load(parts, tmp_path).built
    monkeypatch.setattr(allowance, "STEPS", 0)
    monkeypatch.setattr(allowance, "_STEPS_EACH", 2)
    with pytest.raises(ModelNotLoadable, match="more work than its file explains: over"):
        load(parts, tmp_path)
    assert load(parts, tmp_path, safe_mode=False).built


def test_twins_and_long_chains_are_no_such_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = keras.Sequential([keras.Input((4,)), *(layers.Dense(4) for _ in range(20))])
    left, right = keras.Input((4,)), keras.Input((4,))
    twins = keras.Model([left, right], inner(left) + inner(right))
    assert load(saved(twins, tmp_path), tmp_path).built
    assert load(saved(unstacked(5000), tmp_path), tmp_path).built
    monkeypatch.setattr(allowance, "STEPS", 0)
    tried = [Registered() for _ in range(80)]  # Keras builds these anew for each.
    assert load(saved(sequential(*tried), tmp_path), tmp_path).built


def test_a_layer_of_a_graph_describes_and_never_computes(tmp_path: Path) -> None:
    x = keras.Input((4,))
    model = keras.Model(x, keras.ops.broadcast_to(x, (3, 4)))
    parts = saved(model, tmp_path)
    tree = json.loads(parts["config.json"])
    called = tree["config"]["layers"][1]["inbound_nodes"][0]
    tensor = called["args"]
    for args in ([[1.0]], [{"class_name": "__slice__", "config": {
        "start": tensor[0], "stop": 1, "step": 1}}]):  # fmt: skip
        called["args"] = args
        with pytest.raises(ModelNotLoadable, match=r"\(BroadcastTo\) is called on numbers"):
            load({**parts, "config.json": json.dumps(tree).encode()}, tmp_path)


def test_a_function_that_makes_as_many_tensors_as_an_axis_is_long_is_not_tried(
    tmp_path: Path,
) -> None:
    parts = saved(sequential(layers.Lambda(keras.ops.relu)), tmp_path)
    stored = '"module": "{}", "class_name": "function", "config": "{}"'
    parts = edited(parts, stored.format("builtins", "relu"), stored.format("keras.ops", "unstack"))
    with pytest.raises(ModelNotLoadable, match="'unstack'.*safe_mode=False"):
        load(parts, tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\v", "\u2028"], ids=ascii)
def test_the_words_of_a_vocabulary_count(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = layers.StringLookup()
    words.adapt(["a", "b"])
    model = keras.Sequential([keras.Input((1,), dtype="string"), words, layers.Embedding(8, 2)])
    parts = saved(model, tmp_path)
    [name] = [each for each in parts if each.startswith("assets/")]
    parts[name] = end.join(f"w{i}" for i in range(5)).encode()
    assert len(load(parts, tmp_path).layers[0].get_vocabulary()) == 6
    monkeypatch.setattr(allowance, "_LINES", 0)
    monkeypatch.setattr(allowance, "_LINE", len(parts["model.weights.h5"]) // 4)
    with pytest.raises(ModelNotLoadable, match=r"at most 4 words.*Received: 5\. safe_mode=False"):
        load(parts, tmp_path)
    assert load(parts, tmp_path, safe_mode=False).built
