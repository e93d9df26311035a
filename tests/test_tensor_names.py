"""Names and keys of tensors where a file and a manifest have to be brought together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_ckpt.tensor_names import Name, Place, name_all, place_of, slots

pytestmark = pytest.mark.pure

KERNEL = ((2, 3), "float32")
BIAS = ((3,), "float32")


def dense(place: str) -> dict[str, Any]:
    """The tensors of a dense layer."""
    return {f"/{place}/vars/0": KERNEL, f"/{place}/vars/1": BIAS}


def rows(*prefixes: str) -> list[list[Any]]:
    """What a manifest says of dense layers."""
    found: list[list[Any]] = []
    for prefix in prefixes:
        found += [[f"{prefix}/kernel", [2, 3], "float32"], [f"{prefix}/bias", [3], "float32"]]
    return found


def keys(tensors: dict[str, Any], names: dict[str, str]) -> list[str]:
    return sorted({name.key[0] for name in name_all(tensors, names, [])[0].values()})


@pytest.mark.parametrize(
    ("path", "names", "expected"),
    [
        pytest.param("/layers/dense/vars/0", {}, ("layers/dense", "0"), id="layer"),
        pytest.param("/vars/0", {}, ("", "0"), id="model"),
        pytest.param("/layers/own/vars/deep/n", {}, ("layers/own", "deep/n"), id="key-with-parts"),
        pytest.param("/odd", {}, ("", "odd"), id="no-vars"),
        pytest.param(
            "/vars/dense/vars/0", {"vars/dense": "dense"}, ("vars/dense", "0"), id="called-vars"
        ),
        pytest.param(
            "/layers/own/vars/vars/0", {"layers/own": "own"}, ("layers/own", "vars/0"), id="vars-in"
        ),
    ],
)
def test_a_path_is_taken_apart(path: str, names: dict[str, str], expected: tuple[str, str]) -> None:
    assert place_of(path, names) == Place(owner=expected[0], key=expected[1])


def test_layers_of_one_name_in_two_blocks_are_told_apart_by_what_is_around_them() -> None:
    tensors = {**dense("layers/block/proj"), **dense("layers/block_1/proj")}
    names = {
        "": "model",
        "layers/block": "first",
        "layers/block_1": "second",
        "layers/block/proj": "proj",
        "layers/block_1/proj": "proj",
    }
    found, positions = name_all(tensors, names, rows("second/proj", "first/proj"))
    assert str(found["/layers/block/proj/vars/0"]) == "first/proj/kernel"
    assert str(found["/layers/block_1/proj/vars/1"]) == "second/proj/bias"
    assert [str(positions[n]) for n in range(4)] == [
        "second/proj/kernel",
        "second/proj/bias",
        "first/proj/kernel",
        "first/proj/bias",
    ]


def test_what_keras_numbered_counts_by_its_turn_and_a_users_name_stands() -> None:
    tensors = {**dense("layers/dense"), **dense("layers/dense_1"), **dense("layers/dense_2")}
    names = {"layers/dense": "dense_7", "layers/dense_1": "mine", "layers/dense_2": "dense_8"}
    assert keys(tensors, names) == ["layers/dense#0", "layers/dense#1", "layers/mine"]
    later = {"layers/dense": "dense", "layers/dense_1": "mine", "layers/dense_2": "dense_1"}
    assert keys(tensors, later) == keys(tensors, names)


def test_ten_comes_behind_nine() -> None:
    many = {f"layers/dense_{n}" if n else "layers/dense": f"dense_{n + 5}" for n in range(12)}
    found, _ = name_all({p: t for place in many for p, t in dense(place).items()}, many, [])
    assert found["/layers/dense_10/vars/0"].key[0] == "layers/dense#10"


def test_an_attribute_of_a_layer_is_its_name() -> None:
    tensors = dense("encoder/inner")
    names = {"": "model", "encoder": "sequential_3", "encoder/inner": "dense_9"}
    assert keys(tensors, names) == ["encoder/inner"]


def test_what_is_ambiguous_keeps_its_number() -> None:
    """As bias and scale of a quantized layer, whose order in the file is another one."""
    tensors = {
        "/layers/dense/vars/0": ((2, 3), "int8"),
        "/layers/dense/vars/1": BIAS,
        "/layers/dense/vars/2": BIAS,
    }
    variables = [
        ["dense/bias", [3], "float32"],
        ["dense/kernel", [2, 3], "int8"],
        ["dense/kernel_scale", [3], "float32"],
    ]
    found, positions = name_all(tensors, {"layers/dense": "dense"}, variables)
    assert sorted(map(str, found.values())) == ["dense/1", "dense/2", "dense/kernel"]
    # An optimizer may have been built on them all the same.
    assert str(positions[0]) == "dense/bias"


def test_a_variable_without_a_name_is_matched_by_its_place() -> None:
    variables = [["own/variable_17", [3], "float32"]]
    found, _ = name_all({"/layers/own/vars/0": BIAS}, {"layers/own": "own"}, variables)
    [name] = found.values()
    assert (str(name), name.key) == ("own/variable_17", ("layers/own#0", "0"))


def test_slots_are_named_by_kind_and_by_the_longest_variable_that_fits() -> None:
    trained = [
        (path, Name(layer=path, variable="", key=(path, ""), order=0)) for path in ("m/a", "m/a_b")
    ]
    paths = (
        "adam/m_a_b_momentum",
        "adam/m_a_velocity",
        "adam/iteration",
        "outer/adam/m_a_gradient_accumulator",
    )
    found = slots([[path, [], ""] for path in paths], trained)
    assert [(name.layer, name.variable) for name in found] == [
        ("momentum", "m/a_b"),
        ("velocity", "m/a"),
        ("iteration", ""),
        ("gradient_accumulator", "m/a"),
    ]


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "a_1", "layers", "vars", "0"]), min_size=1), max_size=8
    ),
    st.dictionaries(st.sampled_from(["", "a", "layers/a", "a/vars"]), st.sampled_from(["a", "b"])),
    st.lists(st.sampled_from(["a/x", "b/x", "layers/a/y", "x"]), max_size=4),
)
def test_every_tensor_gets_one_name_whatever_a_file_says(
    paths: list[list[str]], names: dict[str, str], variables: list[str]
) -> None:
    tensors = {"/" + "/".join(parts): BIAS for parts in paths}
    found, positions = name_all(tensors, names, [[v, [3], "float32"] for v in variables])
    assert found.keys() == tensors.keys()
    assert set(positions) <= set(range(len(variables)))
    taken = [name.order for name in found.values() if name.order < len(variables)]
    assert len(taken) == len(set(taken))
