"""Measure how far one tensor is from another, block by block, in float64.

    blocks of a and b -> Sums.add -> Sums (of a tensor, a layer, a model) -> WeightChange

Sums of blocks are added exactly, so that their size changes a result by rounding within a block
only, and nothing overflows: the squares of float64 numbers would. Of integers and booleans the
values count, of a complex number its two parts. What is NaN or infinite in either tensor is
counted and left out of every sum: one of them would hide all the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Squares of float64 numbers between 2 to the power of -300 and of 300 stay in its range.
_EXPONENT = 300


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """What changed between two tensors of one shape, or of several pairs of them together.

    Attributes:
        elements: How many numbers each has.
        compared: How many of them are finite in both; norms, cosine and `max_change` are theirs.
        changed: How many do not have the same bits; where the dtypes differ, the same value.
        norm_a, norm_b: Their Euclidean norms; `None` where they are beyond float64.
        change: The norm of b - a.
        relative: `change / norm_a`: 0 where nothing changed, `None` where a is zero and b is not.
        cosine: Of the angle between them; `None` where one of them is zero, or empty.
        max_change: The largest absolute difference of two elements; 0 where there is none.
        nan_a, nan_b, inf_a, inf_b: How many are NaN, and infinite.
    """

    elements: int
    compared: int
    changed: int
    norm_a: float | None
    norm_b: float | None
    change: float | None
    relative: float | None
    cosine: float | None
    max_change: float | None
    nan_a: int
    nan_b: int
    inf_a: int
    inf_b: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def not_finite(self) -> int:
        """How many numbers are NaN or infinite, of both."""
        return self.nan_a + self.nan_b + self.inf_a + self.inf_b


class Sums:
    """What adds up over the blocks of a tensor, or over tensors."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(
            ("elements", "compared", "changed", "nan_a", "nan_b", "inf_a", "inf_b"), 0
        )
        self._aa = self._bb = self._ab = self._dd = self._most = Fraction(0)

    def include(self, other: Sums) -> None:
        """Add what another one has added up."""
        for name, count in other._counts.items():
            self._counts[name] += count
        self._aa += other._aa
        self._bb += other._bb
        self._ab += other._ab
        self._dd += other._dd
        self._most = max(self._most, other._most)

    def add(self, a: Array, b: Array) -> None:
        """Add two blocks: one-dimensional, as long as each other, of the same elements.

        What is no number (text, opaque bytes) is counted in `elements` and `changed`.
        """
        if _is_opaque(a) or _is_opaque(b):
            self._counts["elements"] += a.size
            self._counts["changed"] += _changed(a, b) if a.dtype == b.dtype else a.size
            return
        if (a.dtype.kind == "c") != (b.dtype.kind == "c"):
            a, b = a.astype(np.complex128), b.astype(np.complex128)
        a, b = _plain(a), _plain(b)
        self._counts["elements"] += a.size
        self._counts["changed"] += _changed(a, b)
        wide = np.dtype(np.float64) in (a.dtype.newbyteorder("="), b.dtype.newbyteorder("="))
        x, y = _float64(a), _float64(b)
        finite = self._count_not_finite(x, "a") & self._count_not_finite(y, "b")
        if not finite.all():
            x, y = x[finite], y[finite]
        self._counts["compared"] += x.size
        self._add_finite(x, y, wide)

    def _count_not_finite(self, x: Array, side: str) -> Array:
        finite: Array = np.isfinite(x)
        if not finite.all():
            nan = int(np.isnan(x).sum())
            self._counts[f"nan_{side}"] += nan
            self._counts[f"inf_{side}"] += int(x.size - finite.sum()) - nan
        return finite

    def _add_finite(self, x: Array, y: Array, wide: bool) -> None:
        """Add float64 numbers; `wide`: they may be so large or so small that squares are none."""
        p, q = (_exponent(x), _exponent(y)) if wide else (0, 0)
        r = max(p, q)
        d = np.ldexp(y, -r) - np.ldexp(x, -r) if r or p or q else y - x
        x, y = _shifted(x, p), _shifted(y, q)
        self._aa += _product(x, x, 2 * p)
        self._bb += _product(y, y, 2 * q)
        self._ab += _product(x, y, p + q)
        # A difference may be smaller by far than what it is one of.
        s = _exponent(d) if wide else 0
        shifted = _shifted(d, s)
        self._dd += _product(shifted, shifted, 2 * (r + s))
        most = float(np.abs(shifted).max(initial=0.0))
        self._most = max(self._most, Fraction(most) * _power(r + s))

    def result(self) -> WeightChange:
        """What has been added up by now."""
        counts = self._counts
        norms = (self._aa, self._bb, self._dd)
        norm_a, norm_b, change = (_root(square) for square in norms)
        return WeightChange(
            **counts,
            norm_a=norm_a,
            norm_b=norm_b,
            change=change,
            relative=self._relative(),
            cosine=self._cosine(),
            max_change=_number(self._most),
        )

    def _relative(self) -> float | None:
        if not self._dd:
            # Text has no norm, and a NaN that came is no number: it did not stay the same.
            unknown = self._counts["changed"] and not self._counts["compared"]
            return None if unknown else 0.0
        return _root(self._dd / self._aa) if self._aa else None

    def _cosine(self) -> float | None:
        squares = self._aa * self._bb
        if not squares:
            return None
        size = _root(self._ab * self._ab / squares)
        return None if size is None else math.copysign(min(size, 1.0), 1 if self._ab >= 0 else -1)


def total(parts: Sequence[Sums]) -> Sums:
    """Several tensors as one."""
    found = Sums()
    for part in parts:
        found.include(part)
    return found


def _plain(x: Array) -> Array:
    """Booleans as the bytes that they are, complex numbers as their parts."""
    if x.dtype.kind == "b":
        return x.view(np.uint8)
    return x.view(x.real.dtype) if x.dtype.kind == "c" else x


def _float64(x: Array) -> Array:
    with np.errstate(invalid="ignore"):  # a NaN that signals is one all the same
        return x.astype(np.float64)


def _is_opaque(x: Array) -> bool:
    """Text, or bytes of which nobody says what they are; bfloat16 is of the same kind."""
    return x.dtype.kind == "S" or x.dtype.type is np.void


def _changed(a: Array, b: Array) -> int:
    if a.dtype != b.dtype:
        x, y = _float64(a), _float64(b)
        return int(((x != y) & ~(np.isnan(x) & np.isnan(y))).sum())
    size = a.dtype.itemsize
    if size in (1, 2, 4, 8):
        return int((a.view(f"u{size}") != b.view(f"u{size}")).sum())
    rows = (x.view(np.uint8).reshape(-1, size) for x in (a, b))
    return int((next(rows) != next(rows)).any(axis=1).sum())


def _exponent(x: Array) -> int:
    """How far to shift numbers whose squares would be out of range; mostly 0."""
    found = math.frexp(float(np.abs(x).max(initial=0.0)))[1]
    return 0 if abs(found) < _EXPONENT else found


def _shifted(x: Array, exponent: int) -> Array:
    return np.ldexp(x, -exponent) if exponent else x


def _product(x: Array, y: Array, exponent: int) -> Fraction:
    # Not by BLAS, whose threads wait for each other where others use the cores too.
    return Fraction(float(np.einsum("i,i->", x, y))) * _power(exponent)


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


def _root(square: Fraction) -> float | None:
    """The square root, whatever its size; `None` if float64 has no such number."""
    if not square:
        return 0.0
    half = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    try:
        return math.ldexp(math.sqrt(float(square / _power(2 * half))), half)
    except OverflowError:
        return None


def _number(value: Fraction) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None
