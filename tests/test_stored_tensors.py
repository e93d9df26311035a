"""The tensors of a weights file, read in blocks: their values, names, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from mutations import archived, members
from zoo import ZOO, Specimen, scramble

from mlflow_ckpt import fingerprint, keras_internals
from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.members import CONFIG, MEMBER, MODEL, WEIGHTS
from mlflow_ckpt.stored_tensors import StoredWeights, Tensor, blocks

pytestmark = pytest.mark.pure

QUICK = {
    "subclassed-with-containers", "nested", "recurrent", "attention-and-embedding",
    "batch-normalization", "every-dtype", "layer-that-saves-itself", "mixed-precision",
    "two-optimizers", "bfloat16", "zero-weights", "names-beyond-ascii",
}  # fmt: skip
# What their layers store is no variable of theirs: a kernel with LoRA's product added to it.
MERGED = {"lora", "lora-on-embedding-and-attention", "int8-quantized-with-lora"}
KINDS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ZOO]


@contextmanager
def stored(model: keras.Model, folder: Path, **recorded: Any) -> Iterator[StoredWeights]:
    """A model's own `.keras` file, open."""
    path = folder / "model.keras"
    model.save(path)
    facts = {**fingerprint.describe(model), **recorded}
    with path.open("rb") as file, StoredWeights({MODEL: file}, facts) as weights:
        yield weights


def trained(name: str) -> Specimen:
    """A specimen whose every variable has a value of its own."""
    specimen = ZOO[name]()
    specimen.train()
    scramble(specimen.model)
    return specimen


def value(weights: StoredWeights, tensor: Tensor, count: int = 7) -> np.ndarray[Any, Any]:
    parts = list(blocks(weights.file, tensor, count))
    whole = np.concatenate(parts) if parts else np.zeros(0, tensor.raw)
    return whole.reshape(tensor.shape)


def same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and one.tobytes() == other.tobytes()


# --- every kind of model ------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_has_the_name_of_the_variable_whose_value_it_has(
    kind: str, tmp_path: Path
) -> None:
    model = trained(kind).model
    with stored(model, tmp_path) as weights:
        known = {v.path: v for v in model.weights}
        named = 0
        for tensor in weights.tensors:
            if tensor.name.order < len(model.weights):
                variable = model.weights[tensor.name.order]
                assert known[variable.path] is variable
                assert variable.path.endswith(str(tensor.name))
                assert kind in MERGED or same(value(weights, tensor), keras_value(variable))
                named += 1
        assert named >= min(len(model.weights), 2)
        assert [t.name.order for t in weights.tensors] == sorted(
            t.name.order for t in weights.tensors
        )


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_has_each_of_its_variables_once(kind: str, tmp_path: Path) -> None:
    model = trained(kind).model
    with stored(model, tmp_path) as weights:
        for attribute, optimizer in fingerprint.optimizers_of(model):
            tensors = weights.optimizers.get(attribute, [])
            assert len(tensors) == len(optimizer.variables)
            for tensor, variable in zip(tensors, optimizer.variables, strict=True):
                assert same(value(weights, tensor), keras_value(variable))
                # `adam/dense_kernel_momentum` is `momentum` of `dense/kernel`.
                words = [tensor.name.variable.replace("/", "_"), tensor.name.layer]
                assert variable.path.endswith("_".join(word for word in words if word))


def keras_value(variable: Any) -> np.ndarray[Any, Any]:
    return np.asarray(keras.ops.convert_to_numpy(variable))


@pytest.mark.parametrize("kind", KINDS)
def test_another_model_of_the_same_code_has_the_same_keys(kind: str, tmp_path: Path) -> None:
    """Though Keras numbers layers through the process."""
    keys = []
    for _ in range(2):
        with stored(trained(kind).model, tmp_path) as weights:
            rows = {"": weights.tensors, **weights.optimizers}
            keys.append([(of, t.name.key) for of, tensors in rows.items() for t in tensors])
    assert keys[0] == keys[1]
    # An optimizer around others has their iterations and learning rates beside its own.
    doubles = {key for key in keys[0] if keys[0].count(key) > 1}
    assert {kind for _, (kind, _) in doubles} <= {"iteration", "learning_rate"}


# --- names --------------------------------------------------------------------


def names(model: keras.Model, folder: Path, **recorded: Any) -> list[str]:
    with stored(model, folder, **recorded) as weights:
        return [str(tensor.name) for tensor in weights.tensors]


def test_names_are_those_of_the_layers_in_the_order_of_the_model(tmp_path: Path) -> None:
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="small")], name="inner")
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dense(2, name="a_head")])
    assert names(model, tmp_path) == [
        "inner/small/kernel",
        "inner/small/bias",
        "a_head/kernel",
        "a_head/bias",
    ]


