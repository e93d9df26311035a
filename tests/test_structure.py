"""A model that changed between two captures: the second file is again what Keras writes.

Each change happens after a capture and before it is written, so that the first file must
not show it; the second capture, of the same capturer, must.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from comparing import BORROWED, COPIED, SideBySide, assert_digested, members
from keras import layers
from zoo import ZOO, SavesItself, Specimen, dense, inputs, ready, scramble

from mlflow_ckpt import snapshot
from mlflow_ckpt.formats import CONFIG, MODEL
from mlflow_ckpt.snapshot import Capturer, Strategy
from mlflow_ckpt.template import Template

pytestmark = pytest.mark.pure


@pytest.fixture(autouse=True)
def leave_no_models() -> Iterator[None]:
    yield
    keras.utils.clear_session(free_memory=False)


optimizers, losses = keras.optimizers, keras.losses
Change = Callable[[Specimen], object]
CHANGES: list[Any] = []


def changes(name: str) -> Callable[[Change], Change]:
    """Enter what happens to a model of this kind between its two captures."""

    def enter(change: Change) -> Change:
        label = change.__name__.replace("_", "-")
        CHANGES.append(pytest.param(name, change, id=label))
        return change

    return enter


@changes("sequential")
def a_layer_added(s: Specimen) -> None:
    s.model.add(layers.Dense(2))


@changes("sequential")
def a_layer_added_and_compiled(s: Specimen) -> None:
    s.model.add(layers.Dense(3))
    ready(s.model, s.x).train()


@changes("sequential")
def a_layer_replaced_by_its_like(s: Specimen) -> None:
    s.model.pop()
    s.model.add(layers.Dense(3))


@changes("subclassed-with-containers")
def a_layer_of_a_list_replaced(s: Specimen) -> None:
    s.model.deep[0][0] = layers.Dense(5)
    s.model(s.x)


@changes("sequential")
def trainable_flipped(s: Specimen) -> None:
    s.model.layers[0].trainable = False
    ready(s.model, s.x).train()


@changes("nested")
def trainable_flipped_deep_inside_and_not_compiled(s: Specimen) -> None:
    s.model.get_layer("middle").layers[1].layers[0].trainable = False


@changes("sequential")
def another_optimizer(s: Specimen) -> None:
    ready(s.model, s.x, optimizers.SGD(momentum=0.9)).train()


@changes("sequential")
def another_learning_rate(s: Specimen) -> None:
    ready(s.model, s.x, optimizers.Adam(0.5)).train()


@changes("sequential")
def another_loss(s: Specimen) -> None:
    s.model.compile("adam", losses.Huber(), run_eagerly=True)
    s.train()


@changes("sequential")
def another_loss_and_the_same_optimizer(s: Specimen) -> None:
    s.model.compile(s.model.optimizer, "mae", run_eagerly=True)


@changes("sequential")
def other_metrics(s: Specimen) -> None:
    s.model.compile("adam", "mse", metrics=[keras.metrics.AUC(num_thresholds=5)], run_eagerly=True)
    s.model.train_on_batch(s.x, (s.y > 0.5).astype("float32"))


@changes("sequential")
def learning_rate_assigned(s: Specimen) -> None:
    s.model.optimizer.learning_rate = 0.125


@changes("mixed-precision")
def learning_rate_of_an_inner_optimizer_assigned(s: Specimen) -> None:
    s.model.optimizer.inner_optimizer.learning_rate = 0.125


@changes("two-optimizers")
def learning_rate_of_one_of_two_optimizers_assigned(s: Specimen) -> None:
    s.model.d_optimizer.learning_rate = 0.125


@changes("sequential")
def a_schedule_in_place_of_a_learning_rate(s: Specimen) -> None:
    schedule = optimizers.schedules.ExponentialDecay(0.5, 3, 0.5)
    ready(s.model, s.x, optimizers.Adam(schedule)).train()


@changes("accumulated-gradients-on-a-schedule")
def a_schedule_changed_in_place(s: Specimen) -> None:
    s.model.optimizer._learning_rate.decay_steps = 77


@changes("sequential")
def an_argument_of_the_optimizer(s: Specimen) -> None:
    s.model.optimizer.beta_1 = 0.75


@changes("never-trained")
def an_optimizer_built_later(s: Specimen) -> None:
    s.model.train_on_batch(s.x, inputs(3))


@changes("uncompiled")
def compiled_for_the_first_time(s: Specimen) -> None:
    ready(s.model, s.x).train()


@changes("sequential")
def lora_enabled(s: Specimen) -> None:
    s.model.layers[0].enable_lora(2)
    ready(s.model, s.x).train()


@changes("sequential")
def quantized(s: Specimen) -> None:
    for layer in (s.model.layers[0], s.model.layers[-1]):
        layer.quantize("int8")
    ready(s.model, s.x).train()


@changes("bfloat16")
def another_dtype_policy(s: Specimen) -> None:
    s.model.layers[0].dtype_policy = keras.DTypePolicy("mixed_bfloat16")


@changes("sequential")
def a_layer_renamed(s: Specimen) -> None:
    s.model.layers[0].name = "renamed"


@changes("sequential")
def arguments_of_layers(s: Specimen) -> None:
    s.model.layers[0].activation = keras.activations.tanh
    s.model.layers[1].rate = 0.5
    s.model.layers[2].kernel_constraint = keras.constraints.MaxNorm(2.0)


@changes("regularized")
def a_regularizer_changed_in_place(s: Specimen) -> None:
    s.model.layers[0].kernel_regularizer.l2 = 0.5


@changes("regularized")
def a_loss_changed_in_place(s: Specimen) -> None:
    s.model.loss.reduction = "sum"


@changes("regularized")
def a_regularizer_at_the_address_of_the_one_before(s: Specimen) -> None:
    replace_in_place(s.model.layers[0], "kernel_regularizer", lambda: keras.regularizers.L2(0.5))


@changes("rescaled")
def a_list_changed_in_place(s: Specimen) -> None:
    s.model.layers[0].scale[1] = 9.0


@changes("two-losses")
def a_loss_of_a_list_changed_in_place(s: Specimen) -> None:
    s.model.loss[1].reduction = "sum"


@changes("layer-that-saves-itself")
def a_layer_that_saves_other_values_and_assets(s: Specimen) -> None:
    layer = s.model.layers[1]
    assert isinstance(layer, SavesItself)
    layer.saved, layer.note = 3, "öther"


@changes("layer-that-saves-itself")
def a_layer_that_saves_an_array_of_another_size(s: Specimen) -> None:
    s.model.layers[1].history.extend([0.5, 0.25])


@changes("layer-that-saves-itself")
def a_layer_that_saves_one_more_array(s: Specimen) -> None:
    s.model.layers[1].extra = {"more": np.arange(3.0)}


@changes("several-optimizers")
def learning_rate_of_a_part_of_the_model(s: Specimen) -> None:
    s.model.optimizer.optimizers[0].learning_rate = 0.125


@changes("custom-training-objects")
def attributes_of_a_loss_a_metric_and_an_optimizer_of_ones_own(s: Specimen) -> None:
    s.model.loss.power = 3.0
    s.model.optimizer.settings["pull"] = 0.5


@changes("configured")
def an_attribute_in_the_config_of_a_custom_layer(s: Specimen) -> None:
    s.model.layers[0].options["gain"] = 3.0


@changes("string-lookup")
def another_vocabulary(s: Specimen) -> None:
    lookup = next(la for la in s.model.layers if isinstance(la, layers.StringLookup))
    lookup.adapt(np.array(["ox", "yak", "zebu", "zebra"]))


@changes("discretization")
def other_bins(s: Specimen) -> None:
    s.model.layers[0].adapt(inputs(1, seed=8) * 5)


@changes("normalization")
def other_statistics(s: Specimen) -> None:
    s.model.layers[0].adapt(inputs(6, seed=8) * 5)


def replace_in_place(owner: Any, attribute: str, make: Callable[[], Any]) -> None:
    """Replace an attribute's object by one at the same address, where memory happens to allow."""
    address = id(getattr(owner, attribute))
    setattr(owner, attribute, None)
    made = [make()]
    while id(made[-1]) != address and len(made) < 100:
        made.append(make())
    setattr(owner, attribute, made[-1])


