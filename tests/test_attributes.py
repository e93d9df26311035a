"""Which attributes of an object changed, and that they come back as what they were."""

from __future__ import annotations

import math
import random
import tempfile
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import keras
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mlflow_ckpt import plain_objects, training_state
from mlflow_ckpt.attributes import LIMIT, Attributes, restore
from mlflow_ckpt.errors import ConfigError, ManifestError
from mlflow_ckpt.naming import is_data, is_secret
from mlflow_ckpt.plain import TAG, Decoder, Encoder, NoPlace, digest

pytestmark = pytest.mark.pure


class Thing:
    """Holds what a test gives it."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("count", "empty")

    def __init__(self) -> None:
        self.count = 0


class Colour(IntEnum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: int


def stored(state: dict[str, Any]) -> dict[str, Any]:
    """`state` as it comes out of a file."""
    with tempfile.TemporaryDirectory() as folder:
        training_state.write(Path(folder) / "s.h5", state)
        return training_state.read_tree(Path(folder) / "s.h5")


def equal(left: Any, right: Any) -> bool:
    """Equal in type and in value, NaN included."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (np.ndarray, np.generic)):
        same = left.dtype == right.dtype and left.shape == right.shape
        return same and left.tobytes() == right.tobytes()
    if isinstance(left, deque) and left.maxlen != right.maxlen:
        return False
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(equal(left[k], right[k]) for k in left)
    if isinstance(left, float):
        return math.copysign(1, left) == math.copysign(1, right) and (
            left == right or (math.isnan(left) and math.isnan(right))
        )
    return bool(left == right)


