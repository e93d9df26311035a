"""The engine's files against Keras's own of the same state: equal in everything but the date.

Each test captures, lets Keras save the same state, changes every variable, and only then
writes: a file that is equal to Keras's was also isolated from what came after.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, get_args

import h5py
import keras
import numpy as np
import pytest
from builders import NoConfig
from comparing import (
    BORROWED,
    COPIED,
    SideBySide,
    assert_digested,
    assert_same_archive,
    assert_same_tree,
)
from keras import layers
from zoo import ZOO, Containers, dense, inputs, predictions, ready, scramble, values_of

from mlflow_ckpt.formats import MODEL, WEIGHTS
from mlflow_ckpt.snapshot import Capturer, Strategy

pytestmark = [
    pytest.mark.pure,
    # Keras's own loader, on a model whose optimizer it cannot rebuild (LoRA, never trained).
    pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer"),
]

slow = pytest.mark.slow
# Large, or a second one of a kind whose first is quick.
SLOW = {
    "mobilenet",
    "efficientnet",
    "stateful-recurrent",
    "lora-on-embedding-and-attention",
    "int4-quantized",
    "int8-quantized-with-lora",
}
# What copying may get wrong: odd dtypes, values that a layer computes, several optimizers.
COPIED_QUICKLY = {
    "every-dtype",
    "larger-than-a-chunk",
    "layer-that-saves-itself",
    "lora",
    "scalar-only",
    "zero-weights",
    "two-optimizers",
}
# Where Keras's loader does more than to assign what it finds.
LOADED_QUICKLY = {
    "subclassed-with-containers",
    "string-lookup",
    "layer-that-saves-itself",
    "lora",
    "mixed-precision",
    "every-dtype",
    "never-trained",
    "two-optimizers",
}


def kinds(quick: Set[str]) -> list[Any]:
    """Every kind; those that are not `quick` only in the full matrix."""
    return [pytest.param(name, marks=[] if name in quick else slow, id=name) for name in ZOO]


@pytest.fixture(autouse=True)
def leave_no_models() -> Iterator[None]:
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.mark.parametrize("name", kinds(set(ZOO) - SLOW))
def test_the_files_are_those_that_keras_writes(name: str, tmp_path: Path) -> None:
    compare_twice(name, BORROWED, tmp_path)


@pytest.mark.parametrize("name", kinds(COPIED_QUICKLY))
def test_copied_states_make_the_same_files(name: str, tmp_path: Path) -> None:
    compare_twice(name, COPIED, tmp_path)


def compare_twice(name: str, strategy: Strategy, tmp_path: Path) -> None:
    specimen = ZOO[name]()
    specimen.train()
    scramble(specimen.model, 1)
    both = SideBySide(specimen.model, tmp_path, strategy)
    for again in range(2):  # The second time, the templates are there already.
        both.capture()
        specimen.train()
        scramble(specimen.model, 2 + again)
        both.check()


@pytest.mark.parametrize("name", kinds(LOADED_QUICKLY))
def test_what_loads_from_them_is_what_loads_from_kerass(name: str, tmp_path: Path) -> None:
    specimen = ZOO[name]()
    specimen.train()
    scramble(specimen.model, 1)
    both = SideBySide(specimen.model, tmp_path, BORROWED)
    both.capture()
    both.check()
    folders = (both.theirs, both.ours)
    theirs, ours = (keras.saving.load_model(d / MODEL) for d in folders)
    assert values_of(ours) == values_of(theirs)
    outputs = [[o.tobytes() for o in predictions(m, specimen.x)] for m in (ours, theirs)]
    assert outputs[0] == outputs[1]
    for file in (MODEL, WEIGHTS):
        loaded = []
        for folder in folders:
            scramble(specimen.model, 9)
            specimen.model.load_weights(folder / file)
            loaded.append(values_of(specimen.model))
        assert loaded[0] == loaded[1]


@keras.saving.register_keras_serializable("equality")
class TakesBack(layers.Dense):
    """Stores something and deletes it again: HDF5 then gives its place to the next one."""

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        del store["0"]
        store["kernel"] = self.kernel


@pytest.mark.parametrize("weights_only", [False, True])
def test_where_nothing_has_a_place_of_its_own_keras_writes_and_everybody_can_see_it(
    weights_only: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specimen = ready(keras.Sequential([keras.Input((6,)), TakesBack(6)]), inputs(6))
    specimen.train()
    capturer = Capturer(specimen.model, weights_only=weights_only)
    snapshot = capturer.capture()
    assert (snapshot.strategy, snapshot.valid_while_training) == ("keras", False)
    assert (capturer.strategy, capturer.capture().strategy) == ("keras", "keras")
    assert capturer.reason is not None
    assert capsys.readouterr().out.count(capturer.reason) == 1, "said once"
    snapshot.write(tmp_path)
    if weights_only:
        specimen.model.save_weights(tmp_path / "theirs.weights.h5")
        assert_same_tree(
            *(p.read_bytes() for p in (tmp_path / WEIGHTS, tmp_path / "theirs.weights.h5"))
        )
    else:
        specimen.model.save(tmp_path / "theirs.keras")
        assert_same_archive(tmp_path / MODEL, tmp_path / "theirs.keras")


def test_values_that_are_not_finite_keep_their_bits(tmp_path: Path) -> None:
    specimen = dense()
    bits = np.array([0x7FC12345, 0xFF800000, 0x80000000], dtype=np.uint32).view(np.float32)
    specimen.model.layers[-1].bias.assign(bits)
    both = SideBySide(specimen.model, tmp_path, BORROWED)
    both.capture()
    both.check()
    with h5py.File(both.ours / WEIGHTS) as file:
        assert file["layers/dense_1/vars/1"][()].tobytes() == bits.tobytes()


def test_a_model_without_a_config_comes_as_weights_alone(tmp_path: Path) -> None:
    model = NoConfig(lambda: 3)
    model(inputs(6))
    model.compile("adam", "mse")
    model.train_on_batch(inputs(6), inputs(3))
    assert_digested(Capturer(model, weights_only=True, strategy=BORROWED).capture(), tmp_path)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["model.weights.h5"]
    model.save_weights(tmp_path / "theirs.weights.h5")
    ours, theirs = (tmp_path / WEIGHTS, tmp_path / "theirs.weights.h5")
    assert_same_tree(ours.read_bytes(), theirs.read_bytes())


def test_every_strategy_is_compared_or_is_keras_itself() -> None:
    assert set(get_args(Strategy)) == {BORROWED, COPIED, "keras"}


def test_the_comparison_sees_a_difference(tmp_path: Path) -> None:
    specimen = ZOO["subclassed-with-containers"]()
    assert isinstance(specimen.model, Containers)
    paths = [tmp_path / f"{n}.keras" for n in range(2)]
    for path in paths:
        specimen.model.save(path)
        specimen.model.head.bias.assign([0.0, 1e-45])
    with pytest.raises(AssertionError, match="/head/vars/1"):
        assert_same_archive(*paths)
