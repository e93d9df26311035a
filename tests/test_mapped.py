"""The mapped read: equal to Keras's own loader, and closed to files that are not Keras's."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from keras.src import backend
from zoo import ZOO, SavesItself, Specimen, scramble, values_of

from mlflow_ckpt import keras_internals, rehydrate
from mlflow_ckpt.errors import ModelNotLoadable
from mlflow_ckpt.formats import CONFIG, MEMBER, MODEL, WEIGHTS
from mlflow_ckpt.keras_internals import _deferred, _loading
from mlflow_ckpt.mapped import MappedWeights

pytestmark = [
    pytest.mark.pure,
    pytest.mark.filterwarnings("ignore:Skipping variable loading"),
]

SLOW_ONES = {"mobilenet", "efficientnet", "int4-quantized", "int8-quantized-with-lora"}
KINDS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_ONES else []) for name in ZOO]


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let small tensors go the way of large ones; TensorFlow shares no scalar's buffer."""
    monkeypatch.setattr(_loading, "LARGE", 16)
    monkeypatch.setattr(_deferred, "LARGE", 16)


def trained(name: str) -> Specimen:
    """A specimen whose every variable has a value of its own."""
    specimen = ZOO[name]()
    for optimizer in (getattr(specimen.model, "optimizer", None),):
        if optimizer is not None and name != "never-trained":
            optimizer.build(specimen.model.trainable_variables)
    scramble(specimen.model)
    return specimen


def read(path: Path, **options: Any) -> keras.Model:
    """Read a `.keras` file by the mapped way."""
    given = {"custom_objects": None, "compile": True, "safe_mode": True, **options}
    with path.open("rb") as file:
        return rehydrate.read_model({MODEL: file}, source="x", recorded={}, **given)