def there_and_back(value: Any, before: Any = None) -> Any:
    """Set an attribute after the beginning, and restore it into another object."""
    first, second = Thing(it=before), Thing(it=before)
    attributes = Attributes(first)
    first.it = value
    state, left = attributes.changed()
    assert left == []
    assert restore(second, stored(state)) == []
    return second.it


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(2**64, 2**2000), st.floats(), st.text(),
    st.text(st.characters(), max_size=3), st.binary(max_size=9),
)  # fmt: skip
DTYPES = st.one_of(
    st_numpy.boolean_dtypes(), st_numpy.integer_dtypes(), st_numpy.floating_dtypes(),
    st_numpy.complex_number_dtypes(), st_numpy.unicode_string_dtypes(max_len=5),
    st_numpy.datetime64_dtypes(), st_numpy.timedelta64_dtypes(),
)  # fmt: skip
ARRAYS = DTYPES.flatmap(
    lambda dtype: st_numpy.arrays(dtype, st_numpy.array_shapes(min_dims=0, min_side=0))
)
KEYS = st.one_of(
    st.text().filter(lambda name: not is_secret(name)), st.just(TAG), st.integers(),
    st.tuples(st.integers(), st.text()), st.frozensets(st.integers(), max_size=2), st.none(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
        st.sets(st.integers() | st.text(), max_size=4),
        st.frozensets(st.tuples(st.integers(), st.text()), max_size=3),
        st.builds(deque, st.lists(inner, max_size=3), st.sampled_from([None, 5])),
        st.builds(Counter, st.dictionaries(st.integers(), st.integers(), max_size=3)),
        st.builds(lambda d: defaultdict(list, d), st.dictionaries(st.integers(), inner)),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=150)
@given(VALUES)
def test_a_value_comes_back_as_what_it_was(value: Any) -> None:
    found = there_and_back(value, before="something else")
    assert equal(found, value)
    if isinstance(value, defaultdict):
        assert found.default_factory is list


@settings(deadline=None, max_examples=100)
@given(VALUES, VALUES)
def test_digests_are_equal_where_type_and_value_are(left: Any, right: Any) -> None:
    first, again, other = (digest(Encoder().encode(v)) for v in (left, left, right))
    assert first == again
    assert (first == other) == equal(left, right)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([0.5, math.nan, -0.0] * 200, id="many-floats"),
        pytest.param([1.0] * 300 + [1], id="many-floats-and-an-integer"),
        pytest.param([*range(300), -(2**63)], id="many-integers"),
        pytest.param([*range(300), 2**63], id="many-integers-and-a-large-one"),
        pytest.param([True, False] * 200, id="many-truths"),
        pytest.param(np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3), id="bfloat16"),
        pytest.param(np.float32(1.5), id="float32-scalar"),
        pytest.param(np.bool_(True), id="numpy-bool"),
        pytest.param(np.str_("é"), id="numpy-text"),
        pytest.param(bytearray(b"\0a"), id="bytearray"),
        pytest.param({"$array": "0", "$": 1, "$tuple": [2]}, id="the-file's-own-marks"),
        pytest.param({TAG: "set", "items": [1]}, id="our-own-mark"),
        pytest.param({1: "a", "1": "b", 1.5: "c", (1, "x"): "d"}, id="keys-of-all-kinds"),
        pytest.param(-(10**6000), id="more-digits-than-Python-prints"),
        pytest.param("\ud800", id="half-a-surrogate"),
        pytest.param(np.arange(12).reshape(3, 4)[::2, ::-1], id="strided"),
        pytest.param(np.zeros(LIMIT, np.uint8), id="just-not-too-large"),
    ],
)
def test_what_a_random_search_misses_comes_back_too(value: Any) -> None:
    assert equal(there_and_back(value), value)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(object(), id="object"),
        pytest.param(Colour.RED, id="enum"),
        pytest.param(Pair(1, 2), id="named-tuple"),
        pytest.param(np.array([object()]), id="array-of-objects"),
        pytest.param(np.zeros(2, [("a", "i4")]), id="records"),
        pytest.param(np.ma.masked_array([1, 2], [True, False]), id="masked"),
        pytest.param([[print]], id="a-function-inside"),
        pytest.param({"a": {object(): 1}}, id="a-key-that-is-no-value"),
        pytest.param(np.zeros(2 * LIMIT, np.uint8), id="2-MiB"),
        pytest.param("x" * (LIMIT + 1), id="long-text"),
        pytest.param(["a"] * 2**18, id="long-list"),
        pytest.param(np.zeros(20 * LIMIT, np.uint8), id="20-MiB"),
        pytest.param(keras.layers.Dense(1), id="layer"),
        pytest.param({"f": defaultdict(lambda: 3)}, id="defaultdict-inside-of-a-function"),
    ],
)
def test_what_cannot_be_stored_is_named_if_it_changed(value: Any) -> None:
    thing = Thing(same=value, other=None)
    attributes = Attributes(thing)
    assert attributes.changed() == ({}, [])
    thing.other = value
    assert attributes.changed() == ({}, ["other"])
    assert attributes.changed() == ({}, ["other"]), "asking changes nothing"


def test_too_deep_and_endless_values_are_named() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    loop: list[Any] = [1]
    loop.append({"again": loop})
    thing = Thing(deep=None, loop=None)
    attributes = Attributes(thing)
    thing.deep, thing.loop = deep, loop
    assert attributes.changed() == ({}, ["deep", "loop"])


@pytest.mark.parametrize(
    ("begin", "change"),
    [
        pytest.param([object()], lambda v: v.append(1), id="list-of-objects-that-grew"),
        pytest.param(
            np.zeros(20 * LIMIT, np.uint8), lambda v: v.__setitem__(..., 1), id="huge-array"
        ),
        pytest.param(
            np.zeros((5 * LIMIT, 4), np.uint8).T, lambda v: v.__setitem__(..., 1), id="transposed"
        ),
        pytest.param(
            np.zeros(2 * LIMIT, np.uint8), lambda v: v.__setitem__(77, 1), id="one-of-2-MiB"
        ),
        pytest.param(
            np.zeros(6 * LIMIT, np.uint8), lambda v: v.__setitem__(77, 1), id="one-of-6-MiB"
        ),
        pytest.param({"a": [0] * 200_000}, lambda v: v["a"].append(1), id="long-list-inside"),
    ],
)
def test_what_cannot_be_stored_is_named_if_it_changed_in_place(begin: Any, change: Any) -> None:
    thing = Thing(it=begin)
    attributes = Attributes(thing)
    assert attributes.changed() == ({}, [])
    change(thing.it)
    assert attributes.changed() == ({}, ["it"])


