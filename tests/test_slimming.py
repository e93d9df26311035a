"""Slim model files: the same tensors, bit by bit, the same predictions, and nothing of training."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from zoo import ZOO, Specimen, inputs, predictions, ready, registered, scramble

from mlflow_ckpt import fingerprint, slimming
from mlflow_ckpt.errors import IntegrityError, ModelNotLoadable
from mlflow_ckpt.formats import MEMBER, MODEL
from mlflow_ckpt.slimming import Slimmed, slim

pytestmark = pytest.mark.pure

# Each in a way of its own: of the others, one is as good as another.
QUICK = {
    "sequential", "functional-with-shared-layers", "subclassed-with-containers", "nested",
    "tied-weights", "zero-weights", "uncompiled", "never-trained", "names-beyond-ascii",
    "larger-than-a-chunk", "every-dtype", "string-lookup", "text-vectorization",
    "layer-that-saves-itself", "lora", "int8-quantized", "mixed-precision", "bfloat16",
    "two-optimizers", "several-optimizers", "custom-training-objects",
}  # fmt: skip
KINDS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in ZOO]


def slimmed(model: keras.Model, folder: Path) -> tuple[Slimmed, Path, Path]:
    """Save a model and slim that; what was reported, the file of it, and the slim one."""
    whole = folder / "whole.keras"
    model.save(whole)
    with whole.open("rb") as file:
        found = slim(file, folder / "slim", fingerprint.describe(model))
    return found, whole, folder / "slim" / MODEL


def datasets(path: Path) -> dict[str, tuple[Any, ...]]:
    """Shape, type, attributes and bytes of every dataset in a `.keras` file."""
    found: dict[str, tuple[Any, ...]] = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            value = np.asarray(item)
            found[name] = (item.shape, item.dtype, dict(item.attrs), value.tobytes())

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read(MEMBER))) as file:
        file.visititems(keep)
    return found


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def load(path: Path, **options: Any) -> keras.Model:
    """As anybody does, with plain Keras; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return keras.saving.load_model(path, **options)


def config(path: Path) -> dict[str, Any]:
    return dict(json.loads(members(path)["config.json"]))


def trained(name: str) -> Specimen:
    specimen = ZOO[name]()
    specimen.train(1)
    for optimizer in vars(specimen.model).values():
        is_one = isinstance(optimizer, keras.optimizers.Optimizer)
        if is_one and not optimizer.built and name != "never-trained":
            optimizer.build(specimen.model.trainable_variables)
    scramble(specimen.model)
    return specimen


