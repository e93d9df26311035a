"""The training state file: what goes in comes out, and nothing else is believed."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from builders import FEATURES, data, mlp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from mlflow_ckpt import state_schema
from mlflow_ckpt import training_state as ts
from mlflow_ckpt.errors import ConfigError, FormatTooNew, ManifestError

pytestmark = pytest.mark.pure

NATIVE = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64"


def round_trip(value: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ts.PATH
        ts.write(path, {"value": value})
        return ts.read_tree(path)["value"]


def same(left: Any, right: Any) -> bool:
    """Whether two trees agree, bit by bit and with their types."""
    if isinstance(left, np.ndarray):
        return (left.dtype, left.shape, left.tobytes()) == (
            right.dtype,
            right.shape,
            right.tobytes(),
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and (left == right or left != left)


def forge(path: Path, text: bytes = b"{}", version: str | None = "1.0") -> h5py.File:
    """Open a new state file with this JSON, as somebody else might write one."""
    file = h5py.File(path, "w")
    if version is not None:
        file.attrs["format"] = version
    file.create_dataset("state", data=np.frombuffer(text, dtype=np.uint8))
    file.create_group("arrays")
    return file


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (3,), (2, 3)], ids=str)
def test_arrays_of_every_dtype_come_back_bit_by_bit(shape: tuple[int, ...]) -> None:
    kinds = [*map(np.dtype, NATIVE.split()), np.dtype(ml_dtypes.bfloat16)]
    arrays = {dtype.name: np.ones(shape).astype(dtype) for dtype in kinds}
    assert same(arrays, round_trip(arrays))


def test_the_narrow_dtypes_of_quantized_models_come_back_too() -> None:
    names = ("float8_e4m3fn", "float8_e5m2", "int4")
    arrays = {name: np.ones((2, 3)).astype(getattr(ml_dtypes, name)) for name in names}
    assert same(arrays, round_trip(arrays))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a": [{"b": (1, [2.5, None]), "c": ()}], "": {}}, id="nested"),
        pytest.param([float("nan"), float("inf"), -0.0, 10**30, True], id="numbers"),
        pytest.param("é\0\ud800 $array", id="text"),
        pytest.param({"$array": "0", "x": np.ones(2)}, id="array-mark-and-more"),
        pytest.param({"$array": "0"}, id="array-mark"),
        pytest.param({"$tuple": 3}, id="tuple-mark"),
        pytest.param(np.arange(6).reshape(2, 3).T, id="transposed-view"),
    ],
)
def test_what_comes_back(value: Any) -> None:
    assert same(value, round_trip(value))


def test_a_numpy_scalar_comes_back_as_an_array_of_no_dimension() -> None:
    assert same(np.asarray(np.float32(0.1)), round_trip(np.float32(0.1)))


@pytest.mark.parametrize(
    ("value", "place"),
    [
        pytest.param({1: 2}, "dict", id="number-as-key"),
        pytest.param(b"x", "bytes", id="bytes"),
        pytest.param({1, 2}, "set", id="set"),
        pytest.param(object(), "object", id="object"),
        pytest.param(np.array([None]), "ndarray", id="object-array"),
        pytest.param(np.array(["loss"]), "ndarray", id="text-array"),
        pytest.param(np.datetime64("2020-01-01"), "datetime64", id="date"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=rf"Received: state\.value\.a\[1\]={place}"):
        round_trip({"a": (0, value)})
    with pytest.raises(ConfigError, match=rf"Received: value\.a\[1\]={place}"):
        ts.check_plain({"a": (0, value)})


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"?" * 99), id="garbage"),
        pytest.param(lambda path: None, id="missing"),
        pytest.param(lambda path: forge(path, version=None).close(), id="no-format"),
        pytest.param(lambda path: forge(path, version="x").close(), id="format-word"),
        pytest.param(lambda path: forge(path, b"{").close(), id="no-json"),
        pytest.param(lambda path: forge(path, b"\xff").close(), id="no-utf-8"),
        pytest.param(lambda path: forge(path, b"[]").close(), id="a-list"),
        pytest.param(lambda path: forge(path, b"[" * 100_000).close(), id="deep"),
        pytest.param(lambda path: forge(path, b'{"a":{"$array":"0"}}').close(), id="no-array"),
        pytest.param(lambda path: forge(path, b'{"a":{"$array":"."}}').close(), id="a-group"),
        pytest.param(lambda path: forge(path, b'{"a":{"$tuple":3}}').close(), id="no-tuple"),
    ],
)
def test_a_file_that_is_no_training_state(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "state.h5")
    with pytest.raises(ManifestError, match=ts.PATH):
        ts.read_tree(tmp_path / "state.h5")


@pytest.mark.parametrize("version", ["2.0", "11.5"])
def test_a_newer_major_is_refused_whatever_it_holds(version: str, tmp_path: Path) -> None:
    forge(tmp_path / "state.h5", b"[", version).close()
    with pytest.raises(FormatTooNew, match=rf"format {version} and .* up to 1\.x: upgrade with"):
        ts.read_tree(tmp_path / "state.h5")


@pytest.mark.parametrize("libver", ["v110", "latest"])
def test_a_newer_layout_is_no_damage(libver: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "state.h5", "w", libver=libver) as file:
        file.attrs["format"] = "2.0"
    with pytest.raises(
        FormatTooNew, match=rf"{ts.PATH} .*superblock of version [23].* upgrade with"
    ):
        ts.read_tree(tmp_path / "state.h5")


def test_more_than_can_be_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {"$type": "numbers", "values": np.zeros(301)}
    several = {"a": {"it": [numbers]}, "b": ({"it": numbers},)}
    ts.write(tmp_path / "fits.h5", several)
    with monkeypatch.context() as patch:
        patch.setattr(state_schema, "MOST_NUMBERS", 601)
        with pytest.raises(ConfigError, match=r"larger than one .* 601 numbers.* 602.* NumPy"):
            ts.write(tmp_path / "s.h5", several)
        with pytest.raises(ManifestError, match=r"at most 601 numbers in lists. Received: 602"):
            state_schema.check_numbers(ts.read_tree(tmp_path / "fits.h5"))
    monkeypatch.setattr(ts, "_MOST", 1 << 20)
    with pytest.raises(ConfigError, match="larger than one .* take at most 1048576 bytes.* NumPy"):
        ts.write(tmp_path / "s.h5", {"a": [[]] * 20_000})
    assert not (tmp_path / "s.h5").exists()


def draws() -> list[Any]:
    """Numbers from each global generator; the normal ones leave a half-used pair behind."""
    numpy, normal = np.random, keras.random.normal((2,))
    return [random.random(), random.gauss(), numpy.rand(), numpy.normal(), *np.asarray(normal)]


@pytest.mark.parametrize("used_before", [True, False], ids=["used", "fresh"])
def test_the_global_generators_go_on_where_they_were(used_before: bool) -> None:
    if used_before:
        draws()
    saved = round_trip(ts.capture_generators())
    expected = [draws(), draws()]
    ts.restore_generators(saved)
    assert [draws(), draws()] == expected


def test_dropout_goes_on_where_it_was_and_the_capture_is_a_copy() -> None:
    model, x = mlp(), np.ones((4, FEATURES), dtype=np.float32)
    captured = ts.capture_variables(model)
    saved = round_trip(captured)
    expected = [np.asarray(model(x, training=True)) for _ in range(3)]
    assert not np.array_equal(expected[0], expected[1])
    assert same(captured, saved)
    assert ts.restore_variables(model, saved) == []
    assert same(expected, [np.asarray(model(x, training=True)) for _ in range(3)])


def test_a_model_with_other_generators_keeps_its_own_and_names_them() -> None:
    model = mlp()
    before = ts.capture_variables(model)
    assert ts.restore_variables(model, []) == [entry["path"] for entry in before]
    assert same(before, ts.capture_variables(model))


def test_only_what_no_model_file_holds_is_captured() -> None:
    model = mlp(run_eagerly=True)
    model.fit(*data(), verbose=0)
    paths = [entry["path"] for entry in ts.capture_variables(model)]
    assert len(paths) == 1
    assert paths[0].startswith("seed_generator")


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
ARRAYS = npst.arrays(st.sampled_from(NATIVE.split()), npst.array_shapes(min_dims=0, min_side=0))


@settings(deadline=None, max_examples=40)
@given(
    st.recursive(
        LEAVES | ARRAYS,
        lambda tree: st.lists(tree) | st.tuples(tree, tree) | st.dictionaries(st.text(), tree),
    )
)
def test_any_tree_survives_the_file(value: Any) -> None:
    assert same(value, round_trip(value))