def test_an_equal_object_that_cannot_be_stored_is_named_when_it_takes_the_place() -> None:
    thing = Thing(file=object(), many=[object()])
    attributes = Attributes(thing)
    thing.file, thing.many = object(), [object()]
    assert attributes.changed() == ({}, ["file", "many"])


def test_only_what_changed_is_stored() -> None:
    thing = Thing(option=0.5, seen=[], count=0, log={"a": 1}, nan=math.nan, array=np.zeros(3))
    attributes = Attributes(thing)
    thing.seen.append(1)
    thing.count += 1
    thing.array = np.zeros(3)  # as it was
    thing.new = {"appears": "later"}
    state, left = attributes.changed()
    assert (sorted(state), left) == (["count", "new", "seen"], [])
    again = Thing(option=0.7, seen=[], count=0, log={}, nan=0.0, array=None)
    assert restore(again, stored(state)) == []
    assert (again.seen, again.count, again.new) == ([1], 1, {"appears": "later"})
    assert (again.option, again.log, again.array) == (0.7, {}, None)


def test_a_type_that_changed_is_a_change() -> None:
    thing = Thing(a=1, b=[1], c=True, d=0.0)
    attributes = Attributes(thing)
    thing.a, thing.b, thing.c, thing.d = 1.0, (1,), 1, -0.0
    state, _ = attributes.changed()
    again = Thing()
    restore(again, stored(state))
    assert [repr(v) for v in vars(again).values()] == ["1.0", "(1,)", "1", "-0.0"]


def test_what_is_captured_does_not_change_with_the_object() -> None:
    thing = Thing(array=np.zeros(3), nested={"a": [np.zeros(2)]}, many=[])
    attributes = Attributes(thing)
    thing.array += 1
    thing.nested["a"][0] += 1
    thing.many += [0.5] * 300
    state, _ = attributes.changed()
    thing.array += 1
    thing.nested["a"][0] += 1
    thing.many[0] = 9.0
    again = Thing(array=np.zeros(3), nested={}, many=[])
    restore(again, state)
    assert again.array.tolist() == [1, 1, 1]
    assert again.nested["a"][0].tolist() == [1, 1]
    assert again.many == [0.5] * 300


def test_what_was_deleted_is_deleted() -> None:
    thing, again = Thing(gone=1, stays=2), Thing(gone=1, stays=2)
    attributes = Attributes(thing)
    del thing.gone
    state, _ = attributes.changed()
    restore(again, stored(state))
    assert vars(again) == {"stays": 2}


def test_slots_are_attributes_and_properties_are_not() -> None:
    class Odd(Slotted):
        @property
        def explosive(self) -> int:
            raise RuntimeError("nobody may look")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name != "count":
                raise RuntimeError(name)
            super().__setattr__(name, value)

    thing, again = Odd(), Odd()
    attributes = Attributes(thing)
    thing.count = 5
    vars(thing)["more"] = 6
    state, left = attributes.changed()
    assert (sorted(state), left) == (["count", "more"], [])
    state |= {"explosive": 1, "empty": 2}
    assert restore(again, stored(state)) == ["explosive"]
    assert (again.count, vars(again), again.empty) == (5, {"more": 6}, 2)


def test_an_object_without_attributes_holds_none() -> None:
    assert Attributes(object()).changed() == ({}, [])
    assert restore(object(), {"a": 1}) == ["a"]