@keras.saving.register_keras_serializable("structure")
class Configured(layers.Dense):
    """Its config holds a container that may change in place."""

    def __init__(self, units: int, options: Any = None, **kwargs: Any) -> None:
        super().__init__(units, **kwargs)
        self.options = dict(options or {"gain": 2.0})

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "options": dict(self.options)}


def regularized() -> Specimen:
    layer = layers.Dense(3, kernel_regularizer=keras.regularizers.L2(0.25))
    specimen = ready(keras.Sequential([keras.Input((6,)), layer]), inputs(6))
    specimen.model.compile("adam", losses.Huber(), run_eagerly=True)
    return specimen


def configured() -> Specimen:
    return ready(keras.Sequential([keras.Input((6,)), Configured(3)]), inputs(6))


def rescaled() -> Specimen:
    scale = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    return ready(
        keras.Sequential([keras.Input((6,)), layers.Rescaling(scale), layers.Dense(3)]), inputs(6)
    )


def two_losses() -> Specimen:
    source = keras.Input((6,))
    model = keras.Model(source, [layers.Dense(3)(source), layers.Dense(2)(source)])
    model.compile("adam", [losses.Huber(), losses.LogCosh()], run_eagerly=True)
    return Specimen(model, inputs(6), [inputs(3), inputs(2)])