def test_what_a_layer_stores_in_its_own_way_has_its_own_key(tmp_path: Path) -> None:
    found = names(ZOO["layer-that-saves-itself"]().model, tmp_path)
    own = {name.partition("/")[2] for name in found if name.startswith("saves_itself")}
    assert {"kernel", "deep/number", "flag"} <= own


def test_a_file_without_a_fingerprint_has_places_for_names(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="small")])
    model.compile("adam")
    with stored(model, tmp_path, variables=[], optimizers=[]) as weights:
        assert [str(tensor.name) for tensor in weights.tensors] == ["small/0", "small/1"]
        assert {tensor.name.layer for tensor in weights.optimizers["optimizer"]} == {
            "vars/0",
            "vars/1",
        }


# --- blocks -------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8, 100])
def test_blocks_are_as_long_as_is_asked_for(count: int, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    with stored(model, tmp_path) as weights:
        kernel = weights.tensors[0]
        sizes = [block.size for block in blocks(weights.file, kernel, count)]
    assert sizes == [count] * (12 // count) + ([12 % count] if 12 % count else [])


def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    with stored(model, tmp_path) as weights:
        kernel = weights.tensors[0]
        with pytest.raises(ModelNotLoadable, match="became shorter while '/layers/dense/vars/0'"):
            list(blocks(io.BytesIO(bytes(kernel.start + 5)), kernel))


def test_what_an_optimizer_has_once_is_a_number(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.Adam(0.001), "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 4)), verbose=0)
    with stored(model, tmp_path) as weights:
        found = {t.name.layer: weights.number(t) for t in weights.optimizers["optimizer"]}
    assert (found["iteration"], found["learning_rate"], found["momentum"]) == (1, 0.001, None)


# --- files --------------------------------------------------------------------


def test_weights_alone_have_the_config_beside_them(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.save_weights(tmp_path / "m.weights.h5")
    config = json.dumps(keras.saving.serialize_keras_object(model)).encode()
    with (tmp_path / "m.weights.h5").open("rb") as file:
        with StoredWeights({WEIGHTS: file, CONFIG: io.BytesIO(config)}, {}) as weights:
            assert weights.config == json.loads(config)
            assert (weights.is_whole, weights.assets) == (False, [])
        with StoredWeights({WEIGHTS: file}, {}) as weights:
            assert weights.config is None


@pytest.mark.parametrize(
    ("config", "what"),
    [
        pytest.param(b"{", "Expecting property name", id="no-json"),
        pytest.param(b"[]", "Received: list", id="a-list"),
        pytest.param(b"[" * 300 + b"]" * 300, "more than 200 levels", id="deep"),
    ],
)
def test_a_config_that_is_none_is_refused(config: bytes, what: str, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.save(tmp_path / "m.keras")
    parts = {**members((tmp_path / "m.keras").read_bytes()), "config.json": config}
    (tmp_path / "m.keras").write_bytes(archived([*parts.items()]))
    with (tmp_path / "m.keras").open("rb") as file, pytest.raises(ModelNotLoadable, match=what):
        StoredWeights({MODEL: file}, {})


def test_nothing_leads_out_of_the_file(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    model.save(tmp_path / "m.keras")
    parts = members((tmp_path / "m.keras").read_bytes())
    content = io.BytesIO(parts[MEMBER])
    with h5py.File(content, "a") as h5:
        h5["layers/dense/vars/2"] = h5py.ExternalLink("/etc/passwd", "/")
    parts[MEMBER] = content.getvalue()
    (tmp_path / "m.keras").write_bytes(archived([*parts.items()]))
    with (
        (tmp_path / "m.keras").open("rb") as file,
        pytest.raises(ModelNotLoadable, match="links of a newer kind"),
    ):
        StoredWeights({MODEL: file}, {})


def test_assets_are_there(tmp_path: Path) -> None:
    with stored(ZOO["string-lookup"]().model, tmp_path) as weights:
        assert weights.assets == ["assets/layers/string_lookup/vocabulary.txt"]
        with zipfile.ZipFile(tmp_path / "model.keras") as archive:
            for name in weights.assets:
                assert weights.asset(name) == archive.read(name)


def test_neither_keras_nor_tensorflow_is_needed() -> None:
    code = (
        "import sys, mlflow_ckpt.differing, mlflow_ckpt.diff_report\n"
        "heavy = {'keras', 'tensorflow'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_keras_still_notes_names_beside_variables(tmp_path: Path) -> None:
    """Without them layers are called by their places; this fails when Keras stops."""
    assert keras_internals.missing_seams() is None
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="mine")])
    model.save_weights(tmp_path / "m.weights.h5")
    with h5py.File(tmp_path / "m.weights.h5") as h5:
        assert h5["layers/dense/vars"].attrs["name"] == "mine"