# --- in place -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "change"),
    [
        pytest.param(list, lambda v: v.append(1), id="list"),
        pytest.param(dict, lambda v: v.update(a=1), id="dict"),
        pytest.param(set, lambda v: v.add(1), id="set"),
        pytest.param(lambda: deque(maxlen=2), lambda v: v.extend([1, 2, 3]), id="deque"),
        pytest.param(Counter, lambda v: v.update("aab"), id="counter"),
        pytest.param(
            lambda: defaultdict(lambda: [7]), lambda v: v["x"].append(1), id="defaultdict"
        ),
        pytest.param(lambda: np.zeros(3), lambda v: v.__setitem__(1, 5), id="array"),
    ],
)
def test_what_others_hold_too_is_changed_in_place(make: Any, change: Any) -> None:
    first, second = make(), make()
    thing, again = Thing(it=first), Thing(it=second)
    attributes = Attributes(thing)
    change(first)
    restore(again, stored(attributes.changed()[0]))
    assert again.it is second
    assert equal(second, first)


def test_what_was_replaced_leaves_the_other_holder_alone() -> None:
    shared: list[int] = []
    thing, again = Thing(a=[], rng=np.random.default_rng(1)), Thing(a=shared, rng=None)
    again.rng = theirs = np.random.default_rng(2)
    before = theirs.bit_generator.state
    attributes = Attributes(thing)
    thing.a, thing.rng = [1], np.random.default_rng(3)
    restore(again, stored(attributes.changed()[0]))
    assert (again.a, shared) == ([1], [])
    assert theirs.bit_generator.state == before
    assert again.rng.random() == np.random.default_rng(3).random()


def test_an_array_that_cannot_take_the_values_is_replaced() -> None:
    for present in (np.zeros(4), np.zeros(3, np.float32), None, np.zeros(3)):
        thing, again = Thing(it=np.zeros(3)), Thing(it=present)
        if present is not None:
            present.flags.writeable = False
        attributes = Attributes(thing)
        thing.it[:] = 1
        restore(again, stored(attributes.changed()[0]))
        assert equal(again.it, np.ones(3))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: np.random.default_rng(3), id="default"),
        pytest.param(lambda: np.random.Generator(np.random.Philox(3)), id="philox-has-a-key"),
        pytest.param(lambda: np.random.Generator(np.random.MT19937(3)), id="mersenne"),
        pytest.param(lambda: np.random.Generator(np.random.SFC64(3)), id="sfc"),
        pytest.param(lambda: np.random.RandomState(3), id="legacy"),
        pytest.param(lambda: random.Random(3), id="python"),
    ],
)
@pytest.mark.parametrize("wrap", [lambda g: g, lambda g: {"a": [g]}], ids=["plain", "nested"])
def test_a_generator_in_use_goes_on(make: Any, wrap: Any) -> None:
    def draw(generator: Any) -> list[float]:
        return [generator.random() for _ in range(3)] + [generator.uniform(0, 1)]

    ours, theirs = make(), make()
    thing, again = Thing(it=wrap(ours)), Thing(it=wrap(theirs))
    attributes = Attributes(thing)
    assert attributes.changed() == ({}, [])
    draw(ours)
    state, left = attributes.changed()
    assert left == []
    expected = draw(ours)
    assert restore(again, stored(state)) == []
    assert draw(theirs) == expected, "the same object goes on: others draw from it as well"
    lost = Thing(it=None)
    restore(lost, stored(state))
    found = lost.it["a"][0] if isinstance(lost.it, dict) else lost.it
    assert draw(found) == expected, "and where there is none, a new one"