# --- every kind of model ------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_slim_model_has_the_same_tensors_and_predicts_the_same(name: str, tmp_path: Path) -> None:
    specimen = trained(name)
    found, whole, path = slimmed(specimen.model, tmp_path)
    before, after = datasets(whole), datasets(path)
    optimizers = tuple(
        f"{attribute}/" for attribute, _ in fingerprint.optimizers_of(specimen.model)
    )
    assert after == {key: v for key, v in before.items() if not key.startswith(optimizers)}
    assert not optimizers or any(key.startswith(optimizers) for key in before)
    assert found == Slimmed(before=whole.stat().st_size, after=path.stat().st_size)
    assert (found.after < found.before) == bool(optimizers)
    others = {key: v for key, v in members(path).items() if key not in (MEMBER, "config.json")}
    assert others == {k: v for k, v in members(whole).items() if k not in (MEMBER, "config.json")}
    assert {**config(whole), "compile_config": None} == {**config(path), "compile_config": None}
    served = load(path)
    assert not served.compiled
    expected = predictions(load(whole, compile=False), specimen.x)
    for mine, theirs in zip(predictions(served, specimen.x), expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_model_that_was_never_compiled_is_the_same_file(tmp_path: Path) -> None:
    _, whole, path = slimmed(ZOO["uncompiled"]().model, tmp_path)
    assert path.read_bytes() == whole.read_bytes()


class Mine(keras.optimizers.SGD):
    """An optimizer that a server does not have."""


class Own(keras.losses.Loss):
    def call(self, y: Any, predicted: Any) -> Any:
        return keras.ops.abs(y - predicted)


def test_no_loss_metric_or_optimizer_of_the_users_is_needed(tmp_path: Path) -> None:
    specimen = ZOO["sequential"]()
    specimen.model.compile(Mine(), Own(), metrics=[keras.metrics.MeanAbsoluteError()])
    specimen.train(1)
    _, whole, path = slimmed(specimen.model, tmp_path)
    with pytest.raises(TypeError, match="Mine|Own"):
        load(whole)
    for mine, theirs in zip(predictions(load(path), specimen.x), specimen.predict(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# --- models in models ---------------------------------------------------------


def compiled_part() -> keras.Model:
    """A model that was trained by itself before it became a part of another one."""
    part = keras.Sequential([keras.Input((6,)), layers.Dense(5, activation="relu")], name="part")
    part.compile(keras.optimizers.Adam(name="of_the_part"), "mse", run_eagerly=True)
    part.train_on_batch(inputs(6), inputs(5, seed=1))
    return part


@registered
class Holder(keras.Model):
    """Holds a compiled model in an attribute of its own."""

    def __init__(self, part: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.part = part or compiled_part()
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.part(x))

    def get_config(self) -> dict[str, Any]:
        part = keras.saving.serialize_keras_object(self.part)
        return {**super().get_config(), "part": part}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Holder:
        part = keras.saving.deserialize_keras_object(config.pop("part"))
        return cls(part=part, **config)


def outer(kind: str) -> Specimen:
    part = compiled_part()
    if kind == "functional":
        x = keras.Input((6,))
        return ready(keras.Model(x, layers.Dense(2)(part(x))), inputs(6))
    if kind == "sequential":
        return ready(keras.Sequential([keras.Input((6,)), part, layers.Dense(2)]), inputs(6))
    return ready(Holder(part), inputs(6))


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "not-compiled"])
@pytest.mark.parametrize("kind", ["functional", "sequential", "subclassed"])
def test_the_optimizer_of_a_model_within_goes_too(
    kind: str, is_compiled: bool, tmp_path: Path
) -> None:
    specimen = outer(kind)
    if is_compiled:
        specimen.train(1)
    else:
        specimen.model.optimizer = None
        specimen.model._compile_config, specimen.model.compiled = None, False
    found, whole, path = slimmed(specimen.model, tmp_path)
    gone = datasets(whole).keys() - datasets(path).keys()
    assert any("/optimizer/" in key for key in gone)
    assert all("optimizer/" in key for key in gone)
    assert not any("optimizer" in key for key in datasets(path))
    assert '"of_the_part"' in members(whole)["config.json"].decode()
    assert '"of_the_part"' not in members(path)["config.json"].decode()
    assert found.after < found.before
    for mine, theirs in zip(predictions(load(path), specimen.x), specimen.predict(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_an_optimizer_that_two_models_share_goes_once(tmp_path: Path) -> None:
    part = compiled_part()
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2)(part(x)))
    model.compile(part.optimizer, "mse")
    _, _, path = slimmed(model, tmp_path)
    assert not any("optimizer" in key for key in datasets(path))
    for mine, theirs in zip(
        predictions(load(path), inputs(6)), predictions(model, inputs(6)), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


# --- what looks like an optimizer ---------------------------------------------


@registered
class Optimizer(layers.Layer):
    """A layer of the user's by that name, with a counter first, as an optimizer has."""

    def build(self, shape: Any) -> None:
        self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.kernel = self.add_weight(shape=(shape[-1], 4))

    def call(self, x: Any) -> Any:
        return x @ self.kernel


@registered
class Learned(keras.Model):
    """A model whose `optimizer_of_prompts` and whose layer's `optimizer` are layers."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimizer_of_prompts = Optimizer()
        self.inner = Inner()

    def call(self, x: Any) -> Any:
        return self.inner(self.optimizer_of_prompts(x))


@registered
class Inner(layers.Layer):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.optimizer = Optimizer(name="learned")

    def call(self, x: Any) -> Any:
        return self.optimizer(x)


@pytest.mark.parametrize("kind", ["class", "attribute"])
def test_a_layer_that_is_called_optimizer_stays(kind: str, tmp_path: Path) -> None:
    if kind == "class":
        specimen = ready(keras.Sequential([keras.Input((6,)), Optimizer()]), inputs(6))
    else:
        specimen = ready(Learned(), inputs(6))
    specimen.train(1)
    _, whole, path = slimmed(specimen.model, tmp_path)
    gone = datasets(whole).keys() - datasets(path).keys()
    assert gone
    assert all(key.startswith("optimizer/") for key in gone)
    for mine, theirs in zip(predictions(load(path), specimen.x), specimen.predict(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@registered
class Holding(keras.optimizers.SGD):
    """An optimizer that holds the network: Keras, which goes by name, comes to it here first."""

    network: Any = None


@registered
class HeldNetwork(keras.Model):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network = keras.Sequential([keras.Input((6,)), layers.Dense(2)])

    def compile(self, a_optimizer: Any = None, **options: Any) -> None:
        super().compile(**options)
        self.a_optimizer = a_optimizer or Holding()
        self.a_optimizer.network = self.network

    def get_compile_config(self) -> dict[str, Any]:
        return {"a_optimizer": keras.saving.serialize_keras_object(self.a_optimizer)}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(keras.saving.deserialize_keras_object(config["a_optimizer"]))

    def call(self, x: Any) -> Any:
        return self.network(x)


@pytest.mark.filterwarnings("ignore:Skipping variable loading")
def test_a_file_whose_optimizer_holds_a_layer_stays_as_it_is_and_says_why(tmp_path: Path) -> None:
    model = HeldNetwork()
    model.compile()
    x = inputs(6)
    model(x)
    found, whole, path = slimmed(model, tmp_path)
    assert any(key.startswith("a_optimizer/network/") for key in datasets(whole))
    assert path.read_bytes() == whole.read_bytes()
    assert found.kept == "`model.a_optimizer` stores more than variables of an optimizer"
    assert found.before == found.after
    np.testing.assert_array_equal(
        predictions(keras.saving.load_model(path), x)[0], predictions(model, x)[0]
    )


def test_a_manifest_without_a_fingerprint_is_enough(tmp_path: Path) -> None:
    specimen = trained("sequential")
    specimen.model.save(tmp_path / "whole.keras")
    with (tmp_path / "whole.keras").open("rb") as file:
        slim(file, tmp_path, {})
    assert not any("optimizer" in key for key in datasets(tmp_path / MODEL))


@registered
class Making(keras.Model):
    """Makes an optimizer of its own, which `compile` knows nothing of."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.head = layers.Dense(2)
        self.own_optimizer = keras.optimizers.Adam()

    def call(self, x: Any) -> Any:
        return self.head(x)


def test_an_optimizer_that_the_class_makes_itself_keeps_what_it_begins_with(tmp_path: Path) -> None:
    specimen = ready(Making(), inputs(6))
    specimen.train(2)
    own = specimen.model.own_optimizer
    own.build(specimen.model.trainable_variables)
    own.iterations.assign(5)
    _, whole, path = slimmed(specimen.model, tmp_path)
    assert sum(key.startswith("own_optimizer/") for key in datasets(whole)) > 2
    left = [key for key in datasets(path) if "optimizer" in key]
    assert left == ["own_optimizer/vars/0", "own_optimizer/vars/1"]
    served = load(path)
    assert int(served.own_optimizer.iterations) == 5
    np.testing.assert_array_equal(predictions(served, specimen.x)[0], specimen.predict()[0])


# --- files of others, disks, memory -------------------------------------------


def rewritten(path: Path, change: Any) -> Path:
    """The same archive with another weights file."""
    parts = members(path)
    buffer = io.BytesIO(parts[MEMBER])
    with h5py.File(buffer, "a") as file:
        change(file)
    parts[MEMBER] = buffer.getvalue()
    target = path.with_name("changed.keras")
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return target


HOSTILE = {
    "soft-link": lambda f: f.__setitem__("layers/dense/vars/9", h5py.SoftLink("/elsewhere")),
    "external-link": lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "compressed": lambda f: f.create_dataset("x", data=np.zeros(999), compression="gzip"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_keras_would_not_write_is_refused(name: str, tmp_path: Path) -> None:
    ZOO["sequential"]().model.save(tmp_path / "whole.keras")
    path = rewritten(tmp_path / "whole.keras", HOSTILE[name])
    with path.open("rb") as file, pytest.raises(ModelNotLoadable, match="as Keras writes it"):
        slim(file, tmp_path / "out", {})
    assert not (tmp_path / "out" / MODEL).exists()


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    ZOO["sequential"]().model.save(tmp_path / "whole.keras")
    parts = {**members(tmp_path / "whole.keras"), "config.json": b"[" * 900}
    with zipfile.ZipFile(tmp_path / "bad.keras", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with (
        (tmp_path / "bad.keras").open("rb") as file,
        pytest.raises(ModelNotLoadable, match="Expected a config.json as Keras writes it"),
    ):
        slim(file, tmp_path / "out", {})


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_copy_that_differs_is_no_copy(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = slimming._copy

    def wrong(source: Any, target: Any, dropped: Any) -> None:
        real(source, target, dropped)
        if source.name == "/" and damage == "changed":
            target["layers/dense/vars/0"][0, 0] += 1
        elif source.name == "/" and damage == "missing":
            del target["layers/dense/vars/0"]
        elif source.name == "/":
            target["layers/dense/vars/7"] = np.zeros(3)

    monkeypatch.setattr(slimming, "_copy", wrong)
    with pytest.raises(IntegrityError, match="layers/dense/vars/.* in the slim copy as it is"):
        slimmed(ZOO["sequential"]().model, tmp_path)
    assert not (tmp_path / "slim" / MODEL).exists()


def test_no_tensor_is_held_in_memory(tmp_path: Path) -> None:
    """A file of 48 MiB, of which 32 stay, in a process that may take 24 MiB more."""
    model = keras.Sequential([keras.Input((2048,)), layers.Dense(2048), layers.Dense(2048)])
    model.compile(keras.optimizers.SGD(momentum=0.5), "mse")
    model.layers[1].trainable = False
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "whole.keras")
    code = f"""
import json, resource, sys
from pathlib import Path
from mlflow_ckpt.slimming import slim
lines = Path("/proc/self/status").read_text().splitlines()
used = int(next(line for line in lines if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (24 << 20),) * 2)
with Path({str(tmp_path / "whole.keras")!r}).open("rb") as file:
    found = slim(file, Path({str(tmp_path)!r}), {{}})
print(found.before >> 20, found.after >> 20)
print(sorted({{"keras", "tensorflow", "mlflow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "48 32\n[]\n"