STARTS = {
    **ZOO,
    "regularized": regularized,
    "configured": configured,
    "rescaled": rescaled,
    "two-losses": two_losses,
}


@pytest.mark.parametrize(
    "strategy", [BORROWED, pytest.param(COPIED, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_after_a_change_they_are_still_those_that_keras_writes(
    name: str, change: Change, strategy: Strategy, tmp_path: Path
) -> None:
    specimen = STARTS[name]()
    specimen.train()
    both = SideBySide(specimen.model, tmp_path, strategy)
    both.capture()
    change(specimen)
    both.check()
    both.capture()
    scramble(specimen.model, 5)
    both.check()
    before, after = (members(tmp_path / f"theirs-{n}" / MODEL) for n in (1, 2))
    for found in (before, after):
        found.pop("metadata.json")
    assert before != after, "the change shows in no file, so this tests nothing"


def test_every_compile_shows_however_often_memory_is_used_again(tmp_path: Path) -> None:
    """Objects of a `compile` are freed by the next one, which may put its own in their place."""
    specimen = dense()
    capturer = Capturer(specimen.model, weights_only=True, strategy=BORROWED)
    for delta in range(1, 15):
        rate = optimizers.schedules.ExponentialDecay(0.5, delta, 0.5)
        specimen.model.compile(optimizers.SGD(rate), losses.Huber(name=f"h{delta}"))
        assert_digested(capturer.capture(), tmp_path / str(delta))
        config = json.loads((tmp_path / str(delta) / CONFIG).read_bytes())["compile_config"]
        assert config["loss"]["config"]["name"] == f"h{delta}"
        assert config["optimizer"]["config"]["learning_rate"]["config"]["decay_steps"] == delta


class CaptureAlways(keras.callbacks.Callback):
    """Captures at the end of every batch and epoch."""

    def __init__(self, capturer: Capturer) -> None:
        super().__init__()
        self.capturer = capturer

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.capturer.capture().release()

    on_epoch_end = on_train_batch_end


@pytest.mark.parametrize(
    "name", ["sequential", "batch-normalization", pytest.param("recurrent", marks=pytest.mark.slow)]
)
def test_a_fit_that_changes_no_structure_learns_it_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[Template] = []

    class Counted(Template):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            learnt.append(self)

    monkeypatch.setattr(snapshot, "Template", Counted)
    specimen = ZOO[name]()
    specimen.model.run_eagerly = False
    x, y = specimen.x, specimen.y
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=0, min_delta=1e9)
    always = CaptureAlways(Capturer(specimen.model))
    for _ in range(2):
        specimen.model.fit(
            x, y, epochs=3, verbose=0, validation_data=(x, y), callbacks=[plateau, always]
        )
    assert len(learnt) == 1
    assert keras.ops.convert_to_numpy(specimen.model.optimizer.learning_rate) < 1e-3 / 2**3