def test_variables_of_keras_take_their_values_over() -> None:
    def make() -> Thing:
        return Thing(
            average=keras.Variable([0.0, 0.0]),
            shadow=[keras.Variable(1.0)],
            seeds=keras.random.SeedGenerator(5),
            metric=keras.metrics.Mean(),
        )

    thing, again, other = make(), make(), Thing(average=None, shadow=[], metric=2, seeds=None)
    attributes = Attributes(thing)
    assert attributes.changed() == ({}, [])
    thing.average.assign([1.0, 2.0])
    thing.shadow[0].assign(3.0)
    keras.random.normal((1,), seed=thing.seeds)
    thing.metric.update_state([4.0, 6.0])
    state, left = attributes.changed()
    assert left == []
    held = dict(vars(again))
    assert restore(again, stored(state)) == []
    assert all(vars(again)[name] is held[name] for name in held if name != "shadow")
    assert np.asarray(again.average).tolist() == [1.0, 2.0]
    assert float(again.shadow[0]) == 3.0
    assert np.array_equal(again.seeds.state, thing.seeds.state)
    assert float(again.metric.result()) == 5.0
    assert restore(other, stored(state)) == ["average", "shadow", "seeds", "metric"]
    assert other.shadow == []


def test_a_tensor_comes_back_as_an_array() -> None:
    found = there_and_back(keras.ops.convert_to_tensor([1.5, 2.5]))
    assert equal(found, np.array([1.5, 2.5], np.float32))


# --- names --------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "api_key",
        "apiKey",
        "APIKEY",
        "_key",
        "key2",
        "token",
        "access_token",
        "accessToken",
        "accesstoken",
        "hf_TOKEN",
        "secret",
        "client_secrets",
        "password",
        "db_passwd",
        "pwd",
        "credential",
        "credentials",
        "Authorization",
    ],
)
def test_a_name_that_says_secret(name: str) -> None:
    assert is_secret(name)
    thing = Thing(config={name: "hidden", "deep": [{name: ["hidden"]}], "n": 0}, **{name: "hidden"})
    attributes = Attributes(thing)
    thing.config["n"] = 1
    state, left = attributes.changed()
    assert left == [], "it did not change"
    assert "hidden" not in repr(state)
    setattr(thing, name, "hidden too")
    thing.config["deep"][0][name] = "hidden too"
    state, left = attributes.changed()
    assert sorted(left) == sorted([name, "config"])
    assert "hidden" not in repr(state)


@pytest.mark.parametrize(
    "name",
    [
        "keys",
        "monkey",
        "keyed_metrics",
        "keyboard",
        "tokens_seen",
        "tokenizer",
        "best",
        "passing",
        "compass",
    ],
)
def test_a_name_that_does_not(name: str) -> None:
    assert not is_secret(name)


def test_the_secrets_that_are_there_stay() -> None:
    thing = Thing(config={"token": "old", "n": 0, "deep": {"key": "old", "n": 0}})
    again = Thing(config={"token": "new", "n": 0, "deep": {"key": "new", "n": 0}})
    attributes = Attributes(thing)
    thing.config["n"] = thing.config["deep"]["n"] = 1
    restore(again, stored(attributes.changed()[0]))
    assert again.config == {"token": "new", "n": 1, "deep": {"key": "new", "n": 1}}


@pytest.mark.parametrize(
    "name",
    [
        "x",
        "y",
        "x_train",
        "X_train",
        "y_val",
        "x1",
        "data",
        "dataset",
        "val_dataset",
        "validation_data",
        "train_ds",
        "images",
        "test_images",
        "labels",
        "_data",
    ],
)
def test_data_is_not_stored(name: str) -> None:
    assert is_data(name)
    thing = Thing(**{name: [1]})
    attributes = Attributes(thing)
    getattr(thing, name).append(2)
    assert attributes.changed() == ({}, [name])


@pytest.mark.parametrize(
    "name", ["train", "val", "data_seen", "max_y", "best_x", "image_size", "test", "xy"]
)
def test_what_only_counts_data_is(name: str) -> None:
    assert not is_data(name)


def test_what_is_to_be_ignored_or_refused() -> None:
    thing = Thing(a=0, b=0, c=0, _model=0, params={})
    attributes = Attributes(
        thing, ignore=frozenset({"a"}), accepts=lambda name, value: (name, value) != ("b", 1)
    )
    thing.a = thing.b = thing.c = thing._model = 1
    thing.params = {"epochs": 3}
    assert attributes.changed() == ({"c": 1}, ["b"])


