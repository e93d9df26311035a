"""What two tensors differ by: against NumPy, block by block, and where a number has no meaning."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from mlflow_ckpt.weight_change import Sums, WeightChange, total

pytestmark = pytest.mark.pure

Array = np.ndarray[Any, Any]


def change(a: Any, b: Any, *, block: int = 1 << 18) -> WeightChange:
    """What `Sums` makes of two arrays."""
    x, y = np.asarray(a).reshape(-1), np.asarray(b).reshape(-1)
    sums = Sums()
    for start in range(0, x.size, block):
        sums.add(x[start : start + block], y[start : start + block])
    return sums.result()


def norm(x: Array) -> float:
    return float(np.linalg.norm(x.astype(np.float64)))


# --- numbers ------------------------------------------------------------------


def test_it_is_what_numpy_says() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 3000)).astype(np.float32)
    found = change(a, b, block=700)
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert (found.elements, found.compared, found.changed) == (3000, 3000, 3000)
    assert found.norm_a == pytest.approx(norm(a), rel=1e-14)
    assert found.norm_b == pytest.approx(norm(b), rel=1e-14)
    assert found.change == pytest.approx(norm(y - x), rel=1e-14)
    assert found.relative == pytest.approx(norm(y - x) / norm(x), rel=1e-14)
    assert found.cosine == pytest.approx(float(x @ y) / (norm(x) * norm(y)), rel=1e-12)
    assert found.max_change == np.abs(y - x).max()
    assert found.not_finite == 0


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
     "uint32", "uint64", ">f4", ">i8", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn],
    ids=str,
)  # fmt: skip
def test_every_kind_of_number_counts_by_its_value(dtype: Any) -> None:
    a, b = np.array([1, 2, 3, 4], dtype), np.array([1, 2, 3, 6], dtype)
    found = change(a, b)
    assert (found.changed, found.change, found.max_change) == (1, 2.0, 2.0)
    assert found.norm_a == pytest.approx(math.sqrt(30))
    assert found.relative == pytest.approx(2 / math.sqrt(30))


def test_booleans_count_as_0_and_1_and_complex_numbers_as_their_parts() -> None:
    found = change([True, False, True], [True, True, True])
    assert (found.changed, found.norm_a, found.change) == (1, math.sqrt(2), 1.0)
    found = change(np.array([3 + 4j], np.complex64), np.array([3 + 5j], np.complex64))
    assert (found.elements, found.changed, found.norm_a, found.change) == (2, 1, 5.0, 1.0)


def test_two_dtypes_are_compared_by_value() -> None:
    a = np.array([1.0, 2.0, np.nan], np.float32)
    found = change(a, a.astype(ml_dtypes.bfloat16))
    assert (found.changed, found.change, found.nan_a, found.nan_b) == (0, 0.0, 1, 1)
    assert change(a, np.array([1, 3, 0], np.int8)).changed == 2
    found = change(np.array([3 + 4j, 1], np.complex64), np.array([3, 1], np.float32))
    assert (found.elements, found.changed, found.change) == (4, 1, 4.0)
    assert change(np.array([1j, 1]), np.zeros(2, "V16")).elements == 2


def test_text_is_counted_and_not_measured() -> None:
    found = change(np.array([b"ab", b"cd"]), np.array([b"ab", b"ce"]))
    assert (found.elements, found.compared, found.changed) == (2, 0, 1)
    assert (found.relative, found.cosine, found.max_change) == (None, None, 0.0)
    assert change(np.array([b"ab"]), np.array([b"ab"])).relative == 0.0
    opaque = np.zeros(3, "V3")
    assert change(opaque, opaque).changed == 0
    assert change(opaque, np.zeros(3, np.int8)).changed == 3


def test_a_bit_that_is_no_value_is_a_change() -> None:
    found = change([0.0, 1.0], [-0.0, 1.0])
    assert (found.changed, found.change, found.relative) == (1, 0.0, 0.0)


# --- where a number has no meaning --------------------------------------------


def test_what_is_not_finite_is_counted_and_hides_nothing() -> None:
    nan, inf = np.nan, np.inf
    a = np.array([1.0, nan, inf, 2.0, 3.0, nan], np.float32)
    b = np.array([1.0, 5.0, inf, nan, 4.0, nan], np.float32)
    found = change(a, b, block=2)
    assert (found.nan_a, found.nan_b, found.inf_a, found.inf_b) == (2, 2, 1, 1)
    assert (found.elements, found.compared, found.changed) == (6, 2, 3)
    assert found.relative == pytest.approx(1 / math.sqrt(10))
    assert found.not_finite == 6


def test_a_nan_that_signals_is_one() -> None:
    signals = np.array([0x7FA00000, 0x3F800000], np.uint32).view(np.float32)
    found = change(signals, signals)
    assert (found.nan_a, found.changed, found.relative) == (1, 0, 0.0)


def test_a_tensor_that_became_nan_has_no_relative_change() -> None:
    found = change([1.0, 2.0], [np.nan, np.nan])
    assert (found.compared, found.changed, found.relative, found.cosine) == (0, 2, None, None)


@pytest.mark.parametrize(
    ("a", "b", "relative", "cosine"),
    [
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, None, id="both-zero"),
        pytest.param([0.0, 0.0], [1.0, 0.0], None, None, id="from-zero"),
        pytest.param([3.0, 4.0], [0.0, 0.0], 1.0, None, id="to-zero"),
        pytest.param([], [], 0.0, None, id="empty"),
        pytest.param(2.0, 3.0, 0.5, 1.0, id="scalar"),
        pytest.param(2.0, -2.0, 2.0, -1.0, id="opposite"),
        pytest.param([1.0, 0.0], [0.0, 1.0], math.sqrt(2), 0.0, id="at-right-angles"),
    ],
)
def test_nothing_is_divided_by_zero(
    a: Any, b: Any, relative: float | None, cosine: float | None
) -> None:
    found = change(a, b)
    assert found.relative == pytest.approx(relative)
    assert found.cosine == pytest.approx(cosine)


def test_no_square_overflows_or_vanishes() -> None:
    large, small = np.full(4, 1e300), np.full(4, 1e-300)
    found = change(large, 3 * large)
    assert (found.norm_a, found.relative) == pytest.approx((2e300, 2.0))
    found = change(small, 3 * small)
    assert (found.norm_a, found.relative, found.cosine) == pytest.approx((2e-300, 2.0, 1.0))
    found = change(large, small)
    assert (found.relative, found.cosine, found.norm_b) == pytest.approx((1.0, 1.0, 2e-300))
    found = change([1.7e308], [-1.7e308])
    assert (found.relative, found.change, found.max_change) == (2.0, None, None)
    assert change(small, large).relative is None


# --- several tensors ----------------------------------------------------------


def test_a_total_is_that_of_one_long_tensor() -> None:
    generator = np.random.default_rng(1)
    pairs = [generator.normal(size=(2, n)) for n in (1, 50, 300)]
    parts = []
    for a, b in pairs:
        parts.append(Sums())
        parts[-1].add(a, b)
    joined = np.concatenate(pairs, axis=1)
    assert near(total(parts).result(), change(joined[0], joined[1]))
    assert total([]).result() == change([], [])


# --- properties ---------------------------------------------------------------

ARRAYS = st_numpy.arrays(
    np.float64,
    st.integers(0, 40),
    elements=st.floats(-1e6, 1e6, allow_subnormal=False) | st.sampled_from([np.nan, np.inf]),
)


def near(one: WeightChange, other: WeightChange) -> bool:
    """Whether two results agree within what float64 rounds."""
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(x == y if x is None else x == pytest.approx(y, rel=1e-9, abs=1e-7) for x, y in pairs)


@st.composite
def two_of_one_size(draw: st.DrawFn) -> tuple[Array, Array]:
    a = draw(ARRAYS)
    elements = st.floats(-1e6, 1e6, allow_subnormal=False)
    return a, draw(st_numpy.arrays(np.float64, a.shape, elements=elements))


@given(two_of_one_size(), st.integers(1, 50))
@settings(deadline=None)
def test_blocks_of_any_size_give_the_same(pair: tuple[Array, Array], block: int) -> None:
    assert near(change(*pair, block=block), change(*pair))


@given(two_of_one_size())
@settings(deadline=None)
def test_the_other_way_round_the_angle_and_the_distance_are_the_same(
    pair: tuple[Array, Array],
) -> None:
    there, back = change(*pair), change(*reversed(pair))
    assert there.cosine == pytest.approx(back.cosine)
    assert there.change == back.change
    assert (there.norm_a, there.norm_b) == (back.norm_b, back.norm_a)
    assert (there.nan_a, there.inf_b) == (back.nan_b, back.inf_a)


@given(two_of_one_size(), st.integers(-900, 900))
@settings(deadline=None)
def test_a_scale_changes_no_ratio(pair: tuple[Array, Array], exponent: int) -> None:
    a, b = (np.nan_to_num(x, nan=1.0, posinf=2.0) for x in pair)
    scaled_a, scaled_b = np.ldexp(a, exponent), np.ldexp(b, exponent)
    assume(np.array_equal(np.ldexp(scaled_a, -exponent), a))
    assume(np.array_equal(np.ldexp(scaled_b, -exponent), b))
    before, after = change(a, b), change(scaled_a, scaled_b)
    for one, other in ((before.relative, after.relative), (before.cosine, after.cosine)):
        assert one is other is None or one == pytest.approx(other, rel=1e-9)


@given(ARRAYS)
@settings(deadline=None)
def test_nothing_differs_from_itself(a: Array) -> None:
    found = change(a, a)
    assert (found.changed, found.change, found.max_change) == (0, 0.0, 0.0)
    assert found.relative == 0.0
    assert found.cosine in (None, pytest.approx(1.0))