def member(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(MEMBER)


def dense(units: int = 160) -> keras.Model:
    """A model whose kernel, of 100 KiB at 160 units, counts as large."""
    model = keras.Sequential([keras.Input((units,)), layers.Dense(units)])
    model.compile("adam", "mse")
    return model


# --- the same as Keras --------------------------------------------------------


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("name", KINDS)
def test_a_model_is_the_one_that_keras_loads(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    trained(name).model.save(path)
    keras.utils.set_random_seed(1)
    expected = keras.saving.load_model(path)
    keras.utils.set_random_seed(1)
    assert values_of(read(path)) == values_of(expected)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("name", KINDS)
def test_weights_are_the_ones_that_keras_loads(name: str, tmp_path: Path) -> None:
    old = trained(name).model
    old.save(tmp_path / "m.keras")
    (tmp_path / "m.weights.h5").write_bytes(member(tmp_path / "m.keras"))
    mine, theirs = (ZOO[name]().model for _ in range(2))
    scramble(mine, 5), scramble(theirs, 5)
    skip = [o for o in vars(theirs).values() if isinstance(o, keras.optimizers.Optimizer)]
    keras.saving.load_weights(theirs, tmp_path / "m.weights.h5", objects_to_skip=skip)
    for kind in (MODEL, WEIGHTS):
        scramble(mine, 5)
        with (tmp_path / Path(kind).name.replace("model", "m")).open("rb") as file:
            rehydrate.load_weights(mine, {kind: file}, source="x")
        assert values_of(mine) == values_of(theirs)


def test_large_tensors_are_read_by_the_map_and_never_by_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dense()
    model.save(tmp_path / "m.keras")
    sizes: list[int] = []
    real = h5py.Dataset.__array__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.nbytes)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__array__", counted)
    loaded = read(tmp_path / "m.keras")
    assert sizes
    assert max(sizes) < 1 << 16
    assert values_of(loaded)[:2] == values_of(model)[:2]


def test_weights_with_a_config_beside_them_are_mapped_too(tmp_path: Path) -> None:
    model = dense()
    model.save_weights(tmp_path / "m.weights.h5")
    config = io.BytesIO(json.dumps(keras.saving.serialize_keras_object(model)).encode())
    with (tmp_path / "m.weights.h5").open("rb") as file:
        loaded = rehydrate.read_model(
            {CONFIG: config, WEIGHTS: file},
            custom_objects=None,
            compile=False,
            safe_mode=True,
            source="x",
            recorded={},
        )
    assert values_of(loaded) == values_of(model)[:2]
    assert not loaded.compiled


# --- memory -------------------------------------------------------------------


def test_a_loaded_model_owns_its_memory_and_trains_on(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    old, new = dense(), dense()
    scramble(old)
    old.optimizer.build(old.trainable_variables)
    new.optimizer.build(new.trainable_variables)
    old.save(path)
    with path.open("rb") as file, MappedWeights(file) as weights:
        keras_internals.load_state(new, weights)
        mapping = weights._map
    assert mapping.closed
    path.write_bytes(bytes(path.stat().st_size))
    assert values_of(new)[:2] == values_of(old)[:2]
    x = np.ones((4, 160), np.float32)
    for model in (old, new):
        model.fit(x, x, epochs=2, verbose=0)
    assert values_of(new) == values_of(old)


def test_pages_that_were_let_go_of_come_back(tmp_path: Path) -> None:
    model = dense()
    model.save_weights(tmp_path / "m.weights.h5")
    with (tmp_path / "m.weights.h5").open("rb") as file, MappedWeights(file) as weights:
        [large] = [d for d in datasets(weights.h5) if d.nbytes > 1 << 16]
        weights.forget(large)
        np.testing.assert_array_equal(weights.view(large), model.layers[0].kernel)


def test_a_layer_of_the_users_gets_an_array_that_it_may_keep_and_change(tmp_path: Path) -> None:
    @keras.saving.register_keras_serializable("mapped")
    class Keeps(layers.Layer):
        def build(self, shape: Any) -> None:
            self.table = self.add_weight(shape=(200, 200), name="table")

        def call(self, x: Any) -> Any:
            return x

        def save_own_variables(self, store: Any) -> None:
            store["table"] = np.asarray(self.table)

        def load_own_variables(self, store: Any) -> None:
            self.kept = store["table"]
            self.kept *= 2
            self.table.assign(self.kept)
            self.kept[:] = 0

    model = keras.Sequential([keras.Input((3,)), Keeps()])
    model.save(tmp_path / "m.keras")
    loaded = read(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.get_weights()[0], 2 * model.get_weights()[0])
    assert type(loaded.layers[0].kept) is np.ndarray


# --- initial values -----------------------------------------------------------


def config_of(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return archive.read("config.json").decode()


def test_what_the_file_does_not_cover_gets_its_real_initial_value() -> None:
    keras.utils.set_random_seed(3)
    expected = dense()
    expected.optimizer.build(expected.trainable_variables)
    keras.utils.set_random_seed(3)
    with keras_internals.deferred_values() as deferred:
        model = dense()
        model.optimizer.build(model.trainable_variables)
        assert len(deferred._made) == 3
    assert deferred.settle()
    assert values_of(model) == values_of(expected)


def test_an_assigned_variable_keeps_what_it_was_given() -> None:
    with keras_internals.deferred_values() as deferred:
        model = dense()
    value = np.ones((160, 160), np.float32)
    model.layers[0].kernel.assign(value)
    assert deferred.settle()
    np.testing.assert_array_equal(model.layers[0].kernel, value)


def test_a_value_of_foreign_making_cannot_be_settled() -> None:
    with keras_internals.deferred_values() as deferred:
        source = keras.Variable("glorot_uniform", shape=(160, 160))
        keras.Variable(lambda shape, dtype: source * 2, shape=(160, 160))
    assert not deferred.settle()


def test_nothing_stays_wrapped_and_other_threads_notice_nothing() -> None:
    before = backend.Variable._initialize_with_initializer
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(keras.Variable("ones", shape=(160, 160))))
    with keras_internals.deferred_values() as deferred:
        with contextlib.suppress(ZeroDivisionError), keras_internals.deferred_values():
            raise ZeroDivisionError
        thread.start()
        thread.join()
        keras.Variable("ones", shape=(160, 160))
    assert len(deferred._made) == 1
    assert backend.Variable._initialize_with_initializer is before
    assert np.all(np.asarray(made[0]) == 1)


def test_initial_values_wait_for_keras_classes_only(tmp_path: Path) -> None:
    path = tmp_path / "m.keras"
    dense().save(path)
    config = config_of(path)
    assert keras_internals.may_defer(config)
    assert not keras_internals.may_defer(config, {"Dense": layers.Dense})
    with keras.saving.custom_object_scope({"Dense": layers.Dense}):
        assert not keras_internals.may_defer(config)
    keras.Sequential([keras.Input((6,)), SavesItself()]).save(path)
    assert not keras_internals.may_defer(config_of(path))


# --- Keras's own loader -------------------------------------------------------


@pytest.mark.parametrize("name", ["sequential", "layer-that-saves-itself", "bfloat16"])
def test_where_a_seam_moved_keras_reads_a_copy_and_the_log_says_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.keras"
    specimen = trained(name)
    specimen.model.save(path)
    expected = values_of(keras.saving.load_model(path))
    monkeypatch.delattr(_loading.saving_lib, "_raise_loading_failure")
    with caplog.at_level(logging.DEBUG, logger="mlflow_ckpt"):
        assert values_of(read(path)) == expected
    assert "saving_lib._raise_loading_failure" in caplog.text
    mine = ZOO[name]().model
    with path.open("rb") as file:
        rehydrate.load_weights(mine, {MODEL: file}, source="x")
    count = len(mine.weights)
    assert values_of(mine)[:count] == values_of(specimen.model)[:count]


# --- hostile files ------------------------------------------------------------


def external_link(h5: h5py.File) -> None:
    h5["layers/evil"] = h5py.ExternalLink("/etc/passwd", "x")


def soft_link(h5: h5py.File) -> None:
    h5["layers/evil"] = h5py.SoftLink("/layers")


def external_dataset(h5: h5py.File) -> None:
    h5.create_dataset("evil", (4,), "u1", external=[("/etc/passwd", 0, 4)])


def virtual_dataset(h5: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    h5.create_virtual_dataset("evil", layout)


def shape_bomb(h5: h5py.File) -> None:
    h5.create_dataset("evil", (1 << 34,), "u1", chunks=(1 << 20,), compression="gzip")


HOSTILE_CONTENT: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "external-link": (external_link, "links of a newer kind"),
    "soft-link": (soft_link, "a soft or external link"),
    "external-dataset": (external_dataset, "bytes in another file"),
    "virtual-dataset": (virtual_dataset, "evil"),
    "shape-bomb": (shape_bomb, "a filter \\(compression\\)"),
}


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    dense().save(tmp_path / "m.keras")
    path = tmp_path / "m.weights.h5"
    path.write_bytes(member(tmp_path / "m.keras"))
    return path


def refused(path: Path, kind: str, text: str) -> None:
    """Every way to read the file ends in our error, and the model keeps its values."""
    model = dense()
    before = values_of(model)
    for use in (rehydrate.load_weights, rehydrate.load_training_state):
        with path.open("rb") as file, pytest.raises(ModelNotLoadable, match=text):
            use(model, {kind: file}, source="x")
    assert values_of(model) == before


@pytest.mark.parametrize("name", HOSTILE_CONTENT)
def test_a_file_that_leads_out_of_itself_is_refused(name: str, weights_file: Path) -> None:
    spoil, text = HOSTILE_CONTENT[name]
    with h5py.File(weights_file, "a") as h5:
        spoil(h5)
    refused(weights_file, WEIGHTS, text)


def test_a_tensor_beyond_the_end_is_refused(weights_file: Path) -> None:
    with h5py.File(weights_file) as h5:
        [large] = [d for d in datasets(h5) if d.nbytes > 1 << 16]
        offset, length = large.id.get_offset(), large.nbytes
    data = weights_file.read_bytes()
    moved = (len(data) - 8).to_bytes(8, "little")
    old = offset.to_bytes(8, "little") + length.to_bytes(8, "little")
    assert data.count(old) == 1
    weights_file.write_bytes(data.replace(old, moved + old[8:]))
    refused(weights_file, WEIGHTS, "beyond the end|[Rr]eceived: ")


def datasets(h5: h5py.File) -> list[Any]:
    found: list[Any] = []
    h5.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.mark.parametrize("kept", [0, 3, 100, 2000, -1, -30, -5000])
@pytest.mark.parametrize("kind", [MODEL, WEIGHTS])
def test_a_cut_file_is_refused(kept: int, kind: str, weights_file: Path) -> None:
    path = weights_file if kind == WEIGHTS else weights_file.with_name("m.keras")
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, kind, "Take another checkpoint")


def rewritten(path: Path, **changes: Any) -> None:
    """Write the archive anew with other members or another compression."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", changes.get("method", zipfile.ZIP_STORED)) as archive:
        for name, data in parts.items():
            archive.writestr(changes.get("names", {}).get(name, name), data)


def patched(path: Path, edit: Callable[[bytearray, zipfile.ZipInfo, int], None]) -> None:
    """Edit the archive's bytes, given the weights' entry and where its central header begins."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(MEMBER)
    data = bytearray(path.read_bytes())
    edit(data, info, data.rindex(b"PK\x01\x02", 0, data.rindex(MEMBER.encode())))
    path.write_bytes(data)


def another_local_name(data: bytearray, info: zipfile.ZipInfo, central: int) -> None:
    at = info.header_offset + 30
    data[at : at + 5] = b"MODEL"


def encrypted(data: bytearray, info: zipfile.ZipInfo, central: int) -> None:
    data[central + 8] |= 1


def longer_than_the_file(data: bytearray, info: zipfile.ZipInfo, central: int) -> None:
    length = (1 << 30).to_bytes(4, "little")
    data[central + 20 : central + 28] = length * 2


def headers_of_another_member(data: bytearray, info: zipfile.ZipInfo, central: int) -> None:
    data[central + 42 : central + 46] = bytes(4)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        pytest.param(
            lambda p: rewritten(p, method=zipfile.ZIP_DEFLATED), "compressed", id="packed"
        ),
        pytest.param(
            lambda p: rewritten(p, names={MEMBER: f"../{MEMBER}"}), "a member called", id="renamed"
        ),
        pytest.param(lambda p: patched(p, another_local_name), "headers", id="two-names"),
        pytest.param(lambda p: patched(p, encrypted), "encrypted", id="encrypted"),
        pytest.param(lambda p: patched(p, longer_than_the_file), "differ|overlaps", id="too-long"),
        pytest.param(lambda p: patched(p, headers_of_another_member), "overlaps", id="moved"),
    ],
)
def test_an_archive_that_keras_would_not_write_is_refused(
    spoil: Callable[[Path], None], text: str, weights_file: Path
) -> None:
    path = weights_file.with_name("m.keras")
    spoil(path)
    refused(path, MODEL, text)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_with_two_weights_members_is_refused(weights_file: Path) -> None:
    path = weights_file.with_name("m.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(MEMBER, b"x")
    refused(path, MODEL, "2 members")


# --- layouts ------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path: Path) -> Callable[..., Any]:
    """Write one dataset; return a copy of its view."""
    path = tmp_path / "one.h5"

    def look(**options: Any) -> Any:
        attribute = options.pop("attribute", None)
        with h5py.File(path, "w") as h5:
            dataset = h5.create_dataset("x", **options)
            if attribute:
                dataset.attrs["dtype"] = attribute
        with path.open("rb") as file, MappedWeights(file) as weights:
            view = weights.view(weights.h5["x"])
            return None if view is None else view.copy()

    return look


@pytest.mark.parametrize(
    "dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
)
def test_a_contiguous_number_is_viewed(dtype: str, mapped: Any) -> None:
    expected = np.arange(24, dtype=dtype).reshape(2, 3, 4)
    view = mapped(data=expected)
    assert view.dtype == expected.dtype
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"data": np.arange(4, dtype=">f4")}, id="big-endian"),
        pytest.param({"data": np.array([True, False])}, id="booleans"),
        pytest.param({"data": np.zeros((0, 3), "f4")}, id="empty"),
        pytest.param({"data": np.array([b"text"])}, id="fixed-text"),
        pytest.param({"data": np.ones(2, "c8")}, id="complex"),
    ],
)
def test_what_memory_would_not_hold_like_this_is_left_to_hdf5(
    options: dict[str, Any], mapped: Any
) -> None:
    assert mapped(**options) is None


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"data": np.arange(4.0), "chunks": (2,)}, id="chunked"),
        pytest.param({"data": np.arange(4.0), "compression": "gzip"}, id="compressed"),
        pytest.param({"data": h5py.Empty("f4")}, id="null"),
        pytest.param({"shape": (4,), "dtype": "f4"}, id="never-written"),
        pytest.param({"data": "text"}, id="text"),
        pytest.param({"data": np.zeros(2, [("a", "f4")])}, id="compound"),
    ],
)
def test_what_keras_never_writes_is_refused(options: dict[str, Any], mapped: Any) -> None:
    with pytest.raises(ModelNotLoadable, match="'/x', wh"):
        mapped(**options)


def test_bfloat16_is_known_by_its_attribute(mapped: Any) -> None:
    import ml_dtypes

    data = np.arange(6).astype(ml_dtypes.bfloat16)
    view = mapped(data=data.view("V2"), attribute="bfloat16")
    assert view.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(view, data)
    assert mapped(data=data.view("V2")).dtype == np.dtype("V2")