@pytest.mark.parametrize(
    "name",
    ["__class__", "__dict__", "_model", "params", "method", "static", "prop", "key", "x", "a b"],
)
def test_a_state_cannot_set_what_is_no_state(name: str) -> None:
    class Target:
        default = 1

        def method(self) -> int:
            return 1

        @staticmethod
        def static() -> int:
            return 1

        @property
        def prop(self) -> int:
            return 1

    target = Target()
    assert restore(target, {name: 5, "default": 2}) == [name]
    assert (vars(target), target.default) == ({"default": 2}, 2)


def test_a_state_sets_nothing_that_would_not_have_been_stored() -> None:
    def begun() -> tuple[Thing, Attributes]:
        thing = Thing(a=0, b=[0], c=0, d=0)
        return thing, Attributes(
            thing, ignore=frozenset({"a"}), accepts=lambda name, value: name != "b"
        )

    for give in (Attributes.restore, Attributes.put):
        thing, attributes = begun()
        assert give(attributes, {"a": 1, "b": 1, "c": 1}) == ["a", "b"]
        assert give(attributes, {"b": {TAG: "in-place", "value": [1]}, "c": 1}) == ["b"]
        assert give(attributes, {"a": {TAG: "absent"}, "b": {TAG: "absent"}, "c": 1}) == ["a", "b"]
        assert vars(thing) == {"a": 0, "b": [0], "c": 1, "d": 0}
    thing.d = 5
    assert attributes.put({"c": 2}) == []
    assert (thing.c, thing.d) == (2, 5), "put sets back nothing"
    assert attributes.restore({"c": 3}) == []
    assert (thing.c, thing.d) == (3, 0)


def test_nothing_takes_the_place_of_a_path_or_an_open_file(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        thing = Thing(path=tmp_path, file=file, count=0)
        state = {"path": "/elsewhere", "file": {TAG: "absent"}, "count": 1}
        assert restore(thing, state) == ["path", "file"]
        assert vars(thing) == {"path": tmp_path, "file": file, "count": 1}


# --- back to the beginning ----------------------------------------------------


def test_what_changed_meanwhile_and_is_not_in_the_state_goes_back() -> None:
    def make() -> Thing:
        return Thing(flag=False, seen=[1], large=[0] * 50_000, file=None, token="a", n=0)

    first = make()
    attributes = Attributes(first)
    first.n = 3
    state = stored(attributes.changed()[0])
    second = make()
    seen = second.seen
    attributes = Attributes(second)
    second.flag, second.file, second.token, second.new, second.n = True, object(), "b", 1, 1
    second.seen.append(2)
    second.large.append(1)
    assert attributes.restore(state) == []
    assert (second.flag, second.seen, second.n) == (False, [1], 3)
    assert second.seen is seen
    assert (second.token, second.new, len(second.large)) == ("b", 1, 50_001)
    assert second.file is not None


# --- hostile files ------------------------------------------------------------


MANY_BYTES = np.ones(1 << 20, np.uint8)
MANY_NUMBERS = np.broadcast_to(0.5, plain_objects.MOST_NUMBERS + 1)


def python_generator(words: Any) -> dict[str, Any]:
    state = {"version": 3, "words": words, "gauss": None}
    return {TAG: "generator", "kind": "Random", "state": state}


@pytest.mark.parametrize(
    "tree",
    [
        pytest.param({TAG: "os.system"}, id="unknown-type"),
        pytest.param({TAG: "generator", "kind": "Generator", "state": {}}, id="no-state"),
        pytest.param(
            {TAG: "generator", "kind": "seed", "state": {"bit_generator": "PCG64"}}, id="no-kind"
        ),
        pytest.param(
            {TAG: "generator", "kind": "Generator", "state": {"bit_generator": "load"}},
            id="a-function-of-numpy's",
        ),
        pytest.param(
            {TAG: "array", "dtype": "O", "shape": [1], "data": np.zeros(8, np.uint8)}, id="objects"
        ),
        pytest.param(
            {TAG: "array", "dtype": "U1", "shape": [9], "data": np.zeros(8, np.uint8)}, id="short"
        ),
        pytest.param({TAG: "int", "hex": "zz"}, id="no-number"),
        pytest.param({TAG: "dict", "items": [[[1], 2]]}, id="unhashable-key"),
        pytest.param({TAG: "defaultdict", "items": [], "factory": "eval"}, id="factory"),
        pytest.param({TAG: "set"}, id="nothing-in-it"),
        *(
            pytest.param({TAG: kind, "items": MANY_BYTES}, id=f"{kind}-of-an-array")
            for kind in ("tuple", "set", "frozenset", "dict", "OrderedDict", "Counter")
        ),
        pytest.param({TAG: "deque", "items": MANY_BYTES, "maxlen": None}, id="deque-of-an-array"),
        pytest.param({TAG: "deque", "items": [], "maxlen": 2**70}, id="endless-deque"),
        pytest.param({TAG: "variables", "values": MANY_BYTES}, id="variables-of-an-array"),
        pytest.param({TAG: "numbers", "values": MANY_NUMBERS}, id="too-many-numbers"),
        pytest.param(python_generator(MANY_BYTES.astype(np.uint32)), id="too-many-words"),
        pytest.param(python_generator([0] * 625), id="words-that-are-no-array"),
        pytest.param(python_generator(np.zeros(625)), id="words-that-are-fractions"),
        pytest.param(python_generator(np.full(625, 625, np.uint32)), id="a-place-beside-its-words"),
        pytest.param(
            {
                TAG: "generator",
                "kind": "Generator",
                "state": {
                    "bit_generator": "SFC64",
                    "state": {"state": np.zeros(0, np.uint64)},
                    "has_uint32": 0,
                    "uinteger": 0,
                },
            },
            id="too-few-words",
        ),
    ],
)
def test_what_is_no_tree_is_refused(tree: Any) -> None:
    thing = Thing(it=1)
    with pytest.raises(ManifestError, match=r"cannot be read|Expected"):
        restore(thing, {"it": tree})
    assert thing.it == 1


def test_what_is_refused_takes_no_memory_first() -> None:
    trees = [
        {TAG: "tuple", "items": np.ones(4 << 20, np.uint8)},
        python_generator(np.full(4 << 20, 1000, np.uint32)),
    ]
    for tree in trees:
        tracemalloc.start()
        try:
            with pytest.raises(ManifestError, match="Expected .* Received"):
                Decoder().decode(tree)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 1 << 20


def test_a_list_of_too_many_numbers_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_objects, "MOST_NUMBERS", 300)
    numbers = [*range(300)]
    assert Decoder().decode(Encoder().encode(numbers)) == numbers
    with pytest.raises(ConfigError, match="at most 300 numbers in lists. Received: 301. An array"):
        Encoder().encode([*numbers, 300])
    assert Encoder().encode(np.arange(301)).size == 301


def test_a_factory_that_is_a_function_needs_the_present_one() -> None:
    tree = Encoder().encode(defaultdict(lambda: 3, a=1))
    with pytest.raises(NoPlace):
        Decoder().decode(tree)
    present: defaultdict[str, int] = defaultdict(lambda: 4)
    assert Decoder().decode(tree, present)["b"] == 4


def test_a_loose_encoder_takes_subclasses_for_their_bases() -> None:
    tree = Encoder(loose=True).encode({"e": Colour.RED, "p": Pair(1, 2), "o": vars(Colour)["RED"]})
    assert Decoder().decode(tree) == {"e": 1, "p": (1, 2), "o": 1}
    with pytest.raises(ConfigError, match="Received: a value of type object"):
        Encoder(loose=True).encode([object()])
